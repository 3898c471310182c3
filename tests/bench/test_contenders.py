"""Contenders: the protocol of their processes, their environments, and that each computes the model that we do."""

import io
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ambidex import LLM, SamplingParams
from ambidex.bench.contender import MISSING_PACKAGE, converted, load_peer, peak_bytes, serve
from ambidex.bench.contenders import ContenderFailed, Peer, Process, ambidex, peer_names, products, prompt_ids, together
from ambidex.bench.latency import Case
from ambidex.bench.limits import Found
from ambidex.bench.shapes import SHAPES, write_checkpoint
from ambidex.ops.discovery import missing_languages

OPTIONS = {"device": "cpu", "max_model_len": 64, "max_num_seqs": 3, "kv_cache_tokens": 384, "prefix_caching": False}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(SHAPES["tiny"], folder)
    return folder


def test_there_are_these_peers() -> None:
    assert peer_names() == ["llama.cpp", "openvino", "transformers"]


@pytest.mark.parametrize("name", peer_names())
def test_a_peer_and_its_process_need_nothing_of_ours(name: str, tmp_path: Path) -> None:
    """In an environment that has only the standard library it says what to install."""
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare/bin/python"
    with pytest.raises(ContenderFailed, match=rf"{name} is not installed; .*bare/bin/python -m pip install") as caught:
        Peer.parse(f"{name}={python}").check()
    assert caught.value.exit_code == MISSING_PACKAGE


@pytest.mark.parametrize("text", ["vllm", "openvino=/nowhere/python", "openvino=", "=x"])
def test_a_contender_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not (known|an interpreter)"):
        Peer.parse(text)


@pytest.mark.parametrize("name", peer_names())
def test_a_peer_computes_our_model(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unequal prompts and outputs, more of them than run at once: the first tokens are ours, and all come.

    AMBIDEX_TEST_PEERS="openvino=/env/bin/python …" names the environments of peers that this one lacks.
    """
    named = dict(each.split("=", 1) for each in os.environ.get("AMBIDEX_TEST_PEERS", "").split())
    peer = Peer(name, named.get(name, sys.executable))
    try:
        peer.check()
    except ContenderFailed as failed:
        pytest.skip(str(failed))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prompts, output_lens = prompt_ids([9, 30, 17, 5], 512, seed=1), [4, 1, 6, 3]
    dtype = "float32" if name == "transformers" else "auto"  # the converted ones run as the checkpoint is
    options = {**OPTIONS, "model": str(tiny), "dtype": dtype, "roofline_steps": {}}
    with together(options, (peer,), input_len=30) as side_by_side:
        ours, theirs = (
            process.ask("generate", prompts=prompts, output_lens=output_lens) for process in side_by_side.contenders
        )
    assert theirs["ids"] == ours["ids"]
    for answer in (ours, theirs):
        assert 0 < answer["first_s"] <= answer["total_s"]


def test_what_a_process_prints_does_not_break_its_answers() -> None:
    code = (
        "import sys; sys.argv = ['x', 'transformers', 'missing']; from ambidex.bench import contender as c\n"
        "c.run(lambda answers: (print('noise'), c._say(answers, {'said': 1})))"
    )
    with Process("noisy", [sys.executable, "-c", code]) as process:
        assert process.loaded == {"said": 1}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(3)", r"it ended without an answer \(exit status 3\)"),
        ("from ambidex.bench import contender as c; c.run(lambda answers: 1 / 0)", "it: ZeroDivisionError"),
    ],
)
def test_a_process_that_fails(code: str, message: str) -> None:
    with pytest.raises(ContenderFailed, match=message):
        Process("it", [sys.executable, "-c", code])


def test_an_interpreter_that_is_none(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o755)
    with pytest.raises(ContenderFailed, match="cannot be run"):
        Process("it", [str(text)])


class Counting:
    def loaded(self) -> dict[str, Any]:
        return {"ready": True}

    def double(self, value: int) -> dict[str, Any]:
        return {"doubled": 2 * value}


def test_each_line_is_answered() -> None:
    requests = io.StringIO('{"measure": "double", "value": 4}\n{"measure": "memory"}\n')
    answers = io.StringIO()
    serve(Counting, "counting", requests, answers)
    loaded, doubled, memory = map(json.loads, answers.getvalue().splitlines())
    assert loaded == {"contender": "counting", "ready": True}
    assert doubled == {"doubled": 8}
    assert memory["base_bytes"] + memory["peak_bytes"] == pytest.approx(peak_bytes(), rel=0.1)


class Converting:
    """A peer that counts its conversions and can fail in the middle of one."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.times = fails, 0

    def convert(self, folder: Path, target: Path) -> None:
        self.times += 1
        (target / "half").write_text(folder.name)
        if self.fails:
            raise ValueError("no")


@pytest.fixture
def kept_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """`converted` belongs into a process of its own, where it sends standard error away."""
    monkeypatch.setattr("os.dup2", lambda *_: None)


@pytest.mark.usefixtures("kept_stderr")
def test_a_checkpoint_is_converted_once_per_content(tiny: Path, tmp_path: Path) -> None:
    peer: Any = Converting()
    first = converted("it", peer, tiny, tmp_path)
    assert converted("it", peer, tiny, tmp_path) == first
    assert peer.times == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    assert converted("it", peer, other, tmp_path) != first
    assert peer.times == 2


@pytest.mark.usefixtures("kept_stderr")
def test_half_a_conversion_is_not_kept(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"):
        converted("it", Converting(fails=True), tiny, tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_rows_in_pairs_rotate_like_rows_in_halves() -> None:
    """llama.cpp rotates (0, 1), (2, 3), …; a checkpoint's heads rotate (0, half), (1, half + 1), …"""
    heads, size, draw = 3, 8, np.random.default_rng(0)
    rows, x = draw.normal(size=(heads * size, 5)), draw.normal(size=5)
    angles = draw.normal(size=size // 2)
    in_pairs = load_peer("llama.cpp").in_pairs

    def rotated(first: Any, second: Any) -> tuple[Any, Any]:
        return first * np.cos(angles) - second * np.sin(angles), first * np.sin(angles) + second * np.cos(angles)

    halves = (rows @ x).reshape(heads, size)
    expected = np.concatenate(rotated(halves[:, : size // 2], halves[:, size // 2 :]), axis=1).reshape(-1)
    pairs = (in_pairs(rows, heads) @ x).reshape(heads, size)
    got = np.stack(rotated(pairs[:, ::2], pairs[:, 1::2]), axis=-1).reshape(-1)
    np.testing.assert_allclose(got, in_pairs(expected, heads), rtol=1e-12)


def test_steps_are_timed(tiny: Path) -> None:
    with ambidex({**OPTIONS, "model": str(tiny), "roofline_steps": {"a": [(0, 8)]}}) as ours:
        one = ours.ask("generate", prompts=[[1, 2, 3]], output_lens=[6])
        three = ours.ask("generate", prompts=[[1], [2] * 40, [3] * 7], output_lens=[4, 6, 5])
        first = ours.ask("generate", prompts=[[5] * 9], output_lens=[1])
        loaded = ours.loaded
    assert len(one["step_s"]) == 5
    assert one["first_s"] + sum(one["step_s"]) == pytest.approx(one["total_s"], rel=0.3)
    assert 2 <= len(three["step_s"]) <= 3
    assert first["step_s"] == []
    assert loaded["costs"]["a"][1] > 8 * 2 * sum(n * k * count for n, k, count in loaded["products"]) * 0.5
    expected = LLM(str(tiny), device="cpu", progress=False).generate(
        [[5] * 9], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    )
    assert first["ids"] == expected[0].outputs[0].token_ids


def test_a_prompts_products() -> None:
    loaded = {"products": [[30, 10, 4], [10, 20, 4]], "head": [100, 10]}
    assert products(loaded, 7) == [[7, 30, 10, 4], [7, 10, 20, 4], [1, 100, 10, 1]]


def test_the_limits_are_medians_of_the_best() -> None:
    found = Found(None)  # type: ignore[arg-type]
    found.reads = [{"read_gb_per_s": {"a": 10.0, "b": rate}} for rate in (20.0, 5.0, 30.0)]
    found.products = [{"seconds": [{"x": 2.0, "y": seconds}, {"x": 1.0}]} for seconds in (1.0, 1.0, 9.0)]
    summary = found.summary([[2, 3, 5, 4], [1, 10, 5, 1]])
    assert (summary["read_gb_per_s"], summary["reader"]) == (20.0, "b")
    operations, seconds = 4 * 2 * 2 * 3 * 5 + 2 * 10 * 5, 4 * 1.0 + 1.0
    assert summary["matrix_gflops_per_s"] == pytest.approx(operations / seconds / 1e9)
    assert [each["way"] for each in summary["products"]] == ["y", "x"]


def test_the_machine_is_measured_as_it_is(tiny: Path) -> None:
    options = {**OPTIONS, "model": str(tiny), "roofline_steps": {}}
    with together(options, (), input_len=16) as side_by_side:
        rates = side_by_side.limits.ask("reads")["read_gb_per_s"]
        seconds = side_by_side.limits.ask("products")["seconds"]
    assert set(rates) == {"cpu"} | ({"kernels/cpu"} - {f"kernels/{name}" for name in missing_languages()})
    assert all(0.1 < rate < 10_000 for rate in rates.values())
    assert len(seconds) == len(products(side_by_side.ours.loaded, 16))
    assert all(each > 0 for ways in seconds for each in ways.values())


def test_prompts_are_the_same_for_everybody() -> None:
    assert prompt_ids([5, 5], 100, seed=3) == prompt_ids([5, 5], 100, seed=3)
    assert prompt_ids([5, 5], 100, seed=3) != prompt_ids([5, 5], 100, seed=4)
    assert [len(ids) for ids in prompt_ids([3, 1, 50], 7, seed="a")] == [3, 1, 50]
    assert all(0 <= token < 7 for ids in prompt_ids([50], 7, seed=-1) for token in ids)


def test_a_mixed_batch_is_unequal_and_the_same_for_everybody() -> None:
    case = Case("mixed", 32, 128, 48)
    inputs, outputs = case.lengths()
    assert case.lengths() == (inputs, outputs)
    assert 32 <= min(inputs) < max(inputs) <= 128
    assert 12 <= min(outputs) < max(outputs) <= 48
    assert case.tokens_per_s({"total_s": 2.0}) == sum(outputs) / 2


def test_peak_memory_belongs_to_one_process() -> None:
    """A child of a large process does not start with its parent's peak."""
    ballast = bytearray(200 << 20)
    code = "from ambidex.bench.contender import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(ballast) < peak_bytes()
