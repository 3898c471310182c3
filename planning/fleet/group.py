"""Workers of one kind in a stage, and what all of them together have done: the sums that a report needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .worker import Replica, Worker

_BATCH, _CONTEXT, _CHUNK = 64, 1024, 512
_MOST_STRETCHES = 240


@dataclass
class Group:
    """places: of its stage, the most workers that it may have. busy_s: by stretch of `stretch_s`, which is doubled when
    the run has become too long for its number. rented: (from, to) of
    each worker that has gone, loading included."""

    replica: Replica
    places: range
    num_initial: int
    prefix_caching: bool
    stretch_s: float
    busy_s: list[float] = field(default_factory=list[float])
    rented: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    num_steps: int = 0
    num_spans: int = 0
    num_computed_prompt_tokens: int = 0
    num_preemptions: int = 0
    num_failures: int = 0

    def was_busy(self, from_s: float, until_s: float) -> None:
        """A worker was at work without a break, counted in the stretches that this lies in."""
        self.reach(until_s)
        first, last = int(from_s / self.stretch_s), int(until_s / self.stretch_s)
        self.busy_s += [0.0] * (last + 1 - len(self.busy_s))
        for stretch in range(first, last):
            ends_s = (stretch + 1) * self.stretch_s
            self.busy_s[stretch] += ends_s - from_s
            from_s = ends_s
        self.busy_s[last] += until_s - from_s

    def reach(self, time_s: float) -> None:
        """Stretches that reach so far are no more than a report shows."""
        while time_s / self.stretch_s >= _MOST_STRETCHES:
            self.stretch_s *= 2.0
            self.busy_s = [sum(self.busy_s[at : at + 2]) for at in range(0, len(self.busy_s), 2)]

    def has_gone(self, worker: Worker, rented_from_s: float, now_s: float) -> None:
        """Its sums are taken over."""
        self.rented.append((rented_from_s, now_s))
        self.num_spans += worker.device.num_spans
        counters = worker.engine.counters()
        self.num_steps += counters.steps
        self.num_preemptions += counters.preemptions
        self.num_computed_prompt_tokens += counters.prompt_tokens - counters.cached_prompt_tokens

    @property
    def rented_s(self) -> float:
        return sum(until - since for since, until in self.rented)


def speed(replica: Replica, role: str) -> float:
    """Tokens a second of a step such as its role has: what workers of a mixed fleet are weighed by."""
    batch = 0 if role == "prefill" else min(_BATCH, replica.max_num_seqs)
    chunk = 0 if role == "decode" else min(_CHUNK, replica.token_budget)
    first: NDArray[np.int64] = np.array([_CONTEXT] * batch + [0] * bool(chunk), dtype=np.int64)
    count: NDArray[np.int64] = np.array([1] * batch + [chunk] * bool(chunk), dtype=np.int64)
    return float(count.sum()) / replica.step_time.seconds(first, count, len(count))
