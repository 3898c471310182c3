"""Which share of a device's ceilings each kind of work reaches: measured where it was, else a documented default.

A kind of work is told by its cost alone: a product has weights, attention's operations grow with (query, key) pairs,
everything else moves bytes. A curve gives the share over one axis: for products the intensity, operations at the rate
over bytes at the bandwidth (1 is the ridge of the roofline), which puts all sizes, formats and devices on one line; for
attention the keys that a query sees; for the rest the rows. Between points the logarithm of the axis counts, beyond the
ends the end. Ceilings are the profile's specified bandwidth (the measured one where none is specified) and dense peaks.

Sources, in order: a calibration of this very profile (`ambidex calibrate`), tuned rows of its family, those of the
nearest family of its vendor, the defaults; beyond the last measured row the defaults again. Not known: clocks under a
power cap, and other users of the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..hwprofiles.records import RATE_OF_DTYPE
from ..hwprofiles.schema import Profile
from ..ops import tuned
from ..runtime.errors import ConfigError

Kind = Literal["product", "decode_attention", "prompt_attention", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Shares over an axis (both above 0, the axis rising); source: where they come from, for people."""

    axis: tuple[float, ...]
    shares: tuple[float, ...]
    source: str
    _logs: Reals = field(init=False, repr=False, compare=False)
    _values: Reals = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rises = all(low < high for low, high in zip(self.axis, self.axis[1:], strict=False))
        if not self.axis or len(self.axis) != len(self.shares) or not rises or min(*self.axis, *self.shares) <= 0:
            raise ConfigError(f"a curve ({self.source}) needs as many shares as axis points, above 0 and rising")
        object.__setattr__(self, "_logs", np.log(self.axis))
        object.__setattr__(self, "_values", np.array(self.shares))

    def at(self, value: float) -> float:
        return float(np.interp(math.log(value) if value > 0 else -math.inf, self._logs, self._values))

    def along(self, values: Reals) -> Reals:
        """`at` of each of some values above 0, to the bit (numpy's logarithm is not that of `math`)."""
        return np.interp([math.log(value) for value in values.tolist()], self._logs, self._values)

    def at_all(self, values: Reals) -> Reals:
        with np.errstate(divide="ignore"):
            return np.interp(np.log(values), self._logs, self._values)


@dataclass(frozen=True)
class Efficiency:
    """curves: by kind. launch_us: by kind, of one call beside its work: the launch, and what latencies leave of it.
    step_us: of a step on the device, beside its sites. host_us, host_us_per_request: of a step, on the host; eager_us:
    of each site in a step that no graph replays, as those with a prompt. The host's are hidden behind the device's work
    where the device works by itself. link_share: of a link's one-way rate that collectives reach; link_us: before the
    first byte. beside_reading: what decode attention computes and does not hide behind its reading, in multiples of its
    operations' time at the rate: on a CPU vectors do what matrix units do elsewhere, so that it does not follow the
    bandwidth alone. read_share: None: the products' curve is over the intensity, as above. A number, as a calibration
    has: the share of the bandwidth at which weights are read, and the curve is that of the rate over a step's rows; a
    product then takes the root of the sum of both times' squares. On a CPU a row count's tiles are good or bad at any
    bandwidth, which there changes from minute to minute: over the intensity they would move along the curve."""

    curves: Mapping[Kind, Curve]
    launch_us: Mapping[Kind, float]
    host_us: float
    host_us_per_request: float
    link_share: float
    link_us: float
    step_us: float = 0.0
    eager_us: float = 0.0
    beside_reading: float = 0.0
    read_share: float | None = None

    @property
    def source(self) -> str:
        """Each source once, with the kinds that it stands behind."""
        kinds: dict[str, list[str]] = {}
        for kind in KINDS:
            kinds.setdefault(self.curves[kind].source, []).append(kind.replace("_", " "))
        if len(kinds) == 1:
            return next(iter(kinds))
        return "; ".join(f"{source}: {', '.join(names)}" for source, names in kinds.items())


_DEFAULT = "default"
DEFAULT = Efficiency(
    curves={
        "product": Curve((0.01, 0.3, 1.0, 4.0), (0.80, 0.78, 0.58, 0.58), _DEFAULT),
        "decode_attention": Curve((128.0, 1024.0, 8192.0), (0.55, 0.70, 0.82), _DEFAULT),
        "prompt_attention": Curve((128.0, 1024.0, 4096.0), (0.20, 0.40, 0.52), _DEFAULT),
        "other": Curve((1.0, 64.0, 1024.0), (0.05, 0.30, 0.60), _DEFAULT),
    },
    launch_us={"product": 2.5, "decode_attention": 8.0, "prompt_attention": 10.0, "other": 2.5},
    host_us=60.0,
    host_us_per_request=0.6,
    link_share=0.75,
    link_us=8.0,
)
"""For a GPU of any vendor, of what engines in production reach of the specified peaks, set from NVIDIA's rows alone:

product: from 58 % of the dense peak (cuBLAS 75 % of bf16, DeepGEMM 69 % of FP8 on H100, less what a step's smaller
products and a power cap take) to 80 % of the specified bandwidth (vLLM 70 %, our kernels 82 %); decode attention from
the slopes of vLLM on H100 (90 % at long contexts) and its kernel's latency on H200; prompt attention from
FlashAttention-3 (up to 75 %; causal and ragged less); a launch from graphs replayed on H100 (1.3 us) and the gap before
a dependent kernel; links from NCCL.
"""

HOST = replace(
    DEFAULT,
    curves={
        "product": Curve((0.02, 0.5, 1.0, 4.0), (0.85, 0.70, 0.65, 0.80), "default for hosts"),
        "decode_attention": Curve((128.0, 4096.0), (0.30, 0.60), "default for hosts"),
        "prompt_attention": Curve((128.0, 4096.0), (0.20, 0.35), "default for hosts"),
        "other": Curve((1.0, 1024.0), (0.05, 0.40), "default for hosts"),
    },
    launch_us=dict.fromkeys(KINDS, 5.0),
    host_us=120.0,
)
"""For a CPU: from the measured decode and prefill of two cores (docs/results.md)."""


def efficiency(profile: Profile, calibrated: Efficiency | None = None, *, only_defaults: bool = False) -> Efficiency:
    """What to expect of the profile. calibrated: its own calibration, where there is one."""
    if calibrated is not None and not only_defaults:
        return calibrated
    base = HOST if profile.memory.kind == "dram" else DEFAULT
    if only_defaults:
        return base
    curve = _tuned_curve(profile)
    if curve is None:
        return base
    return replace(base, curves={**base.curves, "product": _carried_on(curve, base.curves["product"])})


def ceilings(profile: Profile, rate: str) -> tuple[float, float]:
    """Bytes and operations a second that shares are of. ConfigError: the profile does not know them."""
    bandwidth = profile.memory.bandwidth_gb_per_s.spec or profile.memory.bandwidth_gb_per_s.measured
    tflops = profile.dense_tflops(rate)
    if not bandwidth or not tflops:
        what = "bandwidth" if not bandwidth else f"{rate} rate"
        raise ConfigError(f"{profile.name} knows no {what}: run `ambidex calibrate` on such a machine first")
    return bandwidth * 1e9, tflops * 1e12


def _tuned_curve(profile: Profile) -> Curve | None:
    """The products' curve from measured rows: of the profile's family, else of the nearest one of its vendor."""
    tables = [table for table in tuned.tables() if table.vendor == profile.vendor and _has_products(table)]
    if not tables:
        return None
    units = profile.compute.units or 1
    nearest = min(tables, key=lambda table: (table.family != profile.tuning_family, table.arch != profile.arch,
                                             abs(math.log((table.units or 1) / units)), table.family))  # fmt: skip
    same = [table for table in tables if table.family == nearest.family]
    points = _points(same)
    if len(points) < 2:
        return None
    word = "measured" if nearest.family == profile.tuning_family else "near"
    return Curve(tuple(points), tuple(points.values()), f"{word} ({nearest.family}, {nearest.date})")


def _carried_on(measured: Curve, default: Curve) -> Curve:
    """The default's points beyond the last that was measured: what reading reaches says nothing of what multiplying
    does."""
    last = measured.axis[-1]
    points = dict(zip(measured.axis, measured.shares, strict=True))
    beyond = {at: share for at, share in zip(default.axis, default.shares, strict=True) if at > last}
    source = f"{measured.source} to intensity {last:.2g}, then {default.source}" if beyond else measured.source
    return Curve((*points, *beyond), (*points.values(), *beyond.values()), source)


def _has_products(table: tuned.Table) -> bool:
    return any({"N", "K"} <= row.dims.keys() for row in table.rows)


def _points(tables: Iterable[tuned.Table]) -> dict[float, float]:
    """Intensity -> share of the ceilings of the profile on which the rows were measured, over all sizes: of each size
    and number of rows the fastest kernel of any op, weighed by its time. Sizes of one number of rows are one point:
    their intensities differ by a hundredth, and which lies a hundredth further says nothing of the rows."""
    from ..hwprofiles.reader import load

    fastest: dict[tuple[str, Any, Any, int], tuple[float, _Product]] = {}
    for table in tables:
        own = load(table.profile)
        for row in table.rows:
            found = _product(own, row) if {"N", "K"} <= row.dims.keys() else None
            key = (table.profile, row.dims.get("N"), row.dims.get("K"), row.rows)
            if found and (key not in fastest or row.time_us < fastest[key][0]):
                fastest[key] = row.time_us, found
    by_rows: dict[tuple[str, int], list[tuple[float, _Product]]] = {}
    for (profile, _, _, num_rows), took in fastest.items():
        by_rows.setdefault((profile, num_rows), []).append(took)
    return dict(sorted(_point(each) for each in by_rows.values()))


def _point(found: Sequence[tuple[float, _Product]]) -> tuple[float, float]:
    """Intensity and share of products that took so many microseconds, taken together."""
    moving, multiplying = sum(each.moving_us for _, each in found), sum(each.multiplying_us for _, each in found)
    share = sum(max(each.moving_us, each.multiplying_us) for _, each in found) / sum(took_us for took_us, _ in found)
    return multiplying / moving, share


class _Product(NamedTuple):
    """Microseconds at the ceilings of what a measured product moves, and of what it multiplies."""

    moving_us: float
    multiplying_us: float


def _product(profile: Profile, row: tuned.Row) -> _Product | None:
    if row.dtypes["x"] not in ("bfloat16", "float16"):
        return None
    bytes_per_s, operations_per_s = ceilings(profile, RATE_OF_DTYPE[row.dtypes["x"]])
    outputs, width = int(row.dims["N"] or 0), int(row.dims["K"] or 0)
    moving = 2 * (outputs * width + row.rows * (outputs + width)) / bytes_per_s
    return _Product(1e6 * moving, 2e6 * row.rows * outputs * width / operations_per_s)


def shares(pairs: Sequence[tuple[float, float]], source: str) -> Curve:
    """A curve through measured (axis, share) points; of points at one place the mean."""
    places: dict[float, list[float]] = {}
    for at, share in sorted(pairs):
        places.setdefault(at, []).append(share)
    return Curve(tuple(places), tuple(sum(each) / len(each) for each in places.values()), source)
