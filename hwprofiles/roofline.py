"""The least time that a piece of work can take on a device: max(bytes / bandwidth, operations / dense rate).

Williams, Waterman and Patterson, "Roofline", CACM 52 (2009). It is a bound, not a forecast: launches, latency, clocks
under a power cap and links between devices are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .schema import Profile


@dataclass(frozen=True, slots=True)
class Roofline:
    """`seconds` on one device and the `limit` that sets it; a side that is None is unknown and sets nothing.

    `num_devices` is how many devices hold the resident bytes. On an SRAM machine all weights must be resident, so the
    work passes through that many devices one after the other and `seconds` is the time of the whole chain; with every
    stage busy, the chain finishes up to `num_devices` such pieces of work in it.
    """

    seconds: float
    limit: Literal["bandwidth", "compute"]
    bandwidth_seconds: float | None
    compute_seconds: float | None
    num_devices: int | None


def roofline(
    profile: Profile, num_bytes: float, flops: float, dtype: str, *, resident_bytes: float | None = None
) -> Roofline:
    """The bound for moving `num_bytes` through memory and doing `flops` operations (a multiply-add is two) in `dtype`.

    `resident_bytes`: what must stay on the devices (weights, KV cache); on an SRAM machine `num_bytes` where not given.
    Raises `ValueError` for a negative number, a tensor dtype that the device lacks, or where nothing is known.
    """
    if num_bytes < 0 or flops < 0:
        raise ValueError(f"bytes and operations cannot be negative: {num_bytes}, {flops}")
    bandwidth, rate = profile.memory.bandwidth_gb_per_s.best, _dense_tflops(profile, dtype)
    by_bandwidth = num_bytes / (bandwidth * 1e9) if bandwidth else None
    by_compute = flops / (rate * 1e12) if rate else None
    if by_bandwidth is None and by_compute is None:
        raise ValueError(f"{profile.name}: neither bandwidth nor a {dtype} rate is known: call on_device(…) first")
    bound_by_compute = by_bandwidth is None or (by_compute is not None and by_compute > by_bandwidth)
    return Roofline(
        seconds=max(by_bandwidth or 0.0, by_compute or 0.0),
        limit="compute" if bound_by_compute else "bandwidth",
        bandwidth_seconds=by_bandwidth,
        compute_seconds=by_compute,
        num_devices=_num_devices(profile, num_bytes, resident_bytes),
    )


def _dense_tflops(profile: Profile, dtype: str) -> float | None:
    rate, word = profile.dense_tflops(dtype), dtype.removeprefix("torch.")
    if rate is None and word not in profile.dtypes and profile.peak.dense_tflops.items():
        raise ValueError(f"{profile.name} does not compute in {dtype}: it has {', '.join(profile.dtypes)}")
    return rate


def _num_devices(profile: Profile, num_bytes: float, resident_bytes: float | None) -> int | None:
    if resident_bytes is None and profile.memory.kind == "sram":
        resident_bytes = num_bytes
    if resident_bytes is None or profile.memory.usable_gib is None:
        return None
    return profile.devices_to_hold(resident_bytes)
