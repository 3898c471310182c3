"""The ladder of captured graphs: its sizes, and that a replayed step is the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ambidex.backends.contract import Backend
from ambidex.backends.cpu import CpuBackend
from ambidex.runtime.batch import Batch
from ambidex.runtime.engine import Engine
from ambidex.runtime.execute.graphs import Graphs, ladder
from ambidex.runtime.execute.worker import Worker
from ambidex.runtime.messages import Submission
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.step import Step
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 600), st.integers(1, 40))
def test_the_ladder_rises_from_one_to_the_most_and_wastes_less_than_a_step(most: int, step: int) -> None:
    sizes = ladder(most, step)
    assert list(sizes) == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, most)
    for rows in range(1, most + 1):
        serving = next(size for size in sizes if size >= rows)
        assert serving - rows < step


def worker_of(engine: Engine) -> Worker:
    assert isinstance(engine.worker, Worker)
    return engine.worker


def rerun(worker: Worker, backend: CpuBackend, sizes: tuple[int, ...]) -> Graphs:
    """Graphs whose logits stay where they lie, as the contract has it, though the function runs anew."""
    logits: dict[int, torch.Tensor] = {}

    def forward(batch: Batch) -> torch.Tensor:
        fresh = worker.model.forward(batch, None, worker.state, worker.ops, worker.mesh)
        return logits.setdefault(len(fresh), fresh.clone()).copy_(fresh)

    page_sizes = {group: layers[0].page_size for group, layers in worker.state.items()}
    return Graphs(sizes, backend, worker.slots, page_sizes, forward)


def decoding(engine: Engine, prompts: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Slots and next positions of requests that are all past their prompts, of different lengths."""
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    for number in range(prompts):
        engine.submit(Submission(number=number, prompt_ids=np.arange(3 + 11 * number) + 5 + number, params=params))
    for _ in range(3):
        engine.step()
    running = engine.scheduler.running
    return running.order, running.computed[running.order]


def planes(worker: Worker) -> list[torch.Tensor]:
    return [plane for layers in worker.state.values() for pages in layers for plane in pages.planes.values()]


def copies(worker: Worker) -> list[torch.Tensor]:
    return [plane.clone() for plane in planes(worker)]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def decode(slots: np.ndarray, first: np.ndarray) -> Step:
    rows = np.arange(len(slots))
    return Step(spans=np.stack([slots, first, rows * 0 + 1], axis=1), logits=np.stack([rows, rows * 0], axis=1))


@pytest.mark.parametrize("chosen", [[0], [3, 1], [2, 0, 1], [3, 2, 1, 0]])
@pytest.mark.parametrize("is_rerun", [True, False], ids=["rerunning", "recording"])
def test_a_replay_yields_and_stores_what_the_step_does_and_its_empty_rows_nothing(
    make_engine: Callable[..., Engine], rerunning: type[Any], is_rerun: bool, chosen: list[int]
) -> None:
    engine, backend = make_engine(graphs=False), rerunning() if is_rerun else CpuBackend()
    worker = worker_of(engine)
    slots, first = (column[chosen] for column in decoding(engine))
    graphs = rerun(worker, backend, (1, 2, 4))
    with torch.inference_mode():
        before = copies(worker)
        graphs.capture_all()
        assert (graphs.refusal, graphs.num_captured) == (None, 3)
        assert equal(before, planes(worker)), "a capture stores nothing"
        replayed = graphs.run(slots, first)
        stored = copies(worker)
        for plane, old in zip(planes(worker), before, strict=True):
            plane.copy_(old)
        step = decode(slots, first)
        logits = worker.model.forward(worker.batch(step), None, worker.state, worker.ops, worker.mesh)
        assert replayed is not None
        assert torch.equal(replayed, logits)
        assert equal(stored, planes(worker))
        assert not equal(stored, before)


def test_a_step_replays_the_smallest_graph_that_holds_it_and_none_beyond_the_ladder(
    make_engine: Callable[..., Engine], rerunning: type[Any]
) -> None:
    engine, backend = make_engine(graphs=False), rerunning()
    slots, first = decoding(engine)
    graphs = rerun(worker_of(engine), backend, (1, 3))
    with torch.inference_mode():
        shapes = [None if (found := graphs.run(slots[:n], first[:n])) is None else len(found) for n in (2, 3, 4, 1, 2)]
    assert shapes == [2, 3, None, 1, 2]
    assert (len(backend.asked), len(backend.replayed), graphs.num_captured) == (2, 4, 2)
    assert graphs.seconds > 0


@pytest.mark.parametrize("refusal", ["this device records nothing", None])
def test_an_engine_gives_the_same_with_graphs_and_where_they_are_refused(
    make_engine: Callable[..., Engine], rerunning: type[Any], refusal: str | None
) -> None:
    eager, engine = make_engine(graphs=False), make_engine(graphs=False)
    backend = rerunning({"Graphs": refusal} if refusal else {})
    graphs = worker_of(engine).graphs = rerun(worker_of(engine), backend, ladder(5, 2))
    results = []
    for each in (eager, engine):
        decoding(each, prompts=5)
        rows: list[tuple[list[int], bytes]] = []
        while each.has_work:
            progress = each.step()
            rows.append((progress.ids.tolist(), progress.logprobs.tobytes()))
        results.append((rows, copies(worker_of(each))))
    assert results[0][0] == results[1][0]
    assert equal(results[0][1], results[1][1])
    assert graphs.refusal == refusal
    assert len(backend.asked) == (1 if refusal else graphs.num_captured), "a refusal is not asked for again"
    assert backend.replayed == [] if refusal else len(backend.replayed) > 10


def test_a_backend_that_records_nothing_says_so(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(graphs=False)
    slots, first = decoding(engine)

    class Plain(CpuBackend):
        capture = Backend.capture  # type: ignore[assignment]

    graphs = rerun(worker_of(engine), Plain(), (1,))
    assert graphs.run(slots[:1], first[:1]) is None
    assert graphs.refusal == "backend cpu records nothing"
