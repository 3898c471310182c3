"""How long a step will take, and how long a chunk of a prompt may be so that the others do not wait too long for it.

A step's time is the sum over sites of max(bytes / bandwidth, operations / rate); both are linear in the step's load, so
each site is two rows of coefficients. What the device really reaches of it is learned from the steps as they go by: a
prompt's chunks resemble their predecessors, so the ratio seen last is the best guess of the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_CHUNK = 16
"""Tokens of a prompt that a step takes whatever the budget says, so that every prompt ends."""

_FIRST_RATIO = 1.5
_LEARNING = 0.5


@dataclass
class Load:
    """What a step has to do: tokens, requests, keys read, (query, key) pairs, rows that yield logits."""

    rows: int = 0
    requests: int = 0
    context: int = 0
    pairs: int = 0
    logits: int = 0

    def and_chunk(self, first: int, count: int) -> Load:
        """With `count` tokens of one more request behind `first` stored ones."""
        pairs = count * first + count * (count + 1) // 2
        return Load(
            self.rows + count, self.requests + 1, self.context + first + count, self.pairs + pairs, self.logits + 1
        )

    def vector(self) -> NDArray[np.float64]:
        return np.array([1, self.rows, self.requests, self.context, self.pairs, self.logits], dtype=np.float64)


class Pace:
    """bytes_of, operations_of: [sites, 6] coefficients of `Load.vector`, over all layers of the site; per second:
    what the device moves and computes; budget_s: what a step may take; adapts: whether measured steps correct the
    prediction (then chunks, and at determinism below `batch` a result's last bits, follow the clock)."""

    def __init__(
        self,
        bytes_of: NDArray[np.float64],
        operations_of: NDArray[np.float64],
        *,
        bytes_per_s: float,
        operations_per_s: float,
        budget_s: float,
        adapts: bool,
    ) -> None:
        self._seconds_of_bytes = bytes_of / bytes_per_s
        self._seconds_of_operations = operations_of / operations_per_s
        self.budget_s, self._adapts, self._ratio = budget_s, adapts, _FIRST_RATIO

    def seconds(self, load: Load) -> float:
        """Predicted seconds of a step."""
        return self.nominal_s(load) * self._ratio

    def nominal_s(self, load: Load) -> float:
        """Seconds of a step by the device's rates alone."""
        vector = load.vector()
        return float(np.maximum(self._seconds_of_bytes @ vector, self._seconds_of_operations @ vector).sum())

    def chunk(self, load: Load, first: int, most: int) -> int:
        """The most tokens (at most `most`) behind `first` that may join the load within the budget."""
        if most <= MIN_CHUNK or self.seconds(load.and_chunk(first, most)) <= self.budget_s:
            return most
        low, high = 1, -(-most // MIN_CHUNK)  # in units of MIN_CHUNK: low is taken, high is too long
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.seconds(load.and_chunk(first, middle * MIN_CHUNK)) <= self.budget_s
            low, high = (middle, high) if fits else (low, middle)
        return low * MIN_CHUNK

    def observe(self, nominal_s: float, measured_s: float) -> None:
        """Takes in how long a step really took. With overlap that is known when the next one is planned already: what
        is learned counts from the one after that."""
        if self._adapts and nominal_s > 0 and measured_s > 0:
            self._ratio += _LEARNING * (measured_s / nominal_s - self._ratio)
