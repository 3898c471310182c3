"""The worker: copies of pages before anything is computed, and steps that follow one another in a thread."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ambidex.runtime.engine import Engine
from ambidex.runtime.execute.worker import Worker
from ambidex.runtime.step import SlotAdded, Step


def added(slot: int, tokens: list[int]) -> SlotAdded:
    return SlotAdded(
        slot, np.array(tokens), prompt_length=len(tokens), temperature=0.0, top_k=0, top_p=1.0, min_p=0.0,
        repetition=1.0, presence=0.0, frequency=0.0, seed=0,
    )  # fmt: skip


def first_step(worker: Worker, slot: int, tokens: list[int], page: int, **more: object) -> Step:
    """A prompt in one page of each group, and its next token."""
    pages = {group: np.array([[slot, 0, page]]) for group in worker.state}
    spans = np.array([[slot, 0, len(tokens)]])
    logits = np.array([[0, len(tokens) - 1]])
    return Step(added=(added(slot, tokens),), pages=pages, spans=spans, logits=logits, **more)  # type: ignore[arg-type]


def worker_of(engine: Engine) -> Worker:
    assert isinstance(engine.worker, Worker)
    return engine.worker


def test_pages_are_all_read_before_one_is_written_in_every_plane_of_their_group(
    make_engine: Callable[..., Engine],
) -> None:
    worker = worker_of(make_engine())
    assert len(worker.state) == 2
    copied, other = worker.state
    before: dict[str, list[torch.Tensor]] = {}
    with torch.inference_mode():
        for group, layers in worker.state.items():
            for pages in layers:
                for plane in pages.planes.values():
                    plane.uniform_()
            before[group] = [pages.canonical(name).clone() for pages in layers for name in pages.planes]
    swap = {copied: np.array([[0, 1], [1, 0], [2, 3]])}
    worker.launch(first_step(worker, 0, [5, 6, 7], page=4, copies=swap))()
    for group, layers in worker.state.items():
        after = [pages.canonical(name) for pages in layers for name in pages.planes]
        source = [1, 0, 2, 2] if group == copied else [0, 1, 2, 3]
        for old, new in zip(before[group], after, strict=True):
            assert torch.equal(new[:4], old[source])
            assert not torch.equal(new[4, :3], old[4, :3]), "what was computed is stored"
            assert torch.equal(new[4, 3:], old[4, 3:])
            assert torch.equal(new[5:], old[5:])
    assert other != copied


def test_a_step_that_yields_nothing_samples_nothing(make_engine: Callable[..., Engine]) -> None:
    worker = worker_of(make_engine())
    step = first_step(worker, 0, [5, 6, 7], page=0)
    chunk = Step(added=step.added, pages=step.pages, spans=np.array([[0, 0, 2]]))
    sampled = worker.launch(chunk)()
    assert (len(sampled.ids), sampled.top_ids.shape) == (0, (0, 0))
    whole = worker.launch(Step(spans=np.array([[0, 2, 1]]), logits=np.array([[0, 0]])))()
    assert whole.ids == worker.launch(first_step(worker, 1, [5, 6, 7], page=1))().ids


def test_steps_in_a_thread_follow_one_another_and_read_what_the_one_before_sampled(
    make_engine: Callable[..., Engine],
) -> None:
    results = []
    for overlap in (False, True):
        worker = worker_of(make_engine(overlap=overlap))
        waits = [worker.launch(first_step(worker, 0, [5, 6, 7], page=0))]
        following = [Step(spans=np.array([[0, position, 1]]), logits=np.array([[0, 0]])) for position in range(3, 9)]
        waits += [worker.launch(each) for each in following]
        results.append([(wait().ids.tolist(), wait().logprobs.tobytes()) for wait in waits])
        worker.close()
    assert results[0] == results[1]
    assert len({ids[0] for ids, _ in results[0]}) > 1


def test_a_step_that_fails_in_the_thread_is_told_where_its_result_is_asked_for(
    make_engine: Callable[..., Engine],
) -> None:
    worker = worker_of(make_engine(overlap=True))
    bad = worker.launch(Step(spans=np.array([[99, 0, 1]]), logits=np.array([[0, 0]])))
    good = worker.launch(first_step(worker, 0, [5, 6, 7], page=0))
    with pytest.raises(IndexError):
        bad()
    assert len(good().ids) == 1
    worker.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        worker.launch(first_step(worker, 0, [5, 6, 7], page=0))
