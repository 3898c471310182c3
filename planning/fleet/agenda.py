"""What happens next: actions by time, those of one time in the order in which they were noted."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[float], None]


class Agenda:
    """The clock of a fleet. An action is called with its own time and may note others, never for the past."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Action]] = []
        self._num_noted = 0

    def at(self, time_s: float, action: Action) -> None:
        assert time_s >= self.now_s, "an action for the past"
        self._num_noted += 1
        heappush(self._heap, (time_s, self._num_noted, action))

    def next(self) -> bool:
        """Does what comes next; False if there is nothing."""
        if not self._heap:
            return False
        self.now_s, _, action = heappop(self._heap)
        action(self.now_s)
        return True
