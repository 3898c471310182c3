"""What the host costs a step: everything between the sampled ids of one step and the launch of the next.

The real engine, scheduler, prefix cache and wire format run; the device is one that samples the same id for every row
at once. So the time of a step is the host's alone: commit, plan, deltas, and the encoded message of what came out.
Building text is not in it: that is the front's, in another process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import numpy as np

from ..runtime.engine import Engine
from ..runtime.execute.sampled import Sampled
from ..runtime.intake import Intake
from ..runtime.messages import Limits, Submission
from ..runtime.process.wire import Progressed, frame
from ..runtime.request import SamplingParams
from ..runtime.schedule.pages import PagePool
from ..runtime.schedule.scheduler import Scheduler
from ..runtime.step import Step
from .results import conditions

_PAGE_SIZE = 16
_VOCABULARY = 32_000
_SAMPLED_ID = 5
_WARM_UP = 50


class _NoDevice:
    """Runs nothing; every row samples the same id."""

    def launch(self, step: Step) -> Callable[[], Sampled]:
        rows = len(step.logits)
        no_top = np.empty((rows, 0))
        sampled = Sampled(
            np.full(rows, _SAMPLED_ID), np.zeros(rows, np.float32), no_top.astype(np.int64), no_top.astype(np.float32)
        )
        return lambda: sampled


def measure(num_requests: int, num_steps: int, *, overlap: bool = False) -> dict[str, Any]:
    """Microseconds a step of `num_requests` decoding requests with prompts of 20 to 60 tokens: median and spread."""
    engine = _engine(num_requests, num_steps, overlap=overlap)
    for _ in range(_WARM_UP):
        engine.step()
    seconds = []
    for _ in range(num_steps):
        begun = perf_counter()
        frame(Progressed(engine.step()))
        seconds.append(perf_counter() - begun)
    micros = [1e6 * each for each in seconds]
    cuts = quantiles(micros, n=100, method="inclusive")
    return {
        "num_requests": num_requests,
        "num_steps": num_steps,
        "overlap": overlap,
        "median_us_per_step": median(micros),
        "p10_us_per_step": cuts[9],
        "p90_us_per_step": cuts[89],
        "p99_us_per_step": cuts[98],
        "us_per_request": median(micros) / num_requests,
    }


def growth(
    sizes: Sequence[int], num_steps: int, *, overlap: bool = False, tick: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """`measure` of each size, and the conditions; `tick` is called after each. Of a single size its keys stand at the
    top as well."""
    about, rows = conditions(), []
    for size in sizes:
        rows.append(measure(size, num_steps, overlap=overlap))
        tick()
    single = rows[0] if len(rows) == 1 else {}
    return {**about, **single, "manifest": _manifest(), "measurements": rows}


def _manifest() -> dict[str, Any]:
    """Of the binding that ran here: one without sites, for no kernel did. Made last: the measurement needs no torch."""
    from ..ops.binding import bind
    from ..ops.manifest import manifest
    from ..runtime.options import Options, policy
    from ..runtime.start import place

    _, _, profile = place("cpu")
    return manifest(bind((), profile, policy(Options())))


def _engine(num_requests: int, num_steps: int, *, overlap: bool) -> Engine:
    """An engine in which all the requests are running and will be for `num_steps` and more."""
    length = 64 + 2 * (_WARM_UP + num_steps)
    pages = num_requests * -(-length // _PAGE_SIZE)
    limits = Limits(length, _VOCABULARY, frozenset({2}), pages * _PAGE_SIZE, num_requests)
    scheduler = Scheduler(
        {"kv": PagePool(pages)},
        {"kv": _PAGE_SIZE},
        num_slots=num_requests,
        max_length=length,
        token_budget=max(2048, num_requests),
    )
    intake = Intake(limits, model="none", seed=0, ageing_s=10.0, longest={"kv": pages * _PAGE_SIZE})
    engine = Engine(scheduler, _NoDevice(), intake, limits, overlap=overlap)
    draw = np.random.default_rng(0)
    for number in range(num_requests):
        prompt = draw.integers(3, _VOCABULARY, draw.integers(20, 61))
        params = SamplingParams(max_tokens=length, temperature=0.0)
        engine.submit(Submission(number=number, prompt_ids=prompt, params=params))
    while len(scheduler.running) < num_requests or engine.counters().sampled_tokens < num_requests:
        engine.step()
    return engine
