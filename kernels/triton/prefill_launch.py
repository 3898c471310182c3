"""How the prefill over pages is launched: tiles from a profile's numbers.

On an H200 two programs of four warps a unit are faster than one of eight: while one takes exponentials, the other
multiplies. Where pages hold whole tiles of keys (64 or 128 slots), a tile's page is looked up once.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...hwprofiles.schema import Profile
from ...ops.contract import Launch
from ...ops.types import Reason, Site
from .large_launch import amd_options
from .launching import power, warps

_MIN_TILE = 16  # the least that tl.dot takes on any axis
_DEFAULT_ON_CHIP_KIB = 48  # where a profile does not say: what every GPU has
_MAX_PACKED_ROWS = 64
"""Of a step: fewer tokens fill a tile only with all heads of a group."""

_Tile = tuple[int, int, int, int]
"""Rows, keys, threads, stages."""

_TILES: tuple[_Tile, ...] = (
    (128, 64, 256, 3), (128, 64, 256, 2), (64, 64, 128, 3), (64, 64, 128, 2), (64, 32, 128, 2),
    (32, 32, 128, 2), (16, 16, 128, 1),
)  # fmt: skip
_HOPPER_TILES: tuple[_Tile, ...] = ((128, 64, 256, 2), (128, 64, 256, 3), (64, 64, 128, 3), (128, 128, 256, 2))
_HOPPER_REGISTERS, _MAX_REGISTERS = 65536, 255  # of a unit, of a thread
_NARROW_HEAD = 128
_FULL_TILES: tuple[_Tile, ...] = ((16, 32, 128, 2), (32, 32, 256, 2), (16, 16, 128, 1))
"""For float32, which multiplies outside the matrix units of NVIDIA, from registers: by descriptors it would spill."""


def launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """The default for up to `bucket` rows, as parameters of `paged_prefill.prefill`."""
    return next(configurations(site, profile, bucket), _made(site, profile, bucket, _TILES[-1]))


def invariant_launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """The same for any number of rows: a row's sums have one order."""
    return launch(site, profile, _MAX_PACKED_ROWS + 1)


def configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    """What is worth timing for up to `bucket` rows, the default first."""
    for tile in _tiles(site, profile):
        made = _made(site, profile, bucket, tile)
        if fits(site, profile, made) is None:
            yield made


def _tiles(site: Site, profile: Profile) -> tuple[_Tile, ...]:
    if site.dtypes["x"].itemsize > 2:
        return _FULL_TILES
    first = _HOPPER_TILES if "wgmma" in profile.capabilities else ()
    return (*first, *(tile for tile in _TILES if tile not in first))


def fits(site: Site, profile: Profile, launch: Launch) -> Reason | None:
    """Why a launch does not fit the device's memory per block, if it does not."""
    needed = on_chip_bytes(site, launch)
    limit = int((profile.on_chip.shared_memory_per_block_kib or _DEFAULT_ON_CHIP_KIB) * 1024)
    if needed <= limit:
        return None
    return Reason("on_chip_bytes", f"needs {needed:,} bytes a block, {profile.name} has {limit:,}")


def on_chip_bytes(site: Site, launch: Launch) -> int:
    """The queries, the stages of keys and values, and the weights between the two products."""
    row_bytes = _width(site) * site.dtypes["x"].itemsize
    rows = _rows(site, launch["rows"], launch["packed"])
    staged = 2 * max(1, launch["stages"]) * launch["keys"] * row_bytes
    return int(rows * row_bytes + staged + rows * launch["keys"] * site.dtypes["x"].itemsize)


def _made(site: Site, profile: Profile, bucket: int, tile: _Tile) -> Launch:
    rows, keys, threads, stages = tile
    return {
        "rows": rows,
        "keys": keys,
        "warps": warps(threads, profile),
        "stages": stages,
        "packed": bucket <= _MAX_PACKED_ROWS,
        "described": "tma" in profile.capabilities and site.dtypes["x"].itemsize == 2,
        "slices": profile.on_chip.l2_slices or 1,
        **_registers(site, profile, threads),
        **amd_options(profile, waves_per_unit=0),
    }


def _registers(site: Site, profile: Profile, threads: int) -> Launch:
    """Half a unit's registers for a program, so that two are at work: left alone the compiler takes more than half of
    them for 128 rows, and one program's softmax then has no other's products beside it. Wider heads, windows and
    soft caps need more than that."""
    if "wgmma" not in profile.capabilities:
        return {}
    halves = 1 if _width(site) > _NARROW_HEAD or site.dims["window"] or site.dims["softcap"] else 2
    return {"maxnreg": min(_MAX_REGISTERS, _HOPPER_REGISTERS // (halves * threads))}


def _rows(site: Site, rows: int, packed: bool) -> int:
    """Of a tile: as many as a group has heads, at least, if they are packed."""
    return max(rows, power(site.dim("H") // site.dim("G"))) if packed else rows


def _width(site: Site) -> int:
    return max(_MIN_TILE, power(site.dim("D")))
