"""Triton's kernels for cards that are not here: launches fit the profiles, and a few are compiled.

All of them are compiled, for every target, by `make check-kernels` (bench/machine_code.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ambidex.bench.machine_code import TARGETS
from ambidex.bench.trials import POLICY, Trial, trials
from ambidex.hwprofiles.reader import load
from ambidex.hwprofiles.schema import Profile
from ambidex.ops.support import UNBOUNDED, refusal

pytest.importorskip("triton", reason="triton is not installed")

META = torch.device("meta")
COMPILED = """
import sys
from dataclasses import replace
import torch
from ambidex.bench.operands import packed
from ambidex.bench.trials import trials
from ambidex.hwprofiles.reader import load
from ambidex.kernels.triton.ahead import Target, collecting

profile = load(sys.argv[1])
for name in ("silu_and_mul", "qkv_rope_store"):
    trial = next(each for each in trials(f"{name}_triton", full=True) if each.dtype == torch.bfloat16)
    trial = replace(trial, device=torch.device("meta"))
    with collecting(Target.of(profile)) as found:
        args, params = packed(trial.operands, trial.kernel.layout, trial.kernel.page_layouts[0])
        trial.kernel.run(*args, **params, **trial.kernel.launch(trial.site, profile, 1))
    for entry in found.values():
        code = entry.machine_code
        print(entry.name, code.registers, code.spilled + code.scratch_bytes, max(code.loads, default=0))
"""


def served(profile: Profile) -> list[tuple[Trial, int]]:
    """Every Triton kernel on every case and bucket that it takes there."""
    found = [replace(trial, device=META) for trial in trials(full=True) if trial.kernel.language == "triton"]
    tried = [(trial, bucket) for trial in found for bucket in (*POLICY.buckets, UNBOUNDED)]
    return [(trial, at) for trial, at in tried if refusal(trial.kernel, trial.site, at, profile, POLICY, {}) is None]


@pytest.mark.parametrize("target", TARGETS)
def test_launches_fit_the_profile_and_its_lanes(target: str) -> None:
    profile = load(TARGETS[target])
    limit = profile.on_chip.shared_memory_per_block_kib
    assert limit is not None
    found = served(profile)
    assert len({trial.kernel.op for trial, _ in found}) >= 8
    for trial, bucket in found:
        launch = trial.kernel.launch(trial.site, profile, bucket) if trial.kernel.launch else {}
        if trial.kernel.on_chip_bytes is not None:
            assert trial.kernel.on_chip_bytes(launch) <= limit * 1024, f"{trial}: {launch}"
        warps = [value for name, value in launch.items() if name.endswith("warps")]
        assert all(1 <= number <= 1024 // profile.lane_width for number in warps), f"{trial}: {launch}"


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_some_kernels_compile_without_spills_by_wide_accesses(target: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMPILED, TARGETS[target]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 2
    for _, registers, spilled, widest in lines:
        assert 0 < int(registers) <= 255
        assert (int(spilled), int(widest)) == (0, 16)


def test_listing_kernels_does_not_load_triton() -> None:
    code = "import sys; from ambidex.ops import discovery; discovery.kernels(); print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
