"""How attention over pages is launched: shares or splits of a decode step's keys from a profile's numbers, and beside
them prefill's own parameters (`prefill_launch.py`), whose names begin with `prefill_`.
"""

from __future__ import annotations

from typing import Any

from ...hwprofiles.schema import Profile
from ...ops.contract import Launch
from ...ops.types import Reason, Site
from . import prefill_launch
from .launching import power
from .overlap import overlaps

_MIN_TILE = 16  # the least that tl.dot takes on any axis
_MIN_SPLITS, _MAX_SPLITS = 8, 64  # bounds of what the profile's units ask for
_DECODE_TILE_BYTES = 8192  # of keys: three stages of keys and values leave room for four programs a unit
_DECODE_STAGES = 5
_PREFILL = "prefill_"
_PROGRAMS_PER_UNIT = 8  # of the decode grid: enough to even out requests of different lengths
_DEFAULT_UNITS = 64
_DEFAULT_ON_CHIP_KIB = 48  # where a profile does not say: what every GPU has


def of_prefill(launch: Launch) -> dict[str, Any]:
    """The parameters of prefill's own launch among those of a call."""
    return {name.removeprefix(_PREFILL): value for name, value in launch.items() if name.startswith(_PREFILL)}


def _named(launch: Launch) -> Launch:
    return {_PREFILL + name: value for name, value in launch.items()}


def padded(size: int) -> int:
    return max(_MIN_TILE, power(size))


def shared_launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """Of the kernel whose programs share evenly."""
    units = profile.compute.units or _DEFAULT_UNITS
    itemsize = site.dtypes["x"].itemsize
    keys = 64 if itemsize == 2 else 16  # of float32, more do not stay in registers
    row_bytes, rows = padded(site.dim("D")) * itemsize, padded(site.dim("H") // site.dim("G"))
    while keys > _MIN_TILE and _tile_bytes(rows, keys, row_bytes, 3) > _on_chip_limit(profile) // 2:
        keys //= 2
    stages = _stages(_DECODE_STAGES - 1, rows, keys, row_bytes, _on_chip_limit(profile) // 2)
    # To find its page takes a tile a stage of its own; a lone request gains more by room for the next kernel.
    stages += stages > 2 and bucket > 1
    return {
        "keys": keys,
        "warps": max(1, 128 // profile.lane_width),
        "stages": stages,
        "programs": 2 * units,
        "pdl": overlaps(profile),
        **_named(prefill_launch.launch(site, profile, bucket)),
    }


def launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """What follows from the heads and the profile alone, so the same in every bucket."""
    itemsize, units = site.dtypes["x"].itemsize, profile.compute.units or _DEFAULT_UNITS
    row_bytes = padded(site.dim("D")) * itemsize
    limit = _on_chip_limit(profile)
    decode_rows, decode_limit = padded(site.dim("H") // site.dim("G")), limit // 2  # two programs a unit, or more
    decode_keys = min(64, max(_MIN_TILE, _DECODE_TILE_BYTES // row_bytes))
    while decode_keys > _MIN_TILE and _tile_bytes(decode_rows, decode_keys, row_bytes, 3) > decode_limit:
        decode_keys //= 2
    splits = max(1, 2 * units // site.dim("G"))
    return {
        "decode_keys": decode_keys,
        "decode_warps": max(1, 128 // profile.lane_width),
        "decode_stages": _stages(_DECODE_STAGES, decode_rows, decode_keys, row_bytes, decode_limit),
        "decode_programs": _PROGRAMS_PER_UNIT * units,
        "max_splits": min(_MAX_SPLITS, max(_MIN_SPLITS, power(splits + 1) // 2)),
        **_named(prefill_launch.invariant_launch(site, profile, bucket)),
    }


def _on_chip_limit(profile: Profile) -> int:
    return int((profile.on_chip.shared_memory_per_block_kib or _DEFAULT_ON_CHIP_KIB) * 1024)


def _stages(most: int, rows: int, keys: int, row_bytes: int, limit: int) -> int:
    fitting = (stages for stages in range(most, 1, -1) if _tile_bytes(rows, keys, row_bytes, stages) <= limit)
    return next(fitting, 1)


def _tile_bytes(rows: int, keys: int, row_bytes: int, stages: int) -> int:
    """The most on-chip memory that a tile takes: the queries, keys and values of all stages but the one at work, and
    the weights between the two products."""
    return rows * row_bytes + 2 * max(stages - 1, min(stages, 2)) * keys * row_bytes + 4 * rows * keys


def on_chip_bytes(site: Site, launch: Launch) -> int:
    """What the larger of the two tiles takes."""
    row_bytes, group = padded(site.dim("D")) * site.dtypes["x"].itemsize, site.dim("H") // site.dim("G")
    decode = _tile_bytes(padded(group), launch["decode_keys"], row_bytes, launch["decode_stages"])
    return max(decode, prefill_launch.on_chip_bytes(site, of_prefill(launch)))


def refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    if site.dims["ancestors"]:
        return Reason("shape", "sees no trees of draft tokens")
    needed, limit = on_chip_bytes(site, launch(site, profile, bucket)), _on_chip_limit(profile)
    if needed > limit:
        return Reason("on_chip_bytes", f"needs {needed:,} bytes a block, {profile.name} has {limit:,}")
    return None
