"""Graphs of steps that read prompts: what they yield and store is what the step does, and their padding nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ambidex.backends.contract import Backend
from ambidex.backends.cpu import CpuBackend
from ambidex.hwprofiles.reader import load
from ambidex.runtime.batch import Batch
from ambidex.runtime.build import build
from ambidex.runtime.engine import Engine
from ambidex.runtime.execute.graphs import Graphs
from ambidex.runtime.execute.prompts import PromptGraphs, PromptSizes, prompt_ladder
from ambidex.runtime.execute.worker import Worker
from ambidex.runtime.messages import Submission
from ambidex.runtime.options import Options
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.start import decide, decide_for
from ambidex.runtime.step import Step
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 5000))
def test_the_ladder_rises_in_sixteens_and_wastes_less_than_a_third(most: int) -> None:
    sizes = prompt_ladder(most)
    assert all(size % 16 == 0 and size <= most for size in sizes)
    assert all(low < high and (low < 32 or (high - low) / high <= 1 / 3) for low, high in pairwise(sizes))
    assert (max(sizes, default=0) == 1024) == (most >= 1024)


def worker_of(engine: Engine) -> Worker:
    assert isinstance(engine.worker, Worker)
    return engine.worker


def with_prompts(engine: Engine, sizes: tuple[int, ...], backend: Backend) -> PromptGraphs:
    """The engine's worker, given graphs for prompts alone."""
    worker = worker_of(engine)

    def forward(batch: Batch) -> torch.Tensor:
        return worker.model.forward(batch, None, worker.state, worker.ops, worker.mesh)

    page_sizes = {group: layers[0].page_size for group, layers in worker.state.items()}
    graphs = Graphs((worker.slots.tokens.shape[0],), backend, worker.slots, page_sizes, forward)
    graphs.refusal = "decode steps are called"
    worker.graphs = graphs.with_prompts(sizes)
    assert worker.graphs.prompts is not None
    return worker.graphs.prompts


def outcome(engine: Engine) -> list[tuple[list[int], bytes]]:
    """Prompts of several lengths that come while others decode, one of them in chunks."""
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    found = []
    for number, length in enumerate((3, 41, 17, 1, 26)):
        engine.submit(Submission(number=number, prompt_ids=np.arange(length) + 5 + number, params=params))
        progress = engine.step()
        found.append((progress.ids.tolist(), progress.logprobs.tobytes()))
    while engine.has_work:
        progress = engine.step()
        found.append((progress.ids.tolist(), progress.logprobs.tobytes()))
    return found


@pytest.mark.parametrize("budget", [64, 16])
def test_steps_by_graphs_are_the_steps_that_are_called(
    make_engine: Callable[..., Engine], rerunning: type[Any], budget: int
) -> None:
    called, captured = (make_engine(graphs=False, max_num_batched_tokens=budget) for _ in range(2))
    prompts = with_prompts(captured, prompt_ladder(64), rerunning())
    prompts.capture_all()
    assert prompts.refusal is None
    assert outcome(called) == outcome(captured)
    assert len(prompts.replays) == 4


def built_here(two_groups: Path, backend: Backend, **options: Any) -> Engine:
    """An engine on the CPU, whose memory is decided as that backend has it."""
    asked = {"max_num_batched_tokens": 32, "max_model_len": 60, "max_num_seqs": 5, "determinism": "batch", **options}
    decided = decide(Options(model=str(two_groups), device="cpu", progress=False, **asked))
    needs = replace(decided.ledger.needs, is_pool_shared=backend.is_asynchronous)
    return build(replace(decided, backend=backend, ledger=replace(decided.ledger, needs=needs)))


@pytest.mark.parametrize(
    ("works_by_itself", "options", "has_them"),
    [(True, {}, True), (True, {"prompt_graphs": False}, False), (True, {"graphs": False}, False), (False, {}, False)],
)
def test_an_engine_has_them_unasked_where_the_device_works_by_itself_and_graphs_are_on(
    two_groups: Path, rerunning: type[Any], works_by_itself: bool, options: dict[str, Any], has_them: bool
) -> None:
    graphs = worker_of(built_here(two_groups, rerunning() if works_by_itself else CpuBackend(), **options)).graphs
    assert (graphs is None) == (options == {"graphs": False})
    prompts = graphs.prompts if graphs else None
    assert (prompts is not None) == has_them
    if prompts:
        assert len(prompts.replays) == 2, "16 and 32 tokens, captured before the first request"


def test_devices_that_work_by_themselves_have_them_unasked() -> None:
    sizes = decide_for(Options(max_num_seqs=48), load("nvidia-h200-sxm")).ledger.needs.prompt_sizes
    assert sizes == (prompt_ladder(1024), 48)
    assert decide_for(Options(graphs=False), load("amd-mi300x")).ledger.needs.prompt_sizes.tokens == ()
    assert decide(Options(device="cpu")).ledger.needs.prompt_sizes.tokens == ()


def test_where_they_are_refused_the_engine_starts_says_why_and_calls(
    two_groups: Path, rerunning: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    backend = rerunning({"PromptGraphs": "the step cannot be captured: out of memory", "SamplingGraphs": "nor this"})
    engine = built_here(two_groups, backend, overlap=False)
    assert backend.asked.count("PromptGraphs") == 1, "a refusal is not asked for again"
    assert "steps that read prompts: the step cannot be captured: out of memory" in caplog.text
    assert outcome(engine) == outcome(built_here(two_groups, CpuBackend(), graphs=False))
    assert "Graphs" in backend.replayed, "decode steps are replayed all the same"


@given(st.integers(1, 2000), st.integers(1, 600), st.integers(1, 1100), st.integers(1, 1100))
def test_the_smallest_graph_that_holds_a_step_serves(most: int, max_spans: int, tokens: int, spans: int) -> None:
    sizes, spans = PromptSizes(prompt_ladder(most), max_spans), min(spans, tokens)
    found, graphs = sizes.serving(tokens, spans), sizes.graphs
    assert graphs == sorted(set(graphs), reverse=True)
    assert len(graphs) <= 2 * len(sizes.tokens)
    holding = [(size, held) for size, held in graphs if size >= tokens and held >= spans]
    assert found == (min(holding) if holding else None)


def test_a_capture_and_the_padding_store_nothing(make_engine: Callable[..., Engine], rerunning: type[Any]) -> None:
    engine = make_engine(graphs=False)
    worker, prompts = worker_of(engine), with_prompts(engine, (16, 32), rerunning())
    engine.submit(Submission(number=0, prompt_ids=np.arange(20) + 5, params=SamplingParams(max_tokens=30)))
    engine.step()
    planes = [plane for layers in worker.state.values() for pages in layers for plane in pages.planes.values()]
    before = [plane.clone() for plane in planes]
    with torch.inference_mode():
        prompts.capture_all()
        assert all(torch.equal(*pair) for pair in zip(before, planes, strict=True))
        slot = int(engine.scheduler.running.order[0])
        step = Step(spans=np.array([[slot, 5, 3]]), logits=np.array([[0, 2]]))
        logits = prompts.run(step)
        expected = worker.model.forward(worker.batch(step), None, worker.state, worker.ops, worker.mesh)
    assert logits is not None
    assert torch.equal(logits, expected), "and computes the row that was asked for"
    assert all(torch.equal(*pair) for pair in zip(before, planes, strict=True)), "the same keys, and none besides"


def test_what_no_graph_holds_is_called(make_engine: Callable[..., Engine], rerunning: type[Any]) -> None:
    prompts = with_prompts(make_engine(graphs=False), (16,), rerunning())
    one = np.array([[0, 0]])
    assert prompts.run(Step(spans=np.array([[0, 0, 17]]), logits=one)) is None
    assert prompts.run(Step(spans=np.array([[each, 0, 1] for each in range(6)]), logits=one)) is None
    assert prompts.run(Step(spans=np.array([[0, 0, 3]]), logits=np.array([[0, 1], [0, 2]]))) is None
    assert prompts.run(Step(spans=np.array([[0, 0, 3]]), logits=one, adapter_slots=np.array([1]))) is None
    assert (
        prompts.run(Step(spans=np.array([[0, 0, 3]]), logits=one, embeddings=((0, np.zeros(4, np.float32)),))) is None
    )
