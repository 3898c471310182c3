"""How the products of many rows are launched: defaults from a profile's numbers, and what is worth timing.

A tile of y is as large as its sums fit the registers (128 x 256, in two halves if a weight is gated), and as many
stages of x and W as fit on chip. Of some hundred rows such tiles would leave units idle: there they are narrower. A
round of tiles that leaves units idle, the only one or the last of several, is cut into shares of K where it ends sooner
so: into how many, each call's number of rows decides. `matrix_instr_nonkdim`, `waves_per_eu` and `kpack` are options of
AMD's compiler: the narrower matrix instruction leaves registers, and an operand is packed twice as wide where the
instruction takes four of K at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product as every
from typing import NamedTuple

from ...hwprofiles.schema import Profile
from ...ops.contract import Launch
from ...ops.types import Reason, Site, dtype_name
from .arrivals import NUM_COUNTERS
from .launching import VECTOR_BYTES, misfit, warps
from .overlap import overlaps
from .rms_norm import MAX_WIDTH

_DEFAULT_UNITS, _DEFAULT_ON_CHIP_KIB = 64, 48  # where a profile does not say: what every GPU has
_MIN_STAGES, _MAX_STAGES, _MAX_COPIED_STAGES = 2, 4, 8  # the last where whole blocks are copied and wgmma reads them
_ORDERS = (8, 4)  # rows of tiles that are gone through before the next outputs
_ADDED_UP = 512  # values of K that are multiplied while a tile's last program adds up a share (measured with H200s)
_MAX_SHARES = 8
_BARRIER_BYTES = 1024  # for the barriers of tensor copies, and their alignment
_NORM_THREADS = 256


class _Tile(NamedTuple):
    rows: int
    outputs: int
    """Of both halves of a gated weight."""
    width: int
    threads: int
    parts: int
    """Of the epilogue."""
    per_unit: int = 1
    """Programs of a unit: the one's epilogue runs beside the other's loop."""
    cost: float = 1.0
    """Of a multiplication, as one of _WIDE costs 1, where tiles are chosen by it (measured with H200s)."""


_WIDE = _Tile(128, 256, 64, 256, 2)
_TALL = _Tile(256, 128, 64, 256, 2)
_SQUARE = _Tile(128, 128, 64, 256, 1, cost=1.15)
_PAIRED = _Tile(128, 128, 64, 128, 2, per_unit=2)
_HUGE = _Tile(256, 256, 64, 512, 1)  # for 64 KiB, of which a tile in one stage takes all
_BROAD = _Tile(256, 128, 64, 512, 1)
_NARROW = _Tile(128, 64, 64, 128, 1, cost=1.55)
_SLIM = _Tile(128, 64, 64, 256, 1, cost=1.55)
_DEEP = _Tile(128, 64, 128, 128, 1)
_LOW = _Tile(64, 64, 128, 128, 1)
_PLAIN = _Tile(64, 64, 32, 256, 1)  # float32 multiplies outside the matrix units of NVIDIA
_SMALLEST = _Tile(32, 32, 16, 128, 1)
_FULL = (_TALL, _PAIRED, _HUGE)  # leave no registers for shares


def launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """The default for up to `bucket` rows: the tile that is through soonest, of those that fit."""
    return next(configurations(site, profile, bucket))


def configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    """What is worth timing for up to `bucket` rows, the default first: of every tile that fits, the two deepest in two
    orders. The smallest tile fits everywhere."""
    fitting = [deepest for tile in _tiles(site, profile, bucket) if (deepest := _deepest(site, profile, bucket, tile))]
    for deepest in fitting or [_deepest(site, profile, bucket, _SMALLEST)]:
        for launch, group_t in every(deepest, _ORDERS):
            if group_t == _ORDERS[0] or bucket > group_t * launch["block_t"]:
                yield {**launch, "group_t": group_t}


@cache
def shares_of(tiles: int, programs: int, width: int, most: int) -> int:
    """Into so many shares, at most `most`, K of each tile in the last round falls: so that it ends soonest. Their sums
    lie in memory, those of twice as many as there are programs at most."""
    last = tiles % programs
    some = (each for each in range(1, most + 1) if each == 1 or last * each <= 2 * programs)
    return min(some, key=lambda shares: _last_round(last, programs, width, shares))


def _last_round(tiles: int, programs: int, width: int, shares: int) -> int:
    """How long it takes, in values of K that a program goes through."""
    added_up = _ADDED_UP * shares if shares > 1 else 0
    return -(-tiles * shares // programs) * (-(-width // shares) + added_up)


def fits(site: Site, profile: Profile, launch: Launch) -> Reason | None:
    """Why a launch does not fit the grid, the device's memory per block or its registers, if it does not."""
    if (reason := misfit(launch, from_zero=frozenset({"waves_per_eu"}))) is not None:
        return reason
    if launch["parts"] > 2 or launch["shares"] > _MAX_SHARES:
        return Reason("launch", f"takes 1 or 2 parts, and up to {_MAX_SHARES} shares of K")
    if launch["shares"] > 1 and launch["programs"] > NUM_COUNTERS:
        return Reason("launch", f"takes up to {NUM_COUNTERS:,} programs where K falls into shares")
    if launch["block_t"] <= _LOW.rows and launch["block_k"] >= _LOW.width and not _copies_whole(site, profile):
        return Reason("shape", f"takes {_LOW.width} of K in so low a tile only where blocks are copied whole to wgmma")
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


def _tiles(site: Site, profile: Profile, bucket: int) -> tuple[_Tile, ...]:
    """The one that is through soonest first."""
    if site.dtypes["x"].itemsize > 2:
        return (_PLAIN,)
    usual, others = _sizes(site, profile, bucket)
    return (*sorted(usual, key=lambda tile: _time(site, profile, bucket, tile)), *others)


def _time(site: Site, profile: Profile, bucket: int, tile: _Tile) -> float:
    """What all rounds take, in multiplications of a program, by their cost."""
    width, programs = site.dim("K"), _programs(profile, tile)
    rounds, last = divmod(_num_tiles(site, bucket, tile), programs)
    shares = shares_of(last, programs, width, _most_shares(site, tile))
    return (rounds * width + _last_round(last, programs, width, shares)) * tile.rows * tile.outputs * tile.cost


def _sizes(site: Site, profile: Profile, bucket: int) -> tuple[list[_Tile], list[_Tile]]:
    """Tiles of 16-bit values; and what else is worth timing."""
    if "mfma" in profile.capabilities:
        return ([_BROAD, _SQUARE, _SLIM], [_HUGE]) if _planes(site) == 1 else ([_SQUARE, _SLIM], [])
    if bucket <= _LOW.rows and _copies_whole(site, profile):
        return [_LOW], [_NARROW]
    if not _described(site, profile):  # pointers of blocks take registers, too
        return [_WIDE, _SQUARE, _SLIM], [_TALL]
    return [_WIDE, _SQUARE, _NARROW], [_TALL, _PAIRED, _DEEP]


def _deepest(site: Site, profile: Profile, bucket: int, tile: _Tile) -> list[Launch]:
    """With the most stages that fit a unit beside one another, and one less; none where two do not."""
    most = _MAX_COPIED_STAGES if _copies_whole(site, profile) else _MAX_STAGES
    made = [_made(site, profile, bucket, tile, stages) for stages in range(most, _MIN_STAGES - 1, -1)]
    room, per_unit = _limit(profile), tile.per_unit
    return [launch for launch in made if per_unit * on_chip_bytes(site, profile, launch) <= room][:2]


def _made(site: Site, profile: Profile, bucket: int, tile: _Tile, stages: int) -> Launch:
    described, programs = _described(site, profile), _programs(profile, tile)
    # With one tile a program a loop for each tile is faster; but of float32, and for tcgen05, the compiler keeps only
    # flat loops in registers. For tcgen05 flat loops of a gated weight do not fit on chip.
    is_fastest = _num_tiles(site, bucket, tile) > programs
    is_wide, by_tcgen05 = site.dtypes["x"].itemsize > 2, "tcgen05" in profile.capabilities
    is_flat = is_wide or (_planes(site) == 1 if by_tcgen05 else is_fastest)
    return {
        "block_t": tile.rows,
        "block_n": tile.outputs // _planes(site),
        "block_k": tile.width,
        "group_t": _ORDERS[0],
        "programs": programs,
        "slices": profile.on_chip.l2_slices or 1,
        "shares": _most_shares(site, tile),
        "parts": tile.parts,
        "described": described,
        "flat": described and is_flat,
        "pdl": overlaps(profile),
        "num_warps": warps(tile.threads, profile),
        "num_stages": stages,
        **({"norm_warps": warps(_NORM_THREADS, profile)} if _normed(site) else {}),
        **amd_options(profile, waves_per_unit=0),
    }


def _most_shares(site: Site, tile: _Tile) -> int:
    """1 where K is so short that two would end no round sooner."""
    return 1 if tile in _FULL or site.dim("K") <= 4 * _ADDED_UP else _MAX_SHARES


def _programs(profile: Profile, tile: _Tile) -> int:
    return (profile.compute.units or _DEFAULT_UNITS) * tile.per_unit


def _num_tiles(site: Site, bucket: int, tile: _Tile) -> int:
    return -(-bucket // tile.rows) * -(-site.dim("N") // tile.outputs)


def amd_options(profile: Profile, waves_per_unit: int) -> Launch:
    """For launches on AMD's matrix units; none elsewhere. waves_per_unit: what a vector unit is to hold; 0: open."""
    if "mfma" not in profile.capabilities:
        return {}
    packed = 1 if "block_scaled_mma" in profile.capabilities else 2  # there the instruction itself takes eight of K
    return {"matrix_instr_nonkdim": 16, "waves_per_eu": waves_per_unit, "kpack": packed}


def _described(site: Site, profile: Profile) -> bool:
    """Whether tensor descriptors carry the blocks: rows of all matrices begin at 16 aligned bytes."""
    read, written = site.dtypes["x"].itemsize, min(site.dtypes[name].itemsize for name in ("x", "y"))
    row_bytes = (site.dim("K") * read, site.dim("N") // _planes(site) * written)
    return "tma" in profile.capabilities and all(each % VECTOR_BYTES == 0 for each in row_bytes)


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
    barriers = _BARRIER_BYTES * (2 if launch["shares"] > 1 else 1)  # the shared round is a loop of its own
    if not launch["described"]:
        return int(staged + barriers)
    part = launch["block_t"] * launch["block_n"] // launch["parts"]
    copies = min(2, launch["parts"]) if "tcgen05" in profile.capabilities else 1  # the sums come from their own memory
    stored = part * max(itemsize, site.dtypes["y"].itemsize) * copies
    return int(staged + stored + (part * itemsize if site.op == "linear_add" else 0) + barriers)


def _limit(profile: Profile) -> int:
    return int((profile.on_chip.shared_memory_per_block_kib or _DEFAULT_ON_CHIP_KIB) * 1024)


def _normed(site: Site) -> bool:
    return site.op == "norm_linear" or bool(site.dims.get("norm"))


def _planes(site: Site) -> int:
    """Matrices that are multiplied with x: a gated weight has two."""
    return 2 if site.op == "gated_linear" else 1
