"""What is built ahead for an engine is all that it launches; and an engine that may compile nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ambidex.hwprofiles.reader import load
from ambidex.runtime.ahead import representatives
from ambidex.runtime.errors import ConfigError
from ambidex.runtime.options import Options
from ambidex.runtime.start import decide_for

PROFILES = ("nvidia-h200-sxm", "amd-mi300x")
OTHER_STEPS = """
import random, sys
from contextlib import ExitStack
from ambidex.hwprofiles.reader import load
from ambidex.ops import discovery
from ambidex.runtime.ahead import Rehearsed, step_of
from ambidex.runtime.options import Options
from ambidex.runtime.start import decide_for

discovery.forbid_compiling()
draw, num_launches = random.Random(0), 0
for name in sys.argv[1:]:
    decided = decide_for(Options(), load(name))
    languages = discovery.compiled_languages()
    with ExitStack() as stack:
        found = [stack.enter_context(l.collecting(l.Target.of(decided.profile))) for l in languages.values()]
        engine = Rehearsed(decided, languages)
        engine.capture(decided.ledger.needs.prompt_sizes.tokens)
        for count in range(1, 65):
            flags = {flag: draw.random() < 0.5 for flag in ("random", "filtered", "penalized")}
            engine.step(step_of([1] * count, draw.randrange(1000), **flags))
        for _ in range(100):
            counts = [draw.randrange(1, 200) for _ in range(draw.randrange(1, 10))]
            engine.step(step_of(counts, draw.randrange(800)))
    num_launches += sum(map(len, found))
print(num_launches)
"""


def ambidex(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("triton", reason="triton is not installed")
    cache = tmp_path_factory.mktemp("cache")
    for profile in PROFILES:
        done = ambidex(
            "-m", "ambidex", "build-kernels", "--profile", profile, "--out", str(cache), cache=Path("unused")
        )
        assert done.returncode == 0, done.stderr
        assert re.search(rf"^{profile}: [1-9]\d* kernels compiled", done.stdout, re.MULTILINE)
    return cache


def test_steps_and_graphs_of_other_sizes_launch_nothing_that_was_not_built(built: Path) -> None:
    done = ambidex("-c", OTHER_STEPS, *PROFILES, cache=built)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_building_again_finds_everything(built: Path) -> None:
    done = ambidex("-m", "ambidex", "build-kernels", "--profile", PROFILES[0], "--json", cache=built)
    record = json.loads(done.stdout)
    assert record["compiled"] == 0
    assert len(record["kernels"]) >= 5
    assert all(kernel["was_cached"] and kernel["registers"] > 0 for kernel in record["kernels"])
    assert all(kernel["spilled"] == kernel["scratch_bytes"] == 0 for kernel in record["kernels"])


def test_a_profile_that_is_not_decided_elsewhere_is_one_line(tmp_path: Path) -> None:
    done = ambidex("-m", "ambidex", "build-kernels", "--profile", "cpu-amx", cache=tmp_path)
    assert done.returncode == 11
    assert done.stderr.count("\n") == 1
    assert "cpu-amx has its host's memory" in done.stderr


def test_an_engine_that_compiles_nothing_starts_without_triton() -> None:
    code = (
        "import sys; from ambidex import LLM, SamplingParams; llm = LLM(device='cpu', jit='forbid', progress=False);"
        "llm.generate('a', SamplingParams(max_tokens=2)); print('triton' in sys.modules, *llm.engine.phase_seconds)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [
        "False", "probe", "read", "config", "trace", "bind", "kernels", "load", "weights", "capture", "graphs",
    ], done.stderr  # fmt: skip


def test_jit_is_one_of_its_words() -> None:
    with pytest.raises(ConfigError, match="jit is 'never': it is one of allow, forbid"):
        Options(jit="never")


def test_a_device_elsewhere_is_decided_by_its_profile() -> None:
    decided = decide_for(Options(max_num_seqs=8), load("amd-mi300x"))
    assert decided.backend.name == "rocm"
    assert decided.ledger.needs.graph_sizes == (1, 2, 4, 8)
    assert decided.ledger.budget.num_bytes > 150 * 2**30


def test_every_bucket_has_its_representatives() -> None:
    assert representatives((1, 8, 64), 40) == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 32, 40]
    assert representatives((1, 8), 1) == [1]
