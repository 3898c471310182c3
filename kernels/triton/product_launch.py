"""How the products of few rows are launched: defaults from a profile's numbers, and what is worth timing.

A unit of the device needs some tens of KiB of loads under way (bandwidth times latency over units), so a program takes
a block of the weight of that order, and there are about two programs a unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as every

from ...hwprofiles.schema import Profile
from ...ops.contract import Launch
from ...ops.types import Reason, Site, dtype_name
from .launching import misfit
from .overlap import overlaps

MAX_ROWS = 64
_MIN_ROWS = 16  # of a tile, for matrix units whose right operand is no narrower
_NARROW_ROWS = 8  # NVIDIA's are
_DEFAULT_UNITS, _DEFAULT_ON_CHIP_KIB = 64, 48  # where a profile does not say: what every GPU has
_PROGRAMS_PER_UNIT = 1.6
_MAX_SPLITS, _MAX_STAGES = 16, 8
_EARLY = 128  # of K
_TILES = ((64, 4), (64, 3), (64, 2), (32, 2), (16, 2))  # of K, stages
_WIDE = (128, 3)
_TCGEN05_ROWS = 64  # of a left operand, from which the compiler takes it
_DEPTHS = ((3, 0), (4, 0), (8, 0), (4, _EARLY), (8, _EARLY))  # stages, and what is loaded early
_ROW_TILE, _ROW_WIDTH, _ROW_THREADS = 4, 1024, 64  # few threads, and so many programs; half as many outputs in a loop
_UNROLLED_TILES = 4  # of K, at most: the loads of more do not stay in registers


def launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """The default for up to `bucket` rows: the fastest on an H200, shrunk to what fits."""
    if bucket == 1:
        width = min(_ROW_WIDTH, _power(site.dim("K")))
        is_short = site.dim("K") <= _UNROLLED_TILES * width and site.dtypes["x"].itemsize == 2
        unrolled = is_short and "pdl" in profile.capabilities  # elsewhere nothing was measured
        rows = (_ROW_TILE if unrolled else _ROW_TILE // 2) // _planes(site)
        return _row(rows, width, max(1, _ROW_THREADS // profile.lane_width), profile, unrolled)
    return _fitted(site, profile, bucket, _outputs(site))


def invariant_launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """One launch for any number of rows: a row's sums have one order."""
    return {**_fitted(site, profile, _MIN_ROWS, _outputs(site)), "splits": 1, "early": 0}


def configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    """What is worth timing for up to `bucket` rows."""
    if bucket == 1:
        for rows, width, warps, unrolled in every((1, 2, 4, 8), (512, 1024, 2048, 4096), (1, 2, 4), (False, True)):
            of_thread = rows * _planes(site) * width // (warps * profile.lane_width)
            if 16 <= of_thread <= (64 if unrolled else 128) and width < 2 * site.dim("K"):
                tile = _row(rows, width, warps, profile, unrolled)
                if fits(site, profile, tile) is None:
                    yield tile
        return
    units = profile.compute.units or _DEFAULT_UNITS
    for block_n, block_k, splits, (stages, early) in every((32, 64, 128), (64, 128), (1, 2, 4, 8), _DEPTHS):
        tile = _tile(site, profile, bucket, block_n // _planes(site), block_k, splits, stages, early)
        programs = -(-site.dim("N") // tile["block_n"]) * splits
        if tile["early"] == early and units <= programs * 2 <= 16 * units and fits(site, profile, tile) is None:
            yield tile


def fits(site: Site, profile: Profile, launch: Launch) -> Reason | None:
    """Why a launch does not fit the grid, the device's memory per block or its compiler, if it does not."""
    if (reason := misfit(launch, from_zero=frozenset({"block_t", "early"}))) is not None:
        return reason
    if launch["block_n"] >= _TCGEN05_ROWS and launch["block_t"] and _shares_operand(site, profile):
        return Reason("shape", f"is no product for tcgen05: fewer than {_TCGEN05_ROWS} outputs a tile")
    if launch.get("unrolled") and site.dim("K") > _UNROLLED_TILES * launch["block_k"]:
        return Reason("shape", f"unrolls {_UNROLLED_TILES} blocks of K at most, whose loads stay in registers")
    if launch["early"] and not loads_early(site.dim("K"), launch):
        return Reason("shape", f"loads {launch['early']} of K early, which not every share of {site.dim('K')} has")
    limit = _limit(profile)
    needed = _on_chip_bytes(site, launch)
    return (
        Reason("on_chip_bytes", f"needs {needed:,} bytes a block, {profile.name} has {limit:,}")
        if needed > limit
        else None
    )


def fits_rows(site: Site, profile: Profile, launch: Launch) -> Reason | None:
    """`fits`, of a kernel that serves any number of rows."""
    if launch["block_t"] == 0:
        return Reason("rows", "block_t=0 is of the kernel for one row")
    return fits(site, profile, launch)


def loads_early(width: int, launch: Launch) -> bool:
    """Whether K falls into equal shares of whole blocks, with what is loaded early in each."""
    splits, block_k, early = launch["splits"], launch["block_k"], launch["early"]
    return bool(width % (splits * block_k) == 0 and early % block_k == 0 and splits * early <= width)


def refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    x, weight = site.dtypes["x"], site.dtypes["weight"]
    return None if weight == x else Reason("dtype", f"takes a weight of x's dtype {dtype_name(x)}")


def _row(rows: int, width: int, num_warps: int, profile: Profile, unrolled: bool) -> Launch:
    tile = {"block_t": 0, "block_n": max(1, rows), "block_k": width, "splits": 1, "early": 0, "num_stages": 1}
    return {**tile, "num_warps": num_warps, "pdl": overlaps(profile), "unrolled": unrolled}


def _fitted(site: Site, profile: Profile, bucket: int, block_n: int) -> Launch:
    """A tile for up to `bucket` rows: as many stages as fit, and shares of K enough to give every unit its work."""
    units = profile.compute.units or _DEFAULT_UNITS
    wide = bucket > _NARROW_ROWS and _is_wide(site, profile)
    block_n, early = (64, 0) if wide else (block_n, _EARLY)
    splits = 1
    while splits < _MAX_SPLITS and splits * -(-site.dim("N") // block_n) < _PROGRAMS_PER_UNIT * units:
        splits *= 2
    for block_k, stages in (_WIDE, *_TILES) if wide else _TILES:
        tile = _tile(site, profile, bucket, block_n, block_k, splits, stages, early)
        if fits(site, profile, tile) is None:
            return tile
    return _tile(site, profile, _MIN_ROWS, 16, 16, splits, 1, 0)


def _is_wide(site: Site, profile: Profile) -> bool:
    """Whether more rows than the narrowest tile has are read in wide pieces, which was faster where it was measured;
    masks, and values multiplied outside the matrix unit, would not leave them the registers."""
    return "wgmma" in profile.capabilities and site.dtypes["x"].itemsize == 2 and site.dim("K") % _WIDE[0] == 0


def _tile(
    site: Site, profile: Profile, bucket: int, block_n: int, block_k: int, splits: int, stages: int, early: int
) -> Launch:
    narrowest = _NARROW_ROWS if profile.lane_width == 32 else _MIN_ROWS
    blocks = -(-site.dim("K") // block_k)
    splits = min(splits, blocks)
    shares = {"splits": splits, "block_k": block_k, "early": early}
    return {
        "block_t": min(MAX_ROWS, max(narrowest, _power(bucket))),
        "block_n": block_n,
        **shares,
        "early": early if loads_early(site.dim("K"), shares) and overlaps(profile) else 0,
        "num_warps": max(1, (128 if block_n * _planes(site) <= 128 else 256) // profile.lane_width),
        "num_stages": min(stages, _MAX_STAGES),
        "pdl": overlaps(profile),
    }


def _on_chip_bytes(site: Site, launch: Launch) -> int:
    """What the stages of weight and x take, and what is loaded early beside them; or the sums, turned for the store."""
    rows = launch["block_n"] * _planes(site)
    if launch["block_t"] == 0:
        return 4 * launch["num_warps"] * launch["block_n"] * _planes(site)
    itemsize = site.dtypes["x"].itemsize
    staged = (rows + launch["block_t"]) * launch["block_k"] * itemsize * launch["num_stages"]
    early = (rows + launch["block_t"]) * launch["early"] * itemsize
    return int(max(staged + early, 4 * rows * launch["block_t"]) + launch["block_t"] * launch["block_k"] * itemsize)


def _shares_operand(site: Site, profile: Profile) -> bool:
    """Whether two of tcgen05's products would take one operand from registers: triton 3.6 fails to pipeline them."""
    return _planes(site) == 2 and "tcgen05" in profile.capabilities


def _limit(profile: Profile) -> int:
    return int((profile.on_chip.shared_memory_per_block_kib or _DEFAULT_ON_CHIP_KIB) * 1024)


def _planes(site: Site) -> int:
    """Matrices that are multiplied with x: a gated weight has two."""
    return 2 if site.op == "gated_linear" else 1


def _outputs(site: Site) -> int:
    """Of a tile: of float32, which NVIDIA's matrix units do not multiply, more do not stay in registers."""
    return (64 if site.dtypes["x"].itemsize == 2 else 32) // _planes(site)


def _power(size: int) -> int:
    return 1 << (min(size, MAX_ROWS * 1024) - 1).bit_length()
