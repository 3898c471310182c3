"""The sampler's graphs: what they yield and append is what calling the sampler does, masks and empty rows included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ambidex.backends import cuda, rocm
from ambidex.backends.contract import Backend
from ambidex.ops.sample import Sampling
from ambidex.runtime.batch import Batch
from ambidex.runtime.build import build
from ambidex.runtime.engine import Engine
from ambidex.runtime.execute.graphs import Graphs
from ambidex.runtime.execute.sampling import SamplingGraphs
from ambidex.runtime.execute.worker import Worker
from ambidex.runtime.messages import Submission
from ambidex.runtime.options import Options
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.start import decide
from ambidex.runtime.step import Step


def staying(function: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Results of one size and way lie where they lay before, as the contract of a capture has it."""
    places: dict[Any, tuple[torch.Tensor, ...]] = {}

    def run(*args: Any) -> tuple[torch.Tensor, ...]:
        fresh = function(*args)
        asked = args[-1] if isinstance(args[-1], Sampling) else None
        key = (len(fresh[0]), asked and (asked.random, asked.filtered, asked.mask is None))
        kept = places.setdefault(key, tuple(each.clone() for each in fresh))
        for old, new in zip(kept, fresh, strict=True):
            old.copy_(new)
        return kept

    return run


@dataclass
class Pair:
    """Two engines of one model, without graphs and with both kinds."""

    called: Engine
    captured: Engine
    backend: Any
    sampling: SamplingGraphs

    def submit(self, number: int, params: SamplingParams) -> None:
        for engine in (self.called, self.captured):
            prompt = np.arange(3 + 5 * number) + 5 + number
            engine.submit(Submission(number=number, prompt_ids=prompt, params=params))

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Each step's results, after which both engines' slots hold the same."""
        while self.called.has_work:
            one, other = (each.step() for each in (self.called, self.captured))
            assert one.ids.tolist() == other.ids.tolist()
            assert one.logprobs.tobytes() == other.logprobs.tobytes()
            for name in ("tokens", "lengths"):
                assert torch.equal(*(getattr(worker_of(each).slots, name) for each in (self.called, self.captured)))
            yield one.ids.tolist(), one.logprobs.tobytes()


def worker_of(engine: Engine) -> Worker:
    assert isinstance(engine.worker, Worker)
    return engine.worker


def with_graphs(worker: Worker, backend: Backend, sizes: tuple[int, ...]) -> SamplingGraphs:
    def forward(batch: Batch) -> tuple[torch.Tensor, ...]:
        return (worker.model.forward(batch, None, worker.state, worker.ops, worker.mesh),)

    kept = staying(forward)
    sampling = SamplingGraphs(sizes[-1], backend, worker.slots, staying(worker.ops.sample))
    page_sizes = {group: layers[0].page_size for group, layers in worker.state.items()}
    worker.graphs = Graphs(sizes, backend, worker.slots, page_sizes, lambda batch: kept(batch)[0], sampling)
    return sampling


@pytest.fixture
def pair(make_engine: Callable[..., Engine], rerunning: type[Any]) -> Pair:
    backend, (called, captured) = rerunning(), (make_engine(graphs=False) for _ in range(2))
    return Pair(called, captured, backend, with_graphs(worker_of(captured), backend, (1, 2, 4, 5)))


GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
RANDOM = SamplingParams(temperature=0.9, seed=3, max_tokens=9, ignore_eos=True)
FILTERED = SamplingParams(temperature=0.8, seed=4, top_p=0.9, top_k=20, max_tokens=7, ignore_eos=True)
MASKED = SamplingParams(temperature=0.7, seed=5, allowed_token_ids=[1, 2, 3, 40], max_tokens=4, ignore_eos=True)
PENALIZED = SamplingParams(temperature=0.7, seed=6, repetition_penalty=1.3, max_tokens=5, ignore_eos=True)
TOLD = SamplingParams(temperature=0, logprobs=2, max_tokens=4, ignore_eos=True)


@pytest.mark.parametrize(
    "params",
    [[GREEDY], [RANDOM] * 3, [FILTERED, GREEDY], [RANDOM, MASKED, GREEDY, FILTERED, MASKED], [PENALIZED, TOLD, RANDOM]],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_step_of_two_graphs_is_the_step(pair: Pair, params: list[SamplingParams], first: bool) -> None:
    if first:
        worker = worker_of(pair.captured)
        assert worker.graphs is not None
        with torch.inference_mode():
            worker.graphs.capture_all()
        assert worker.slots.lengths.sum() == 0, "a capture appends nothing"
        assert len(pair.sampling.replays) == 3 * 4, "every size, each way without a mask"
    for number, each in enumerate(params):
        pair.submit(number, each)
    assert sum(1 for _ in pair.rows()) > 3
    replays = pair.backend.replayed
    assert replays.count("SamplingGraphs") > 0
    assert (replays.count("SamplingGraphs") < replays.count("Graphs")) == (PENALIZED in params)
    assert pair.sampling.refusal is None


def test_requests_that_come_later_draw_as_if_they_were_alone(pair: Pair) -> None:
    """Masks of rows that have gone are not left behind."""
    pair.submit(0, MASKED)
    pair.submit(1, RANDOM)
    for number, _ in enumerate(pair.rows()):
        if number == 2:
            pair.submit(2, MASKED)
            pair.submit(3, GREEDY)


def test_where_the_sampler_is_not_captured_it_is_called(
    make_engine: Callable[..., Engine], rerunning: type[Any]
) -> None:
    called, captured = (make_engine(graphs=False) for _ in range(2))
    backend = rerunning({"SamplingGraphs": "cannot be captured"})
    pair = Pair(called, captured, backend, with_graphs(worker_of(captured), backend, (1, 2, 4, 5)))
    pair.submit(0, RANDOM)
    pair.submit(1, GREEDY)
    assert list(pair.rows())
    assert pair.sampling.refusal == "cannot be captured"
    assert backend.asked.count("SamplingGraphs") == 1, "a refusal is not asked for again"
    assert backend.replayed


def test_empty_rows_append_nothing(pair: Pair) -> None:
    """Three rows in a graph of four, in an order that is not the slots'."""
    for number in range(4):
        pair.submit(number, GREEDY)
    for _ in range(3):
        next(pair.rows())
    worker, running = worker_of(pair.captured), pair.captured.scheduler.running
    chosen = running.order[[2, 0, 3]]
    before, first = worker.slots.lengths.clone(), running.computed[chosen]
    rows = np.arange(3)
    step = Step(spans=np.stack([chosen, first, rows * 0 + 1], 1), logits=np.stack([rows, rows * 0], 1))
    ids = worker.launch(step)().ids
    grown = worker.slots.lengths - before
    assert grown.tolist() == [int(slot in chosen) for slot in range(len(grown))]
    assert worker.slots.tokens[chosen, before[chosen]].tolist() == ids.tolist()


@pytest.mark.gpu
def test_on_a_card_two_graphs_draw_what_calls_draw(two_groups: Path) -> None:
    """Each request alone: then graphs and calls have the same rows, and so the same kernels."""
    found = [backend for backend in (cuda.BACKEND, rocm.BACKEND) if backend.missing() is None]
    if not found:
        pytest.skip(f"{cuda.BACKEND.missing()}; {rocm.BACKEND.missing()}")
    drawn = []
    for graphs in (False, True):
        options = Options(
            model=str(two_groups), device=f"{found[0].name}:0", max_model_len=60, max_num_seqs=3, graphs=graphs,
            progress=False,
        )  # fmt: skip
        engine = build(decide(options))
        worker, ids = worker_of(engine), []
        for number, params in enumerate([GREEDY, RANDOM, FILTERED, MASKED, PENALIZED, TOLD]):
            engine.submit(Submission(number=number, prompt_ids=np.arange(9) + number, params=params))
            while engine.has_work:
                ids += engine.step().ids.tolist()
        drawn.append(ids)
        if graphs:
            assert worker.graphs is not None
            assert worker.graphs.sampling is not None
            assert (worker.graphs.refusal, worker.graphs.sampling.refusal) == (None, None)
            assert len(worker.graphs.sampling.replays) >= 3 * worker.graphs.num_captured
    assert drawn[0] == drawn[1]
