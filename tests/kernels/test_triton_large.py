"""The products of a prefill and its attention in Triton, compiled for cards that are not here, and interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product as every
from pathlib import Path

import pytest
import torch
from ambidex.hwprofiles.reader import load
from ambidex.ops.contract import Launch
from ambidex.ops.layouts import dense
from ambidex.ops.types import Site
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed")

from ambidex.kernels.triton import large_launch, prefill_launch
from ambidex.kernels.triton.ahead import Compiled, Target, collecting
from ambidex.kernels.triton.large_product import large_product
from ambidex.kernels.triton.paged_prefill import prefill

MATRIX = {
    "nvidia-h200-sxm": "wgmma f32.bf16.bf16",
    "nvidia-b200": "tcgen05.mma f16",
    "amd-mi300x": "v_mfma f32 bf16",
    "amd-mi355x": "v_mfma f32 bf16",
}
SIZES = {"linear": (6144, 4096), "linear_add": (4096, 14336), "gated_linear": (28672, 4096)}
MANY = 1 << 20
BUCKETS = (64, 128, 256, 512, 768, MANY)


def site(op: str, num_outputs: int, width: int, dtype: torch.dtype) -> Site:
    return Site(op, "w", {"N": num_outputs, "K": width}, dict.fromkeys(("x", "weight", "y"), dtype))


def compiled(where: Site, profile_name: str, launch: Launch, biased: bool) -> tuple[Compiled, int]:
    """One product's machine code with the op's epilogue, and the bytes on chip that its launch counts with."""
    profile, dtype, gated = load(profile_name), where.dtypes["x"], where.op == "gated_linear"
    x, values, bias = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape in ((300, where.dim("K")), (where.dim("N"), where.dim("K")), (where.dim("N"),))
    )
    residual = torch.empty(300, where.dim("N"), dtype=dtype, device="meta") if where.op == "linear_add" else None
    with collecting(Target.of(profile)) as found:
        large_product(
            x, dense("w", values), None, dense("b", bias) if biased else None, residual, gated=gated, **launch
        )
    (entry,) = found.values()
    return entry, large_launch.on_chip_bytes(where, profile, launch)


@pytest.mark.parametrize(("op", "dtype"), [*every(SIZES, (torch.bfloat16, torch.float32))], ids=str)
@pytest.mark.parametrize("profile_name", MATRIX)
def test_a_large_product_fits_without_spills_and_multiplies_in_matrix_instructions(
    profile_name: str, op: str, dtype: torch.dtype
) -> None:
    limit = load(profile_name).on_chip.shared_memory_per_block_kib
    assert limit is not None
    where, profile = site(op, *SIZES[op], dtype), load(profile_name)
    defaults = [large_launch.launch(where, profile, rows) for rows in BUCKETS]
    for launch in (each for number, each in enumerate(defaults) if each not in defaults[:number]):
        entry, counted = compiled(where, profile_name, launch, biased=launch == defaults[-1])
        found = entry.machine_code
        assert (found.spilled, found.scratch_bytes) == (0, 0)
        assert found.shared_bytes <= counted <= limit * 1024
        if dtype == torch.bfloat16:
            assert found.matrix == (MATRIX[profile_name],)
        else:
            assert all("f32 f32" in name for name in found.matrix), "float32 asked for float32"


@pytest.mark.parametrize("rows", BUCKETS)
@pytest.mark.parametrize(("op", "profile_name"), [*every(SIZES, MATRIX)])
def test_some_hundred_rows_give_most_units_work(op: str, profile_name: str, rows: int) -> None:
    profile, where = load(profile_name), site(op, *SIZES[op], torch.bfloat16)
    launch, units = large_launch.launch(where, profile, rows), profile.compute.units or 0
    outputs = where.dim("N") // (2 if op == "gated_linear" else 1)
    tiles = -(-rows // launch["block_t"]) * -(-outputs // launch["block_n"])
    shares = large_launch.shares_of(tiles, launch["programs"], where.dim("K"), launch["shares"])
    assert 0.5 * units <= tiles * shares


@given(st.integers(0, 5000), st.integers(1, 400), st.integers(1, 60_000), st.integers(1, 8))
def test_a_last_round_falls_into_the_shares_that_end_it_soonest(
    tiles: int, programs: int, width: int, most: int
) -> None:
    def end(shares: int) -> int:
        """Of the program that is through last: pieces one after another, each with the sums of its tile's shares."""
        pieces = [0] * programs
        for piece in range(tiles % programs * shares):
            pieces[piece % programs] += -(-width // shares) + (512 * shares if shares > 1 else 0)
        return max(pieces)

    shares = large_launch.shares_of(tiles, programs, width, most)
    assert 1 <= shares <= most
    assert shares == 1 or tiles % programs * shares <= 2 * programs, "the sums of more would not fit their memory"
    bounded = (each for each in range(1, most + 1) if tiles % programs * each <= 2 * programs)
    assert end(shares) <= min(map(end, bounded), default=end(1))


@pytest.mark.parametrize(
    ("tiles", "width", "shares"),
    [
        (3 * 132, 14336, 1),  # none is left over
        (132 + 120, 14336, 1),  # a round that is nearly full
        (132 + 60, 14336, 2),
        (132 + 28, 14336, 4),
        (132 + 28, 2048, 1),  # too short for the sums to be handed over
        (32, 14336, 4),  # the only round
        (80, 8192, 1),  # 160 halves, or 240 thirds, take two rounds, too
    ],
)
def test_into_how_many_shares_a_round_falls(tiles: int, width: int, shares: int) -> None:
    assert large_launch.shares_of(tiles, 132, width, 8) == shares


@pytest.mark.parametrize(
    ("rows", "tile"),
    [
        (64, (64, 64)),
        (128, (128, 64)),
        (640, (128, 128)),  # a round of 132 tiles and 28 in quarters; of 128 x 256 a round of 80 takes longer
        (1024, (128, 256)),  # a round of 128 tiles
        (MANY, (128, 256)),
    ],
)
def test_the_default_tile_is_through_soonest(rows: int, tile: tuple[int, int]) -> None:
    launch = large_launch.launch(site("linear_add", 4096, 14336, torch.bfloat16), load("nvidia-h200-sxm"), rows)
    assert (launch["block_t"], launch["block_n"]) == tile


def test_short_k_has_no_shares() -> None:
    profile = load("nvidia-h200-sxm")
    assert large_launch.launch(site("linear", 64, 2048, torch.bfloat16), profile, MANY)["shares"] == 1
    assert large_launch.launch(site("linear", 64, 2049, torch.bfloat16), profile, MANY)["shares"] == 8


@pytest.mark.parametrize("width", [16, 896, 1023, 1024, 2048])
@pytest.mark.parametrize(("op", "profile_name"), [*every(SIZES, MATRIX)])
def test_any_width_has_launches_that_fit(op: str, profile_name: str, width: int) -> None:
    profile, where = load(profile_name), site(op, 28672, width, torch.bfloat16)
    for rows in BUCKETS:
        found = [*large_launch.configurations(where, profile, rows)]
        assert found
        assert all(large_launch.fits(where, profile, each) is None for each in found)


def test_low_tiles_are_for_what_is_copied_whole_to_wgmma() -> None:
    profile, where = load("nvidia-h200-sxm"), site("linear", 6144, 4096, torch.bfloat16)
    low = large_launch.launch(where, profile, 64)
    assert (low["block_t"], low["described"]) == (64, True)
    for name, other in (("nvidia-b200", where), ("nvidia-h200-sxm", site("linear", 6144, 4095, torch.bfloat16))):
        reason = large_launch.fits(other, load(name), low)
        assert reason is not None
        assert reason.code == "shape"
        assert large_launch.launch(other, load(name), 64)["block_t"] == 128


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"shares": 0}, "takes shares from 1 on, not 0"),
        ({"programs": -1}, "takes programs from 1 on, not -1"),
        ({"block_t": 48}, "takes a power of two for block_t, not 48"),
        ({"num_warps": 3}, "takes a power of two for num_warps, not 3"),
        ({"shares": 9}, "up to 8 shares of K"),
        ({"programs": 1 << 17}, "up to 65,536 programs where K falls into shares"),
        ({"parts": 3}, "takes 1 or 2 parts"),
    ],
)
def test_a_launch_that_no_grid_and_no_compiler_takes_is_refused(asked: Launch, text: str) -> None:
    profile, where = load("nvidia-h200-sxm"), site("linear", 4096, 4096, torch.bfloat16)
    launch = large_launch.launch(where, profile, 128)
    assert large_launch.fits(where, profile, launch) is None
    reason = large_launch.fits(where, profile, {**launch, **asked})
    assert reason is not None
    assert (reason.code, text in reason.text) == ("launch", True), reason


def test_two_programs_of_a_unit_fit_beside_one_another() -> None:
    profile, where = load("nvidia-h200-sxm"), site("gated_linear", 28672, 4096, torch.bfloat16)
    limit, units = profile.on_chip.shared_memory_per_block_kib, profile.compute.units
    assert limit is not None
    assert units is not None
    for launch in large_launch.configurations(where, profile, 128):
        needed = large_launch.on_chip_bytes(where, profile, launch)
        assert needed * launch["programs"] // units <= limit * 1024


@pytest.mark.parametrize(("op", "profile_name"), [*every(SIZES, MATRIX)])
def test_launches_worth_timing_fit_and_differ(op: str, profile_name: str) -> None:
    profile, where = load(profile_name), site(op, *SIZES[op], torch.bfloat16)
    launches = list(large_launch.configurations(where, profile, MANY))
    assert launches[0] == large_launch.launch(where, profile, MANY)
    assert all(large_launch.fits(where, profile, launch) is None for launch in launches)
    assert len({tuple(launch.items()) for launch in launches}) == len(launches) > 1
    assert len({frozenset(launch) for launch in launches}) == 1, "all have the parameters of the default"


def test_rows_of_y_are_described_by_their_own_size() -> None:
    """Rows of twelve outputs: 48 bytes in float32, 24 in bfloat16."""
    dtypes = {"x": torch.float32, "weight": torch.float32, "y": torch.bfloat16}
    found = {
        dtype: large_launch.launch(
            Site("linear", "w", {"N": 12, "K": 64}, {**dtypes, "y": dtype}), load("nvidia-h200-sxm"), MANY
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert [each["described"] for each in found.values()] == [True, False]


def test_rows_that_no_descriptor_describes_go_by_pointers() -> None:
    profile = load("nvidia-h200-sxm")
    described = {
        sizes: large_launch.launch(site("linear", *sizes, torch.bfloat16), profile, MANY)["described"]
        for sizes in ((6144, 4096), (6144, 4095), (6143, 4096))
    }
    assert list(described.values()) == [True, False, False]


def test_a_weight_of_another_dtype_and_a_norm_too_wide_are_refused() -> None:
    profile, mixed = load("amd-mi300x"), {"x": torch.float16, "weight": torch.bfloat16, "y": torch.float16}
    reason = large_launch.refuses(Site("linear", "w", {"N": 64, "K": 64}, mixed), profile, MANY)
    assert reason is not None
    assert reason.code == "dtype"
    reason = large_launch.refuses(site("norm_linear", 64, 1 << 17, torch.float16), profile, MANY)
    assert reason is not None
    assert reason.code == "shape"


def heads(window: int, softcap: float, dtype: torch.dtype) -> Site:
    dims = {"H": 32, "G": 8, "D": 128, "window": window, "scale": 0.1, "softcap": softcap, "ancestors": False}
    return Site("paged_attention", "kv", dims, {"x": dtype})


def attention(where: Site, profile_name: str, page_size: int, launch: Launch) -> Compiled:
    profile, dtype = load(profile_name), where.dtypes["x"]
    window, softcap = where.dim("window"), bool(where.dims["softcap"])
    q, y, plane = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape in ((2048, 32, 128), (2048, 32, 128), (512, 8, page_size, 128))
    )
    starts, lengths, tables = (torch.empty(shape, dtype=torch.int32, device="meta") for shape in ((9,), (8,), (8, 64)))
    pages = plane.permute(0, 2, 1, 3)
    sizes = {
        "GROUP": 4, "D": 128, "BLOCK_D": 128, "PAGE_SIZE": page_size, "WINDOW": window, "CAPPED": softcap,
        "UPCAST": False,
    }  # fmt: skip
    strides = (tables.stride(0), *q.stride()[:2], *pages.stride()[:3], y.stride(0))
    tensors = (q, pages, pages, starts, lengths, tables, y)
    with collecting(Target.of(profile)) as found:
        prefill(tensors, 8, 8, strides, (0.1, 30.0 if softcap else 0.0), sizes, **launch)
    (entry,) = found.values()
    return entry


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (100, 30.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("profile_name", MATRIX)
def test_prefill_fits_without_spills_and_multiplies_in_matrix_instructions(
    profile_name: str, dtype: torch.dtype, window: int, softcap: float
) -> None:
    profile, where = load(profile_name), heads(window, softcap, dtype)
    limit = profile.on_chip.shared_memory_per_block_kib
    assert limit is not None
    launch = prefill_launch.launch(where, profile, MANY)
    assert launch == prefill_launch.invariant_launch(where, profile, 1)
    for page_size in (128, 16):
        found = attention(where, profile_name, page_size, launch).machine_code
        assert (found.spilled, found.scratch_bytes) == (0, 0)
        if dtype == torch.bfloat16:
            assert found.matrix == (MATRIX[profile_name],)
        assert found.shared_bytes <= prefill_launch.on_chip_bytes(where, launch) <= limit * 1024


@pytest.mark.parametrize("profile_name", MATRIX)
def test_few_tokens_pack_the_heads_of_a_group(profile_name: str) -> None:
    profile, where = load(profile_name), heads(0, 0.0, torch.bfloat16)
    packed = {rows: prefill_launch.launch(where, profile, rows)["packed"] for rows in (8, 64, 512, MANY)}
    assert packed == {8: True, 64: True, 512: False, MANY: False}


def test_both_mean_what_the_references_say_when_interpreted() -> None:
    script = Path(__file__).with_name("interpreted_large.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "alike"
