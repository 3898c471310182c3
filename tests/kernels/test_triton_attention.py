"""What a decode step launches in Triton, compiled for cards that are not here: on-chip memory, spills, instructions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ambidex.hwprofiles.reader import load
from ambidex.ops import discovery
from ambidex.ops.contract import Launch
from ambidex.ops.types import Site
from hypothesis import given, settings
from hypothesis import strategies as st

triton = pytest.importorskip("triton", reason="triton is not installed")

from ambidex.kernels.triton import attention_launch, paged_attention, qkv_rope_store  # noqa: E402 - of no use without triton

TARGETS = {
    "nvidia-h200-sxm": ("cuda", 90, "mma"),
    "nvidia-b200": ("cuda", 100, "mma"),
    "amd-mi300x": ("hip", "gfx942", "v_mfma"),
    "amd-mi355x": ("hip", "gfx950", "v_mfma"),
}
KERNEL = discovery.kernels()["paged_attention_triton_invariant"]
INTEGERS = {"starts_ptr": "*i32", "lengths_ptr": "*i32", "tables_ptr": "*i32", "slots_ptr": "*i64"}
REALS = {"scale_log2": "fp32", "softcap_log2": "fp32", "eps": "fp32", "rotation_ptr": "*fp32"}
SPLITS = {"split_sums_ptr": "*fp32", "split_facts_ptr": "*fp32"}
VARYING = {"num_requests", "table_stride"}


def site(heads: int, groups: int, size: int, dtype: torch.dtype, **more: object) -> Site:
    dims = {"H": heads, "G": groups, "D": size, "window": 0, "scale": 1.0, "softcap": 0.0, "ancestors": False, **more}
    return Site("paged_attention", "kv", dims, {"x": dtype})


def launched(where: Site, profile_name: str) -> Launch:
    assert KERNEL.launch is not None
    return KERNEL.launch(where, load(profile_name), 1)


def compiled(device_function: Any, profile_name: str, constants: dict[str, Any], **options: int) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = device_function.made
    names = list(function.arg_names)
    known = {**INTEGERS, **REALS, **SPLITS, **dict.fromkeys(constants, "constexpr")}
    types = {name: known.get(name, "*bf16" if name.endswith("_ptr") else "i32") for name in names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name.endswith(("_ptr", "_stride")) and name not in VARYING
    }
    backend, arch, _ = TARGETS[profile_name]
    source = ASTSource(function, types, constexprs=constants, attrs=aligned)
    target = GPUTarget(backend, arch, load(profile_name).lane_width)
    return triton.compile(source, target=target, options={**options, "enable_fp_fusion": True})


def spilled_bytes(made: Any, tmp_path: Path) -> int:
    """What the compiler could not keep in registers: counted by AMD's, the stack that NVIDIA's asks for."""
    if "amdgcn" in made.asm:
        return sum(map(int, re.findall(r"\.vgpr_spill_count:\s+(\d+)", made.asm["amdgcn"])))
    program = tmp_path / "kernel.cubin"
    program.write_bytes(made.asm["cubin"])
    reader = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([reader, "--dump-resource-usage", program], capture_output=True, text=True, check=True)
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", usage.stdout)))


@pytest.mark.parametrize("profile_name", TARGETS)
def test_attention_fits_without_spills_and_multiplies_in_matrix_instructions(profile_name: str, tmp_path: Path) -> None:
    where = site(32, 8, 128, torch.bfloat16)
    launch = launched(where, profile_name)
    sizes = {"GROUP": 4, "D": 128, "BLOCK_D": 128, "PAGE_SIZE": 16, "WINDOW": 0, "CAPPED": False, "UPCAST": False}
    splitting = {"BLOCK_N": launch["decode_keys"], "MIN_SPLIT": 256, "MAX_SPLITS": launch["max_splits"]}
    made = [
        compiled(
            paged_attention._paged_attention_decode_kernel, profile_name, {**sizes, **splitting, "BLOCK_M": 16},
            num_warps=launch["decode_warps"], num_stages=launch["decode_stages"],
        ),
        compiled(
            paged_attention._paged_attention_combine_kernel, profile_name,
            {name: sizes[name] for name in ("D", "BLOCK_D", "WINDOW")} | splitting, num_warps=launch["decode_warps"],
        ),
    ]  # fmt: skip
    limit = load(profile_name).on_chip.shared_memory_per_block_kib
    assert limit is not None
    assert max(each.metadata.shared for each in made) <= attention_launch.on_chip_bytes(where, launch) <= limit * 1024
    assert [spilled_bytes(each, tmp_path) for each in made] == [0, 0]
    assert TARGETS[profile_name][2] in (made[0].asm.get("ptx") or made[0].asm["amdgcn"])


@pytest.mark.parametrize("profile_name", ["nvidia-h200-sxm", "amd-mi300x"])
def test_windows_soft_caps_and_odd_heads_compile(profile_name: str, tmp_path: Path) -> None:
    sizes = {"GROUP": 3, "D": 10, "BLOCK_D": 16, "PAGE_SIZE": 8, "WINDOW": 20, "CAPPED": True, "UPCAST": False}
    decode = {**sizes, "BLOCK_M": 16, "BLOCK_N": 64, "MIN_SPLIT": 256, "MAX_SPLITS": 8}
    made = compiled(paged_attention._paged_attention_decode_kernel, profile_name, decode, num_warps=4, num_stages=3)
    assert spilled_bytes(made, tmp_path) == 0


def test_an_inf_in_a_value_stays_alone() -> None:
    script = Path(__file__).with_name("interpreted_stores.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        cwd=script.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "alone\n", done.stderr


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("rows", [1, 1 << 20], ids=["few", "many"])
@pytest.mark.parametrize("profile_name", TARGETS)
def test_qkv_rope_store_compiles_without_spills(profile_name: str, rows: int, size: int, tmp_path: Path) -> None:
    dims = {"H": 32, "G": 8, "D": size, "R": size // 2, "norm": True}
    (kernel,) = qkv_rope_store.KERNELS
    assert kernel.launch is not None
    launch = kernel.launch(Site("qkv_rope_store", "", dims, {"x": torch.bfloat16}), load(profile_name), rows)
    assert launch["block_h"] == (8 if rows == 1 else 64)
    constants = {
        "NUM_HEADS": 32, "GROUPS": 8, "D": size, "R": size // 2, "BLOCK_H": launch["block_h"], "BLOCK_R": size // 2,
        "BLOCK_P": 1, "PAGE_SIZE": 16, "NORMED": True, "PDL": False,
    }  # fmt: skip
    made = compiled(qkv_rope_store._qkv_rope_store_kernel, profile_name, constants, num_warps=launch["num_warps"])
    assert spilled_bytes(made, tmp_path) == 0


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(TARGETS)),
    st.integers(1, 16),
    st.integers(1, 32),
    st.integers(1, 512),
    st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_a_launch_fits_the_profile_or_is_refused(
    profile_name: str, groups: int, group: int, size: int, dtype: torch.dtype
) -> None:
    where, profile = site(groups * group, groups, size, dtype), load(profile_name)
    assert KERNEL.refuses is not None
    assert profile.on_chip.shared_memory_per_block_kib is not None
    fits = attention_launch.on_chip_bytes(where, launched(where, profile_name)) <= (
        profile.on_chip.shared_memory_per_block_kib * 1024
    )
    reason = KERNEL.refuses(where, profile, 1)
    assert fits == (reason is None)
    assert reason is None or reason.code == "on_chip_bytes"
    assert fits or size > 128, "heads of common sizes are served on every card"


def test_one_launch_serves_every_bucket_and_trees_are_refused() -> None:
    profile = load("nvidia-h200-sxm")
    where, tree = site(32, 8, 64, torch.bfloat16), site(32, 8, 64, torch.bfloat16, ancestors=True)
    assert KERNEL.launch is not None
    assert KERNEL.refuses is not None
    assert len({tuple(KERNEL.launch(where, profile, rows).items()) for rows in (1, 8, 64, 512, 1 << 62)}) == 1
    reason = KERNEL.refuses(tree, profile, 1)
    assert reason is not None
    assert reason.code == "shape"
