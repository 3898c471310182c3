"""Triton's kernels in its interpreter, by the conformance suite, under the profiles of cards that are not here.

A process of its own: the interpreter is chosen when a kernel is decorated.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SUITE = Path(__file__).with_name("test_conformance.py")
PROFILES = {"nvidia-h200-sxm": "odd and float32"}
"""A quick part: `make check-kernels` tries every case in every dtype."""


def suite(profile: str, wanted: str, *more: str) -> str:
    command = [
        sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(SUITE), "--ambidex-profile", profile,
        "--ambidex-kernels", "*_triton*", "--ambidex-programs", "16", "-k", wanted, *more,
    ]  # fmt: skip
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=SUITE.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("profile", PROFILES)
def test_triton_kernels_conform_when_interpreted(profile: str) -> None:
    summary = suite(profile, PROFILES[profile]).splitlines()[-1]
    passed = re.match(r"(\d+) passed", summary)
    assert passed, summary
    assert int(passed.group(1)) >= 6
    assert "skipped" not in summary


def test_a_profile_without_triton_skips_them_with_the_reason() -> None:
    out = suite("cpu-amx", "odd")
    assert "not supported: language_missing: is written in triton; cpu-amx runs torch, cpu" in out
    assert "passed" not in out.splitlines()[-1]


WITH_SHARES = """
import torch
from ambidex.bench.trials import Place, compare, expected, trials
from ambidex.hwprofiles.reader import load

place = Place(load("nvidia-h200-sxm"), torch.device("cpu"), {})
found = trials("paged_attention_triton_invariant")
trial = next(each for each in found if each.case.name == "long" and each.dtype == torch.float32)
(wanted,) = expected("paged_attention", "long", trial.dtype, False)
launch = dict(trial.kernel.launch(trial.site, place.profile, 1))
shared = []
for programs in (1, 4, 1 << 20):
    args, params = next(trial.packings(place))
    shared.append(trial.kernel.run(*args, **params, **{**launch, "decode_programs": programs}))
    compare(f"{programs} programs", shared[-1], wanted, trial.op.tolerance[trial.dtype])
assert all(torch.equal(y, shared[0]) for y in shared), "who computes a split must not change its bits"
print("alike")
"""


def test_how_many_programs_share_a_requests_keys_does_not_change_its_bits() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITH_SHARES]
    done = subprocess.run(command, env=environment, cwd=SUITE.parents[2], capture_output=True, text=True, check=False)
    assert done.stdout == "alike\n", done.stderr


SHARES = """
import torch
from ambidex.bench.trials import Place, compare, expected, trials
from ambidex.hwprofiles.reader import load

place = Place(load("nvidia-h200-sxm"), torch.device("cpu"), {})
for trial in trials("paged_attention_triton"):
    if trial.dtype == torch.float32 and trial.case.name in ("llama-3.1-8b-decode", "long"):
        (wanted,) = expected("paged_attention", trial.case.name, trial.dtype, False)
        launch = dict(trial.kernel.launch(trial.site, place.profile, 1))
        for programs in (1, 2, 3, 5, 11, 16):  # shares that end with the heads, and shares that do not
            args, params = next(trial.packings(place))
            y = trial.kernel.run(*args, **params, **{**launch, "keys": 16, "programs": programs})
            compare(f"{trial} by {programs} programs", y, wanted, trial.op.tolerance[trial.dtype])
print("alike")
"""


def test_shares_of_any_number_of_programs_cover_every_key_once() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SHARES]
    done = subprocess.run(command, env=environment, cwd=SUITE.parents[2], capture_output=True, text=True, check=False)
    assert done.stdout == "alike\n", done.stderr
