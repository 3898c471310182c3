"""What lets the last of several programs read what the others stored: on AMD every wave waits for its own stores."""

from __future__ import annotations

import re

import pytest
import torch
from ambidex.bench.operands import packed
from ambidex.bench.trials import Trial
from ambidex.hwprofiles.reader import load
from ambidex.ops import discovery
from ambidex.ops.contract import Case, Launch

pytest.importorskip("triton", reason="triton is not installed")

from ambidex.kernels.triton.ahead import Target, collecting

STORE, WAIT, BARRIER = r"\t(buffer|global)_store_", r"s_waitcnt vmcnt\(0\)", r"\ts_barrier"
WIDE = {"T": 100, "N": 6144, "K": 8192}
CALLS: dict[str, tuple[Case | None, Launch]] = {
    "linear_triton_large": (Case("wide", WIDE, {}), {}),
    "linear_triton": (Case("wide", {**WIDE, "T": 16}, {}), {"splits": 4}),
    "paged_attention_triton": (None, {}),
    "sample_triton": (None, {}),
}
"""Each kernel whose programs count; a case that shares something, or the op's first, and what its launch is to have."""


def text(kernel_name: str, profile_name: str) -> str:
    """The machine code of the kernel's functions in which programs count."""
    kernel, profile = discovery.kernels()[kernel_name], load(profile_name)
    op, (case, asked) = discovery.ops()[kernel.op], CALLS[kernel_name]
    dtype = torch.bfloat16 if torch.bfloat16 in op.tolerance else torch.float32
    trial = Trial(op, kernel, case or op.cases[0], dtype, full=True, device=torch.device("meta"))
    args, params = packed(trial.operands, kernel.layout, kernel.page_layouts[0])
    assert kernel.launch is not None
    launch = {**kernel.launch(trial.site, profile, trial.num_rows), **asked}
    with collecting(Target.of(profile)) as found:
        kernel.run(*args, **params, **launch)
    return "\n".join(each.code.asm["amdgcn"] for each in found.values() if "_atomic_add" in each.code.asm["amdgcn"])


@pytest.mark.parametrize("profile_name", ["amd-mi300x", "amd-mi355x"])
@pytest.mark.parametrize("kernel_name", CALLS)
def test_every_wave_waits_for_its_stores_before_one_counts(kernel_name: str, profile_name: str) -> None:
    lines = text(kernel_name, profile_name).splitlines()
    counting = [number for number, line in enumerate(lines) if re.search(r"\tglobal_atomic_add v", line)]
    assert counting
    for number in counting:
        store = max(place for place in range(number) if re.match(STORE, lines[place]))
        barrier = min(place for place in range(store, number) if re.match(BARRIER, lines[place]))
        assert any(re.search(WAIT, line) for line in lines[store:barrier])
