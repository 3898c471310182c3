"""Triton's kernels compiled for cards that are not here: what a launch declares of on-chip memory is what it takes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from ambidex.hwprofiles.reader import load
from ambidex.ops import discovery
from ambidex.ops.types import Site

triton = pytest.importorskip("triton", reason="triton is not installed")

TARGETS = {
    "nvidia-h200-sxm": ("cuda", 90, "wgmma"),
    "nvidia-b200": ("cuda", 100, "tcgen05.mma"),
    "amd-mi300x": ("hip", "gfx942", "v_mfma"),
    "amd-mi355x": ("hip", "gfx950", "v_mfma"),
}
MANY = 1 << 20


def site(dtype: torch.dtype) -> Site:
    return Site("norm_linear", "w", {"N": 6144, "K": 4096}, {"x": dtype, "weight": dtype, "y": dtype})


def compiled(profile_name: str, launch: dict[str, Any], dtype: str) -> Any:
    from ambidex.kernels.triton.norm_linear import _norm_linear_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = _norm_linear_kernel.made
    backend, arch, _ = TARGETS[profile_name]
    tiles = {"BLOCK_T": launch["block_t"], "BLOCK_N": launch["block_n"], "BLOCK_K": launch["block_k"]}
    constants = {**tiles, "HAS_BIAS": True, "UPCAST": False}
    names = list(function.arg_names)
    types = {name: f"*{dtype}" if name.endswith("_ptr") else "fp32" if name == "eps" else "i32" for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith(("_ptr", "_stride", "width"))
    }
    source = ASTSource(
        function, {**types, **dict.fromkeys(constants, "constexpr")}, constexprs=constants, attrs=aligned
    )
    options = {"num_warps": launch["num_warps"], "num_stages": launch["num_stages"], "enable_fp_fusion": True}
    lanes = load(profile_name).lane_width
    return triton.compile(source, target=GPUTarget(backend, arch, lanes), options=options)


@pytest.mark.parametrize("rows", [1, MANY])
@pytest.mark.parametrize("profile_name", TARGETS)
def test_a_launch_fits_and_multiplies_in_matrix_instructions(profile_name: str, rows: int) -> None:
    profile, kernel = load(profile_name), discovery.kernels()["norm_linear_triton"]
    assert kernel.launch is not None
    assert kernel.on_chip_bytes is not None
    launch = dict(kernel.launch(site(torch.bfloat16), profile, rows))
    limit = profile.on_chip.shared_memory_per_block_kib
    assert limit is not None
    made = compiled(profile_name, launch, "bf16")
    assert made.metadata.shared <= kernel.on_chip_bytes(launch) <= limit * 1024
    text = made.asm.get("ptx") or made.asm["amdgcn"]
    assert (TARGETS[profile_name][2] if rows == MANY else "m") in text
    assert "spill_count: 0" in text.replace(" " * 4, " ") or "amdgcn" not in made.asm


@pytest.mark.parametrize("profile_name", TARGETS)
def test_the_invariant_kernel_launches_alike_in_every_bucket(profile_name: str) -> None:
    launch = discovery.kernels()["norm_linear_triton_invariant"].launch
    assert launch is not None
    assert (
        len({tuple(launch(site(torch.bfloat16), load(profile_name), rows).items()) for rows in (1, 8, 64, MANY)}) == 1
    )


def test_tiles_follow_the_profiles_numbers() -> None:
    launch = discovery.kernels()["norm_linear_triton"].launch
    assert launch is not None
    h200, mi300x = (launch(site(torch.bfloat16), load(name), MANY) for name in ("nvidia-h200-sxm", "amd-mi300x"))
    assert h200["num_stages"] > mi300x["num_stages"], "64 KiB hold fewer stages than 227"
    assert h200["num_warps"] == 2 * mi300x["num_warps"], "a wave has 64 lanes, a warp 32"
    assert launch(site(torch.float32), load("amd-mi300x"), MANY)["block_k"] * 2 == mi300x["block_k"]


def test_listing_kernels_does_not_load_triton() -> None:
    code = "import sys; from ambidex.ops import discovery; discovery.kernels(); print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
