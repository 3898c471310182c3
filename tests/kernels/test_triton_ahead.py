"""What is compiled ahead in one process is what the JIT finds in another: the same entries of Triton's cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ambidex.hwprofiles.reader import load
from ambidex.kernels.triton.ahead import NotCompiled, Target

pytest.importorskip("triton", reason="triton is not installed")

PROFILES = ("nvidia-h200-sxm", "nvidia-b200", "amd-mi300x", "amd-mi355x")
LAUNCHES = """
import json, sys
import torch
from ambidex.bench.operands import on_device, packed
from ambidex.bench.trials import trials
from ambidex.hwprofiles.reader import load
from ambidex.kernels.triton import language
from ambidex.kernels.triton.ahead import Target, collecting

device, forbidden, *profiles = sys.argv[1:]
if forbidden == "forbid":
    language.forbid_compiling()
trial = next(each for each in trials("qkv_rope_store_triton") if each.dtype == torch.bfloat16)
keys = {}
for profile in map(load, profiles):
    args, params = on_device(packed(trial.operands, trial.kernel.layout, trial.kernel.page_layouts[0]), device)
    with collecting(Target.of(profile)) as found:
        trial.kernel.run(*args, **params, **trial.kernel.launch(trial.site, profile, 1))
    keys[profile.name] = [(entry.key, entry.name, entry.was_cached, entry.types["eps"]) for entry in found.values()]
print(json.dumps(keys))
"""


def launched(cache: Path, device: str, forbidden: str, *profiles: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCHES, device, forbidden, *profiles]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def keys(done: subprocess.CompletedProcess[str]) -> dict[str, list[list[Any]]]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[list[Any]]]]:
    cache = tmp_path_factory.mktemp("cache")
    return cache, keys(launched(cache, "meta", "allow", *PROFILES))


def test_another_process_finds_what_was_built_and_compiles_nothing(built: tuple[Path, dict[str, Any]]) -> None:
    cache, first = built
    files = {path for path in cache.rglob("*") if path.is_file()}
    again = keys(launched(cache, "cpu", "forbid", *PROFILES))  # real memory, as the JIT sees it
    assert {path for path in cache.rglob("*") if path.is_file()} == files
    for profile in PROFILES:
        assert [entry[0] for entry in first[profile]] == [entry[0] for entry in again[profile]]
        assert [entry[2] for entry in first[profile]] == [False]
        assert [entry[2] for entry in again[profile]] == [True]
    assert len({entry[0] for found in first.values() for entry in found}) == len(PROFILES), "a target is part of a key"


def test_what_was_not_built_is_refused_by_name_and_signature(tmp_path: Path) -> None:
    done = launched(tmp_path, "meta", "forbid", "nvidia-h200-sxm")
    line = done.stderr.strip().splitlines()[-1]
    assert "CompilationForbidden: jit is forbid and _qkv_rope_store_kernel is not compiled in" in line
    assert "num_warps=2" in line, "the options"
    assert "qkv_ptr: *bf16" in line, "the signature"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing was written"


def test_a_target_follows_the_profiles_architecture() -> None:
    assert Target.of(load("nvidia-b200")) == Target("cuda", 100, 32)
    assert Target.of(load("amd-mi355x")) == Target("hip", "gfx950", 64)
    with pytest.raises(NotCompiled, match="cpu-amx is x86-amx: Triton compiles for"):
        Target.of(load("cpu-amx"))
