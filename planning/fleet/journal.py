"""What happened to each request, in columns: the one record that everything reported is computed from. Times in seconds
of the fleet's clock, NaN where something did not happen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WAITING, DONE, REFUSED, LOST = 0, 1, 2, 3


class Journal:
    """R requests. started_s: first given a slot; first_s, ended_s: the first and last token; generated: tokens that
    reached the caller; prompted, cached: prompt tokens, and those of them found in a prefix cache, over all attempts;
    attempts: workers that began it from its prompt. state: one of the four above."""

    def __init__(self, num_requests: int) -> None:
        self.started_s = np.full(num_requests, np.nan)
        self.first_s = np.full(num_requests, np.nan)
        self.ended_s = np.full(num_requests, np.nan)
        self.generated = np.zeros(num_requests, dtype=np.int64)
        self.prompted = np.zeros(num_requests, dtype=np.int64)
        self.cached = np.zeros(num_requests, dtype=np.int64)
        self.attempts = np.zeros(num_requests, dtype=np.int32)
        self.state = np.zeros(num_requests, dtype=np.int8)
        self.remaining = num_requests
        self.refusal: str | None = None  # why the first of them was refused

    def start(self, number: int, time_s: float, prompted: int, cached: int) -> None:
        if np.isnan(self.started_s[number]):
            self.started_s[number] = time_s
        self.prompted[number] += prompted
        self.cached[number] += cached

    def first(self, number: int, time_s: float) -> None:
        if np.isnan(self.first_s[number]):
            self.first_s[number] = time_s

    def end(self, number: int, time_s: float, generated: int) -> None:
        self.ended_s[number], self.generated[number] = time_s, generated
        self._leave(number, DONE)

    def refuse(self, number: int, reason: str) -> None:
        self.refusal = self.refusal or reason
        self._leave(number, REFUSED)

    def lose(self, number: int) -> None:
        self._leave(number, LOST)

    def _leave(self, number: int, state: int) -> None:
        assert self.state[number] == WAITING, "a request ended twice"
        self.state[number] = state
        self.remaining -= 1

    def num(self, state: int) -> int:
        return int((self.state == state).sum())

    @property
    def done(self) -> NDArray[np.bool_]:
        return self.state == DONE
