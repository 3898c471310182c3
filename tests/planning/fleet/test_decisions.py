"""A simulated engine and the real one, given the same arrivals by step number, plan the same steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ambidex import LLM, SamplingParams
from ambidex.planning.fleet.worker import SAMPLED_ID, Worker
from ambidex.runtime.engine import Engine
from ambidex.runtime.messages import Submission
from ambidex.runtime.step import Step

_STEPS = 120
Arrivals = list[tuple[int, np.ndarray, int]]  # by step: prompt, tokens to generate


def arrivals(seed: int) -> Arrivals:
    """Half of the prompts begin alike; lengths from one token to several chunks."""
    draw = np.random.default_rng(seed)
    shared = draw.integers(100, 200, 40)
    found: Arrivals = []
    for _ in range(24):
        own = draw.integers(100, 200, draw.integers(1, 80))
        prompt = np.concatenate([shared, own]) if draw.random() < 0.5 else own
        found.append((int(draw.integers(0, 40)), prompt.astype(np.int64), int(draw.integers(1, 40))))
    return sorted(found, key=lambda each: each[0])


def record(engine: Engine) -> list[Any]:
    """What the engine launches from now on, as plain values."""
    launched: list[Any] = []
    launch = engine.worker.launch

    def noted(step: Step) -> Any:
        launched.append(plain(step))
        return launch(step)

    engine.worker.launch = noted  # type: ignore[method-assign]
    return launched


def plain(step: Step) -> Any:
    added = [(each.slot, len(each.tokens), each.prompt_length) for each in step.added]
    (pages, copies) = ([rows.tolist() for rows in table.values()] for table in (step.pages, step.copies))
    return added, step.freed.tolist(), pages, copies, step.spans.tolist(), step.logits.tolist()


def without_freed(step: Any) -> Any:
    """A slot is called free by the next step that is launched."""
    added, _, *others = step
    return added, *others


def drive(engine: Engine, due: Arrivals, *, is_repeating: bool = False) -> dict[int, Any]:
    """The steps that are launched, by their number. is_repeating: those that `repeat` can stand for are not."""
    launched, found, at = record(engine), dict[int, Any](), 0
    while at < _STEPS:
        for number, (_, prompt, max_tokens) in [each for each in enumerate(due) if each[1][0] == at]:
            params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
            engine.submit(Submission(number=number, prompt_ids=prompt, params=params))
        following = min((when for when, _, _ in due if when > at), default=_STEPS)
        num_alike = engine.num_alike(following - at, SAMPLED_ID) if is_repeating else 0
        if num_alike:
            engine.repeat(num_alike, SAMPLED_ID)
        else:
            engine.step()
            if launched:
                found[at] = launched.pop()
        at += num_alike or 1
    return found


@pytest.mark.parametrize("seed", [1, 6, 7])
@pytest.mark.parametrize("kv_cache_tokens", [256, 2048])
def test_the_simulated_engine_decides_as_the_real_one(kit: Any, seed: int, kv_cache_tokens: int) -> None:
    llm = LLM(
        max_model_len=192, max_num_seqs=4, max_num_batched_tokens=48, kv_cache_tokens=kv_cache_tokens, overlap=False,
        progress=False,
    )  # fmt: skip
    real = llm.engine
    (page_size,) = real.scheduler.page_sizes.values()
    (pool,) = real.scheduler.pools.values()
    replica = kit.Round(
        kv_cache_tokens=pool.num_pages * page_size, page_size=page_size, max_model_len=192, max_num_seqs=4,
        token_budget=48,
    )  # fmt: skip
    worker, repeating = (Worker(replica, 0, 0.0, prefix_caching=True) for _ in range(2))
    due = arrivals(seed)
    steps = drive(worker.engine, due)
    assert steps == drive(real, due)
    assert len(steps) > 60
    if kv_cache_tokens == 256:
        assert real.scheduler.num_preemptions == worker.scheduler.num_preemptions > 0
    launched = drive(repeating.engine, due, is_repeating=True)
    assert 20 < len(launched) < len(steps), "some were repeated"
    assert all(without_freed(step) == without_freed(steps[at]) for at, step in launched.items())
    assert repeating.engine.counters() == worker.engine.counters()


def test_a_difference_is_seen(kit: Any) -> None:
    due = arrivals(1)
    replicas = [kit.Round(max_num_seqs=4, max_model_len=192, token_budget=budget) for budget in (48, 47)]
    steps = [drive(Worker(replica, 0, 0.0, prefix_caching=True).engine, due) for replica in replicas]
    assert steps[0] != steps[1]
