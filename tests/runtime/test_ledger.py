"""The ledger: never over the budget, nothing left that a page could use, shortages with cures that cure, and what was
predicted against what is found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ambidex.backends.contract import Memory
from ambidex.bench.shapes import SHAPES, write_checkpoint
from ambidex.hwprofiles.reader import load
from ambidex.ops.layouts import PAGES_PHSD
from ambidex.ops.state import Plane, StateGroup
from ambidex.ops.support import PageDemand
from ambidex.runtime import start
from ambidex.runtime.budget import GIB, MIB, Budget, budget, parse_memory, shown_bytes, size_option
from ambidex.runtime.build import build_measured
from ambidex.runtime.errors import ConfigError, OutOfMemory
from ambidex.runtime.execute.worker import Worker
from ambidex.runtime.ledger import Ledger, Needs, fit
from ambidex.runtime.options import Options
from ambidex.runtime.start import decide, decide_for
from ambidex.runtime.workspace import StepNeeds
from hypothesis import given
from hypothesis import strategies as st

Files = Any


def of(size: int) -> Budget:
    return Budget(size, size, "as asked for")


@st.composite
def needs(draw: st.DrawFn) -> Needs:
    integers = st.integers
    demands, groups = {}, []
    for name in draw(st.sampled_from([["kv"], ["kv", "kv_window"]])):
        planes = tuple(Plane(each, (draw(integers(1, 3)), draw(integers(1, 40))), torch.bfloat16) for each in "kv")
        groups.append(StateGroup(name, "paged", planes, draw(integers(1, 4))))
        demands[name] = PageDemand(PAGES_PHSD, draw(st.sampled_from([1, 8, 16, 32])))
    return Needs(
        weight_bytes=draw(integers(0, 10**6)),
        weights="dense",
        groups=tuple(groups),
        page_demands=demands,
        step=StepNeeds(*(draw(integers(0, most)) for most in (500, 4000, 12, 1000))),
        max_model_len=draw(integers(1, 5000)),
        is_length_asked=draw(st.booleans()),
        kv_cache_tokens=draw(st.none() | integers(1, 20_000)),
        max_num_seqs=draw(integers(1, 80)),
        max_num_batched_tokens=draw(integers(1, 600)),
        has_graphs=draw(st.booleans()),
        has_columns=draw(st.booleans()),
        is_pool_shared=draw(st.booleans()),
        has_prompt_graphs=draw(st.booleans()),
    )


@given(needs(), st.integers(0, 10**8))
def test_the_budget_is_kept_and_used(wanted: Needs, size: int) -> None:
    try:
        ledger = fit(wanted, of(size))
    except OutOfMemory:
        assert wanted.total_bytes(*wanted.least) > size
        return
    length, tokens = ledger.max_model_len, ledger.kv_cache_tokens
    assert ledger.total_bytes == sum(ledger.predicted.values()) == wanted.total_bytes(length, tokens) <= size
    assert length <= min(wanted.max_model_len, tokens)
    if wanted.kv_cache_tokens is not None:
        assert (tokens, ledger.limit) == (wanted.kv_cache_tokens, "asked")
        return
    assert length == wanted.max_model_len or not wanted.is_length_asked
    most = wanted.max_num_seqs * -(-length // wanted.page_unit) * wanted.page_unit
    assert tokens <= most
    assert (ledger.limit == "requests") == (tokens == most)
    if tokens < most:
        assert wanted.total_bytes(length, tokens + 1) > size, "a page more would have fitted"
    if length < wanted.max_model_len:
        assert wanted.total_bytes(length + 1, length + 1) > size, "a longer request would have fitted"


@given(needs(), st.integers(0, 10**7), st.integers(0, 10**8))
def test_a_shortage_says_by_how_much_and_every_cure_cures(wanted: Needs, size: int, more: int) -> None:
    try:
        fit(wanted, Budget(size, size + more, "as asked for"))
    except OutOfMemory as error:
        said = str(error)
    else:
        return
    assert said.startswith(shown_bytes(wanted.total_bytes(*wanted.least) - size))
    assert "\n" not in said
    for flag, value in re.findall(r"--([a-z-]+) ?([\w.]*)", said):
        name = flag.replace("-", "_")
        if name == "memory":
            parsed = parse_memory(value)
            allowed = parsed if isinstance(parsed, int) else int(parsed * (size + more))
            assert allowed <= size + more
            fit(wanted, of(allowed))
        elif name in ("no_graphs", "no_prompt_graphs"):
            fit(replace(wanted, **{name.replace("no_", "has_"): False}), of(size))
        else:
            assert int(value) < getattr(wanted, name)
            fit(replace(wanted, **{name: int(value)}), of(size))


@pytest.mark.parametrize(
    ("given_value", "found"),
    [
        ("12GiB", 12 * GIB), ("1.5 gib", 3 * GIB // 2), ("800MiB", 800 * MIB), ("12GB", 12 * 10**9),
        ("7 MB", 7_000_000), ("0.5", 0.5), (0.25, 0.25), ("1", 1.0), (1, 1.0), ("1.0", 1.0),
    ],
)  # fmt: skip
def test_memory_is_read(given_value: str | float, found: float) -> None:
    parsed = parse_memory(given_value)
    assert (parsed, type(parsed)) == (found, type(found))


@pytest.mark.parametrize(
    "given_value",
    [
        "",
        "12",
        "0",
        "0GiB",
        "-1GiB",
        "12KiB",
        "GiB",
        "1e3MiB",
        "0.5.5",
        0,
        12,
        1.5,
        -0.5,
        True,
        float("nan"),
        [],
        "١GiB",
    ],
)
def test_what_is_no_size_is_refused(given_value: Any) -> None:
    with pytest.raises(ConfigError, match=r"12GiB.*0\.5") as caught:
        Options(memory=given_value)
    assert "\n" not in str(caught.value)


def test_two_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="give one"):
        Options(memory="1GiB", gpu_memory_utilization=0.5)


@given(st.integers(1, 1 << 50), st.integers(0, 1 << 40))
def test_a_size_option_is_enough_and_free(size: int, more: int) -> None:
    parsed = parse_memory(size_option(size, size + more))
    allowed = parsed if isinstance(parsed, int) else int(parsed * (size + more))
    assert size <= allowed <= size + more


def test_shares_and_sizes_of_what_is_free() -> None:
    host, accelerator = load("cpu-avx2"), load("nvidia-h200-sxm")
    assert budget(None, None, host, 10 * GIB).num_bytes == 5 * GIB
    assert budget(None, None, accelerator, 100 * GIB).num_bytes == 92 * GIB
    assert budget("0.25", None, host, 8 * GIB).num_bytes == budget(None, 0.25, host, 8 * GIB).num_bytes == 2 * GIB
    assert budget(None, 1, host, 8 * GIB).num_bytes == 8 * GIB
    assert budget("3GiB", None, host, 8 * GIB).num_bytes == 3 * GIB
    with pytest.raises(OutOfMemory, match=r"1\.00 GiB more than the 8\.00 GiB free"):
        budget("9GiB", None, host, 8 * GIB)


def with_free(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    """The device has so much memory free."""
    place = start.place

    def placed(device: str | None) -> Any:
        backend, report, profile = place("cpu")
        monkeypatch.setattr(backend, "memory", lambda device: Memory(free_bytes, free_bytes))
        return backend, report, profile

    monkeypatch.setattr(start, "place", placed)


def test_decisions_say_why() -> None:
    limited = decide(Options(device="cpu", memory="60MiB", max_model_len=512))
    tokens = limited.kv_cache_tokens
    lines = dict(line.split(None, 1) for line in limited.ledger.lines())
    assert limited.ledger.limit == "memory"
    assert lines["KV"].startswith(f"cache   {tokens:,} tokens in {tokens // 16:,} pages of 16 (PHSD), ")
    assert lines["KV"].endswith(f": {tokens // 512} requests of 512 (what the memory leaves)")
    assert "60.0 MiB, as asked for" in lines["memory"]
    whole = decide(Options(device="cpu", max_model_len=512, max_num_seqs=3))
    assert whole.kv_cache_tokens == 3 * 512
    assert any("3 requests of 512 (all that can run at once)" in line for line in whole.ledger.lines())
    asked = decide(Options(device="cpu", kv_cache_tokens=100))
    assert asked.max_model_len == 100
    assert any("because of kv_cache_tokens" in line for line in asked.ledger.lines())


def test_a_dtype_that_would_fit_is_named(tmp_path: Path) -> None:
    write_checkpoint(SHAPES["tiny"], tmp_path)
    options = Options(model=str(tmp_path), device="cpu", dtype="float32", max_num_seqs=1, max_num_batched_tokens=1,
                      max_model_len=1024)  # fmt: skip
    whole = decide(options).ledger
    least = whole.needs.total_bytes(*whole.needs.least)
    half = decide(replace(options, dtype="bfloat16", memory=f"{least / MIB - 0.1:.2f}MiB"))
    with pytest.raises(OutOfMemory, match="--dtype bfloat16"):
        decide(replace(options, memory=half.options.memory))


def test_a_config_that_lies_is_refused_before_the_trace(
    plain: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trace(*arguments: object) -> Any:
        raise AssertionError("traced")

    monkeypatch.setattr(start, "trace", trace)
    for lie in (
        {"hidden_size": 1 << 18, "intermediate_size": 1 << 20, "num_hidden_layers": 8, "head_dim": 64},
        {"num_key_value_heads": 1024, "num_attention_heads": 1024, "head_dim": 1024, "num_hidden_layers": 1024},
    ):
        files.config(plain, **lie)
        with pytest.raises(OutOfMemory, match="GiB of memory are missing"):
            decide(Options(model=str(plain), device="cpu"))


def test_what_fits_at_once_is_not_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before the trace asks for no more than the whole one does."""
    ledger = decide(Options(device="cpu")).ledger
    least = ledger.needs.total_bytes(*ledger.needs.least)
    with_free(monkeypatch, least)
    exact = decide(Options(device="cpu", memory=1.0)).ledger
    assert (exact.total_bytes, exact.limit) == (least, "memory")
    with_free(monkeypatch, least - 1)
    with pytest.raises(OutOfMemory):
        decide(Options(device="cpu", memory=1.0))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose workspace is tens of MiB: noise of the process is a few."""
    folder = tmp_path_factory.mktemp("small")
    write_checkpoint(replace(SHAPES["tiny"], hidden_size=256, intermediate_size=2048, vocabulary_size=20_000), folder)
    return folder


@pytest.mark.parametrize(
    "more", [(), ("--max-num-seqs", "8", "--max-num-batched-tokens", "4096")], ids=["logits", "rows"]
)
def test_what_was_predicted_is_found(small: Path, more: tuple[str, ...]) -> None:
    """In a process of its own: what others have allocated and freed would serve as workspace, unseen."""
    command = [sys.executable, "-m", "ambidex", "doctor", str(small), "--device", "cpu", "--measure", "--json", *more]
    plan = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["engine"]
    predicted, found = plan["predicted_bytes"], {name: each["num_bytes"] for name, each in plan["measured"].items()}
    assert set(found) == set(predicted)
    if None in found.values():
        pytest.skip(f"this system does not say: {plan['measured']}")
    assert found["weights"] == pytest.approx(predicted["weights"], rel=0.02)
    assert 0 < found["KV cache"] <= predicted["KV cache"]
    assert found["requests"] == pytest.approx(predicted["requests"], rel=0.02)
    assert 0.5 * predicted["workspace"] < found["workspace"] < predicted["workspace"] + 8 * MIB
    assert 0 < found["graphs"] < predicted["graphs"]
    assert len(plan["comparison"]) == len(predicted)


def test_all_graphs_take_what_was_predicted(small: Path) -> None:
    decided = decide(Options(model=str(small), device="cpu", max_num_seqs=20, progress=False))
    built = build_measured(decided)
    assert built.holdings.measured()["graphs"] == (0, "0 of 6 sizes recorded so far")
    worker = built.engine.worker
    assert isinstance(worker, Worker)
    assert worker.graphs is not None
    worker.graphs.capture_all()
    assert built.holdings.measured()["graphs"].num_bytes == pytest.approx(decided.ledger.predicted["graphs"], rel=0.1)


@pytest.mark.parametrize(("slots", "more"), [(8, 1024 - 8), (512, 0)])
def test_graphs_for_prompts_share_the_memory_of_the_others(slots: int, more: int) -> None:
    """The largest one's rows instead of the decode graphs', or nothing where the sampler's keeps more than that."""
    ledger = decide_for(Options(max_num_seqs=slots), load("nvidia-h200-sxm")).ledger
    needs, without = ledger.needs, replace(ledger.needs, has_prompt_graphs=False)
    step = StepNeeds(200_000 if more else 2000, 64_000, 3)
    added = [replace(each, step=step).graph_bytes(512) for each in (needs, without)]
    row = step.row_bytes + 4 * sum(needs.num_pages(512).values())
    assert added[0] - added[1] == (more * row if more else 0)


def test_where_they_do_not_fit_to_leave_them_out_is_a_cure() -> None:
    needs = decide_for(Options(max_model_len=512), load("nvidia-h200-sxm")).ledger.needs
    least, called = (each.total_bytes(*each.least) for each in (needs, replace(needs, has_prompt_graphs=False)))
    assert called < least
    with pytest.raises(OutOfMemory, match=r"--no-graphs or --no-prompt-graphs or"):
        fit(needs, of(called))


def test_the_graphs_line_names_both_kinds() -> None:
    lines = decide_for(Options(max_num_seqs=20), load("nvidia-h200-sxm")).ledger.lines()
    assert any("6 sizes up to 20 requests, 35 for steps that read up to 1,024 tokens, " in line for line in lines)


def test_prompts_graphs_count_where_the_other_steps_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    holdings = build_measured(decide(Options(device="cpu", max_num_seqs=2))).holdings
    graphs = holdings._graphs
    assert graphs is not None
    monkeypatch.setattr(graphs, "refusal", "this device records no such step")
    assert holdings.measured()["graphs"] == (0, "this device records no such step")
    monkeypatch.setattr(graphs, "prompts", SimpleNamespace(replays=[SimpleNamespace(num_bytes=7)], refusal=None))
    found = holdings.measured()["graphs"]
    assert (found.num_bytes, "1 for prompts" in found.note) == (7, True)


def test_what_is_not_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    built = build_measured(decide(Options(device="cpu", max_num_seqs=2, graphs=False)))
    backend = built.holdings._backend
    monkeypatch.setattr(backend, "usage", lambda device: None)
    monkeypatch.setattr(backend, "committed_bytes", lambda piece: None)
    measured = built.holdings.measured()
    assert measured["workspace"] == (None, "backend cpu does not measure it")
    assert measured["weights"] == (None, "this system does not say")
    assert measured["graphs"].num_bytes == 0
    assert any("not measured: this system does not say" in line for line in built.holdings.lines())


def test_the_ledger_of_a_shape_is_the_sum_of_its_parts() -> None:
    """By hand, on the embedded model."""
    decided = decide(Options(device="cpu", max_num_seqs=2, max_model_len=100, graphs=False))
    ledger: Ledger = decided.ledger
    config = decided.config
    token = 2 * config.num_kv_heads * config.head_size * 2 * config.num_layers
    assert ledger.kv_cache_tokens == 2 * 112  # each of the requests in seven pages of 16
    assert ledger.predicted["KV cache"] == 224 * token
    assert ledger.predicted["requests"] == 2 * (8 * 100 + 4 * 7 + 56 + 4 * 100 + 80)
    assert ledger.predicted["graphs"] == 0
