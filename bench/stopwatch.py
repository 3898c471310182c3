"""How long calls take on a device: the median of many, on memory that no cache holds.

Where the device works by itself the calls are captured in one graph, which is replayed between two events: what the
host needs for a launch is not in the time. On the host each call is timed alone. Calls that cannot be captured are
launched one by one, and the reason stands beside their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from statistics import median

import torch

from ..backends.contract import Backend

Call = Callable[[], object]

ROTATED_BYTES = 1 << 30
"""What the operands of one pass read at least, so that a cache has forgotten the first set when it comes again."""

_MIN_SAMPLES, _MAX_SAMPLES, _MAX_CALLS, _MIN_CALLS = 5, 200, 256, 8


@dataclass(frozen=True)
class Timed:
    """Seconds of a call, by sample. eager: why the calls were not captured, where a device would have."""

    samples_s: tuple[float, ...]
    num_calls: int
    eager: str | None

    @property
    def median_s(self) -> float:
        return median(self.samples_s)


@dataclass(frozen=True)
class Stopwatch:
    """Measures on one device for about `budget_s` seconds each."""

    backend: Backend
    device: torch.device
    budget_s: float = 0.3
    rotated_bytes: int = ROTATED_BYTES

    def num_sets(self, call_bytes: int, set_bytes: int) -> int:
        """Sets of operands to rotate: their reads exceed `rotated_bytes`, or, where little of a set is read, they are
        twice that; and they fit into half of what is free."""
        wanted = min(_MAX_CALLS, -(-self.rotated_bytes // max(call_bytes, 1)))
        most_bytes = min(self.backend.memory(self.device).free_bytes // 2, 2 * self.rotated_bytes + set_bytes)
        return max(1, min(wanted, most_bytes // max(set_bytes, 1)))

    def time(self, calls: Sequence[Call]) -> Timed:
        """calls: one for each set of operands, in the order in which they are made."""
        if not self.backend.is_asynchronous:
            calls[0]()
            return Timed(tuple(self._samples([(call, 1) for call in calls])), len(calls), None)
        several = list(islice(cycle(calls), max(_MIN_CALLS, len(calls))))
        every: Callable[[], None] = partial(_run, several)
        replay = self.backend.capture(every)
        once, eager = (every, replay) if isinstance(replay, str) else (replay, None)
        once()
        return Timed(tuple(self._samples([(once, len(several))])), len(several), eager)

    def _samples(self, units: Sequence[tuple[Call, int]]) -> Iterator[float]:
        """Seconds of a call in each unit of so many, until the budget is spent."""
        spent = 0.0
        for number, (function, count) in enumerate(cycle(units)):
            if number == _MAX_SAMPLES or (number >= _MIN_SAMPLES and spent >= self.budget_s):
                return
            seconds = self.backend.elapsed_s(function, self.device)
            spent += seconds
            yield seconds / count


def _run(calls: Sequence[Call]) -> None:
    for call in calls:
        call()
