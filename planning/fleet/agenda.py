"""What happens next: actions by time, those of one time by their order, then in which they were noted."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[float], None]


class Agenda:
    """The clock of a fleet. An action is called with its own time and may note others, never for the past. reached: the
    last time, and the highest order of what was done at it."""

    def __init__(self) -> None:
        self.now_s, self.reached = 0.0, (0.0, 0)
        self._heap: list[tuple[float, int, int, Action]] = []
        self._num_noted = self._num_orders = 0
        self._cancelled: set[int] = set()

    def new_order(self) -> int:
        """Behind all others that were given. Of actions with an order of their own it does not matter when they were
        noted."""
        self._num_orders += 1
        return self._num_orders

    def at(self, time_s: float, action: Action, order: int = 0) -> int:
        """What the action is called in `cancel`."""
        assert time_s >= self.now_s, "an action for the past"
        self._num_noted += 1
        heappush(self._heap, (time_s, order, self._num_noted, action))
        return self._num_noted

    def cancel(self, noted: int) -> None:
        """An action that is to come does not."""
        self._cancelled.add(noted)

    def next(self) -> bool:
        """Does what comes next; False if there is nothing."""
        while self._heap:
            time_s, order, noted, action = heappop(self._heap)
            if noted not in self._cancelled:
                self.now_s, self.reached = time_s, max(self.reached, (time_s, order))
                action(time_s)
                return True
            self._cancelled.remove(noted)
        return False
