"""How the products of many rows are launched: defaults from a profile's numbers, and what is worth timing.

A tile of y is as large as its sums fit the registers (128 x 256, in two halves if a weight is gated), and as many
stages of x and W as fit on chip. Of some hundred rows such tiles would leave units idle while the weights' bytes count:
there they are narrower, and where those are still too few, K falls into shares. Where tiles fill some rounds and leave
units idle in the last one, shares of that round alone are worth timing. `matrix_instr_nonkdim`, `waves_per_eu`
and `kpack` are options of AMD's compiler: the narrower matrix instruction leaves registers, and an operand is packed
twice as wide where the instruction takes four of K at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as every

from ...hwprofiles.schema import Profile
from ...ops.contract import Launch
from ...ops.types import Reason, Site, dtype_name
from .launching import VECTOR_BYTES, misfit, warps
from .overlap import overlaps
from .rms_norm import MAX_WIDTH

_DEFAULT_UNITS, _DEFAULT_ON_CHIP_KIB = 64, 48  # where a profile does not say: what every GPU has
_MIN_STAGES, _MAX_STAGES, _MAX_COPIED_STAGES = 2, 4, 8  # the last where whole blocks are copied and wgmma reads them
_ORDERS = (8, 4)  # rows of tiles that are gone through before the next outputs
_FILLED = 0.7  # of the units: with fewer tiles the time is that of the units that have one
_MIN_SHARE, _MAX_SHARES = 2048, 16  # of K: less is sooner read than shared; and of a tile, whose sums lie in memory
_MIN_LAST_SHARE, _MAX_LAST_SHARES, _PAYS = 1024, 4, 0.93  # of a last round behind others; of the time without
_BARRIER_BYTES = 1024  # for the barriers of tensor copies, and their alignment
_NORM_THREADS = 256

_Tile = tuple[int, int, int, int, int, int]
"""Rows, outputs (of both halves of a gated weight), K; threads; parts of the epilogue; programs a unit."""

_WIDE: _Tile = (128, 256, 64, 256, 2, 1)
_TALL: _Tile = (256, 128, 64, 256, 2, 1)
_SQUARE: _Tile = (128, 128, 64, 256, 1, 1)
_PAIRED: _Tile = (128, 128, 64, 128, 2, 2)  # two programs of a unit: the one's epilogue runs beside the other's loop
_HUGE: _Tile = (256, 256, 64, 512, 1, 1)  # for 64 KiB, of which a tile in one stage takes all
_BROAD: _Tile = (256, 128, 64, 512, 1, 1)
_NARROW: _Tile = (128, 64, 64, 128, 1, 1)
_SLIM: _Tile = (128, 64, 64, 256, 1, 1)
_DEEP: _Tile = (128, 64, 128, 128, 1, 1)
_LOW: _Tile = (64, 64, 128, 128, 1, 1)
_PLAIN: _Tile = (64, 64, 32, 256, 1, 1)  # float32 multiplies outside the matrix units of NVIDIA
_SMALLEST: _Tile = (32, 32, 16, 128, 1, 1)


def launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """The default for up to `bucket` rows: the largest tile that leaves few units idle, and fits."""
    return next(_launches(site, profile, bucket))


def configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    """What is worth timing for up to `bucket` rows: each launch, and with its last round shared where that pays."""
    for launch in _launches(site, profile, bucket):
        yield launch
        shares = _last_shares(site, profile, bucket, launch)
        if launch["shares"] < shares and launch["group_t"] == _ORDERS[0]:
            yield {**launch, "shares": shares}


def fits(site: Site, profile: Profile, launch: Launch) -> Reason | None:
    """Why a launch does not fit the grid, the device's memory per block or its registers, if it does not."""
    if (reason := misfit(launch, from_zero=frozenset({"waves_per_eu"}))) is not None:
        return reason
    if launch["parts"] > 2 or launch["shares"] > min(_MAX_SHARES, -(-site.dim("K") // launch["block_k"])):
        return Reason("launch", f"takes 1 or 2 parts, and shares of K up to its blocks and to {_MAX_SHARES}")
    if launch["block_t"] <= _LOW[0] and launch["block_k"] >= _LOW[2] and not _copies_whole(site, profile):
        return Reason("shape", f"takes {_LOW[2]} of K in so low a tile only where blocks are copied whole to wgmma")
    needed, limit = on_chip_bytes(site, profile, launch), _limit(profile)
    if needed <= limit:
        return None
    return Reason("on_chip_bytes", f"needs {needed:,} bytes a block, {profile.name} has {limit:,}")


def refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    x, weight = site.dtypes["x"], site.dtypes["weight"]
    if weight != x:
        return Reason("dtype", f"takes a weight of x's dtype {dtype_name(x)}")
    if _normed(site) and site.dim("K") > MAX_WIDTH:
        return Reason("shape", f"norms rows of at most {MAX_WIDTH:,} values, not {site.dim('K'):,}")
    return None


def _launches(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    """Of every tile that fits, the two deepest in two orders; the default first. The smallest tile fits everywhere."""
    fitting = [deepest for tile in _tiles(site, profile, bucket) if (deepest := _deepest(site, profile, bucket, tile))]
    for deepest in fitting or [_deepest(site, profile, bucket, _SMALLEST)]:
        for launch, group_t in every(deepest, _ORDERS):
            if group_t == _ORDERS[0] or bucket > group_t * launch["block_t"]:
                yield {**launch, "group_t": group_t}


def _tiles(site: Site, profile: Profile, bucket: int) -> tuple[_Tile, ...]:
    """First what fills the units: the widest as it is, or else the narrowest with shares of K."""
    if site.dtypes["x"].itemsize > 2:
        return (_PLAIN,)
    widest, others = _sizes(site, profile, bucket)
    enough = _FILLED * (profile.compute.units or _DEFAULT_UNITS)
    tiles = {tile: _num_tiles(site, bucket, tile) for tile in widest}
    whole = [tile for tile, number in tiles.items() if number >= enough]
    narrowest = [*reversed(widest)]
    shared = [each for each in narrowest if tiles[each] * _num_shares(site, profile, bucket, each) >= enough]
    return tuple(dict.fromkeys([*whole, *shared, *narrowest, *others]))


def _sizes(site: Site, profile: Profile, bucket: int) -> tuple[list[_Tile], list[_Tile]]:
    """Tiles of 16-bit values, the widest first; and what else is worth timing."""
    if "mfma" in profile.capabilities:
        return ([_BROAD, _SQUARE, _SLIM], [_HUGE]) if _planes(site) == 1 else ([_SQUARE, _SLIM], [])
    if bucket <= _LOW[0] and _copies_whole(site, profile):
        return [_LOW], [_NARROW]
    if not _described(site, profile):  # pointers of blocks take registers, too
        return [_WIDE, _SQUARE, _SLIM], [_TALL]
    return [_WIDE, _SQUARE, _NARROW], [_TALL, _PAIRED, _DEEP]


def _deepest(site: Site, profile: Profile, bucket: int, tile: _Tile) -> list[Launch]:
    """With the most stages that fit a unit beside one another, and one less; none where two do not."""
    most = _MAX_COPIED_STAGES if _copies_whole(site, profile) else _MAX_STAGES
    made = [_made(site, profile, bucket, tile, stages) for stages in range(most, _MIN_STAGES - 1, -1)]
    room, per_unit = _limit(profile), tile[-1]
    return [launch for launch in made if per_unit * on_chip_bytes(site, profile, launch) <= room][:2]


def _made(site: Site, profile: Profile, bucket: int, tile: _Tile, stages: int) -> Launch:
    rows, outputs, width, threads, parts, per_unit = tile
    described = _described(site, profile)
    shares = _num_shares(site, profile, bucket, tile)
    programs = (profile.compute.units or _DEFAULT_UNITS) * per_unit
    # Two sums in one flat loop wait for one another: there, a loop for each tile is faster. So it is with one tile a
    # program; but of float32, and for tcgen05, the compiler keeps only flat loops in registers.
    is_fastest = _planes(site) == 1 and _num_tiles(site, bucket, tile) > programs
    is_lightest = site.dtypes["x"].itemsize > 2 or (_planes(site) == 1 and "tcgen05" in profile.capabilities)
    return {
        "block_t": rows,
        "block_n": outputs // _planes(site),
        "block_k": width,
        "group_t": _ORDERS[0],
        "programs": programs,
        "slices": profile.on_chip.l2_slices or 1,
        "shares": shares,
        "parts": parts,
        "described": described,
        "flat": described and (is_fastest or is_lightest),
        "pdl": overlaps(profile),
        "num_warps": warps(threads, profile),
        "num_stages": stages,
        **({"norm_warps": warps(_NORM_THREADS, profile)} if _normed(site) else {}),
        **amd_options(profile, waves_per_unit=0),
    }


def _num_shares(site: Site, profile: Profile, bucket: int, tile: _Tile) -> int:
    """Into so many K falls, where whole tiles leave too many units without one."""
    units, tiles = profile.compute.units or _DEFAULT_UNITS, _num_tiles(site, bucket, tile)
    return 1 if tiles >= _FILLED * units else max(1, min(units // tiles, site.dim("K") // _MIN_SHARE, _MAX_SHARES))


def _last_shares(site: Site, profile: Profile, bucket: int, launch: Launch) -> int:
    """Into so many K falls in a last round behind others, if all rounds then take clearly less time than they did. Two
    sums, whole or shared, stay in registers only where wgmma adds up the widest tile."""
    tile = (launch["block_t"], launch["block_n"] * _planes(site))
    if _planes(site) > 1 and not (_copies_whole(site, profile) and tile == _WIDE[:2]):
        return 1
    full, last = divmod(_num_tiles(site, bucket, tile), launch["programs"])
    most = max(1, min(_MAX_LAST_SHARES, site.dim("K") // _MIN_LAST_SHARE))
    rounds = {shares: -(-last * shares // launch["programs"]) / shares for shares in range(1, most + 1)}
    fewest = min(rounds, key=lambda shares: rounds[shares])
    return fewest if full and full + rounds[fewest] <= _PAYS * (full + 1) else 1


def _num_tiles(site: Site, bucket: int, tile: tuple[int, ...]) -> int:
    return -(-bucket // tile[0]) * -(-site.dim("N") // tile[1])


def amd_options(profile: Profile, waves_per_unit: int) -> Launch:
    """For launches on AMD's matrix units; none elsewhere. waves_per_unit: what a vector unit is to hold; 0: open."""
    if "mfma" not in profile.capabilities:
        return {}
    packed = 1 if "block_scaled_mma" in profile.capabilities else 2  # there the instruction itself takes eight of K
    return {"matrix_instr_nonkdim": 16, "waves_per_eu": waves_per_unit, "kpack": packed}


def _described(site: Site, profile: Profile) -> bool:
    """Whether tensor descriptors carry the blocks: rows of all matrices begin at 16 aligned bytes."""
    itemsize = site.dtypes["x"].itemsize
    aligned = all(size * itemsize % VECTOR_BYTES == 0 for size in (site.dim("K"), site.dim("N") // _planes(site)))
    return "tma" in profile.capabilities and aligned


def _copies_whole(site: Site, profile: Profile) -> bool:
    """Whether registers hold neither pointers of blocks under way nor operands."""
    return "wgmma" in profile.capabilities and site.dtypes["x"].itemsize == 2 and _described(site, profile)


def on_chip_bytes(site: Site, profile: Profile, launch: Launch) -> int:
    """Stages of x and W, and what the epilogue holds: y's part and the residual's."""
    itemsize, planes = site.dtypes["x"].itemsize, _planes(site)
    stage = (launch["block_t"] + planes * launch["block_n"]) * launch["block_k"] * itemsize
    if "mfma" in profile.capabilities:
        # CDNA3 keeps the newest stage in registers; CDNA4 copies it straight to on-chip memory, padded.
        copied = "block_scaled_mma" in profile.capabilities
        return launch["num_stages"] * (stage + stage // 16) if copied else (launch["num_stages"] - 1) * stage
    staged = launch["num_stages"] * stage
    if not launch["described"]:
        return int(staged + _BARRIER_BYTES)
    part = launch["block_t"] * launch["block_n"] // launch["parts"]
    copies = min(2, launch["parts"]) if "tcgen05" in profile.capabilities else 1  # the sums come from their own memory
    stored = part * max(itemsize, site.dtypes["y"].itemsize) * copies
    return int(staged + stored + (part * itemsize if site.op == "linear_add" else 0) + _BARRIER_BYTES)


def _limit(profile: Profile) -> int:
    return int((profile.on_chip.shared_memory_per_block_kib or _DEFAULT_ON_CHIP_KIB) * 1024)


def _normed(site: Site) -> bool:
    return site.op == "norm_linear" or bool(site.dims.get("norm"))


def _planes(site: Site) -> int:
    """Matrices that are multiplied with x: a gated weight has two."""
    return 2 if site.op == "gated_linear" else 1
