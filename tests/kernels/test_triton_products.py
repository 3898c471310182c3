"""The products of few rows in Triton: launches that fit the shape, and their bits that the interpreter reaches only by
hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ambidex.cli import run
from ambidex.hwprofiles.reader import load
from ambidex.kernels.triton import product_launch
from ambidex.kernels.triton.product import product
from ambidex.ops import discovery
from ambidex.ops.binding import bind
from ambidex.ops.layouts import dense
from ambidex.ops.tracing import Recorder

pytest.importorskip("triton", reason="triton is not installed")

META = torch.device("meta")
SHAPES = (
    (512, 1024), (576, 1536), (768, 768), (768, 1536), (896, 896), (896, 4864), (1536, 8960), (2048, 2048), (4096, 512),
    (4096, 14336),
)  # fmt: skip
"""Outputs and inputs: models from 135 M parameters on."""


def test_early_blocks_and_loops_without_a_loop_when_interpreted() -> None:
    script = Path(__file__).with_name("interpreted_products.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("profile", ["nvidia-h100-sxm", "nvidia-h200-sxm", "nvidia-b200"])
def test_no_row_of_another_shape_brings_a_launch_that_does_not_fit_this_one(profile: str) -> None:
    """Tuned rows serve as near ones: with shares of K that are no whole blocks, sums would come out wrong."""
    recorder = Recorder(discovery.ops(), num_logits=-1)
    for number, (outputs, width) in enumerate(SHAPES):
        x = torch.empty((5, width), dtype=torch.bfloat16, device=META)
        weight, norm = (dense(f"{kind}{number}", torch.empty(size, dtype=torch.bfloat16, device=META))
                        for kind, size in (("w", (outputs, width)), ("n", (width,))))  # fmt: skip
        recorder.linear_add(x, weight, torch.empty((5, outputs), dtype=torch.bfloat16, device=META))
        recorder.norm_linear(x, norm, weight, eps=1e-5)
    early = 0
    for entry in bind(recorder.sites, load(profile)).sites:
        for choice in entry.choices:
            if choice.chosen.endswith("linear_triton") or choice.chosen == "linear_add_triton":
                width = entry.site.dim("K")
                assert not choice.launch.get("unrolled") or width <= 4 * choice.launch["block_k"]
                if choice.launch["early"]:
                    early += 1
                    assert product_launch.loads_early(width, choice.launch), (entry.site.name, choice)
    assert early > len(SHAPES)


def test_the_kernel_for_one_row_is_no_launch_of_one_for_any_number(capsys: pytest.CaptureFixture[str]) -> None:
    choice = "norm_linear@embed=norm_linear_triton_invariant{block_t=0}"
    assert run(["explain", "--profile", "nvidia-h200-sxm", "--kernel", choice]) == 9
    assert "block_t=0 is of the kernel for one row" in capsys.readouterr().err


def test_a_launch_that_does_not_fit_is_an_error_and_no_wrong_sum() -> None:
    weight = dense("w", torch.empty((64, 768), device=META))
    launch = {"block_n": 32, "block_k": 64, "num_warps": 4, "num_stages": 2, "pdl": False}
    with pytest.raises(AssertionError, match="loaded early"):
        product(torch.empty((8, 768), device=META), weight, block_t=8, splits=4, early=256, **launch)
    with pytest.raises(AssertionError, match="one row"):
        product(torch.empty((3, 768), device=META), weight, block_t=0, splits=1, early=0, **launch)
