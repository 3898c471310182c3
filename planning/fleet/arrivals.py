"""When requests arrive: each kind is the part of a scenario that describes it, and draws the times.

Times are seconds from the beginning, ascending. Everything is drawn from the generator that is handed in. `hurried` is
the same with so many times as many arrivals a second.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field, model_validator

from .record import Positive, Record

Reals = NDArray[np.float64]
_MOST_AT_ONCE = 1 << 22
_LEAST_IN_TURN = 0.01
_GRID, _GRID_OF_PERIOD = 1 << 16, 64


class Poisson(Record):
    """Independent of one another, at a constant mean rate."""

    kind: Literal["poisson"]
    rate_per_s: Positive

    def times(self, draw: Generator, count: int) -> Reals:
        return np.cumsum(draw.exponential(1.0 / self.rate_per_s, count))

    def hurried(self, factor: float) -> Poisson:
        return self.model_copy(update={"rate_per_s": factor * self.rate_per_s})


class Bursts(Record):
    """Poisson at two rates, calm and burst in turn, each for an exponential time (a Markov-modulated process)."""

    kind: Literal["bursts"]
    calm_per_s: Positive
    burst_per_s: Positive
    mean_calm_s: Positive
    mean_burst_s: Positive

    @model_validator(mode="after")
    def _is_reached(self) -> Self:
        if self.calm_per_s * self.mean_calm_s + self.burst_per_s * self.mean_burst_s < _LEAST_IN_TURN:
            raise ValueError(f"calm and burst together bring fewer than {_LEAST_IN_TURN} requests: they last too short")
        return self

    def times(self, draw: Generator, count: int) -> Reals:
        pieces: list[Reals] = []
        begun_s, found, is_burst = 0.0, 0, False
        while found < count:
            lasts_s = draw.exponential(self.mean_burst_s if is_burst else self.mean_calm_s)
            rate = self.burst_per_s if is_burst else self.calm_per_s
            inside = int(draw.poisson(rate * lasts_s))
            pieces.append(begun_s + _first(draw, inside, count) * lasts_s)
            begun_s, found, is_burst = begun_s + lasts_s, found + inside, not is_burst
        return np.concatenate(pieces)[:count]

    def hurried(self, factor: float) -> Bursts:
        rates = {"calm_per_s": factor * self.calm_per_s, "burst_per_s": factor * self.burst_per_s}
        return self.model_copy(update=rates)


def _first(draw: Generator, inside: int, count: int) -> Reals:
    """The first of so many moments in [0, 1), ascending: all of them, or the `count` that are wanted of very many."""
    if inside <= _MOST_AT_ONCE or inside <= count:
        return np.sort(draw.random(inside))
    sums = np.cumsum(draw.exponential(1.0, count))  # order statistics are sums of exponentials over the sum of all
    return sums / (sums[-1] + draw.gamma(inside + 1.0 - count))


class Waves(Record):
    """Poisson at a rate that swings around its mean, as days do: mean × (1 - swing × cos(2π t / period))."""

    kind: Literal["waves"]
    rate_per_s: Positive
    swing: Annotated[float, Field(ge=0.0, lt=1.0)]
    period_s: Positive

    def times(self, draw: Generator, count: int) -> Reals:
        """At unit rate, carried over by the inverse of the integral of the rate."""
        unit = np.cumsum(draw.exponential(1.0, count))
        lasts_s = unit[-1] / self.rate_per_s + self.period_s
        points = min(max(_GRID, int(_GRID_OF_PERIOD * lasts_s / self.period_s)), _MOST_AT_ONCE)
        grid_s = np.linspace(0.0, lasts_s, points)
        turn = 2.0 * np.pi / self.period_s
        expected = self.rate_per_s * (grid_s - self.swing / turn * np.sin(turn * grid_s))
        return np.interp(unit, expected, grid_s)

    def hurried(self, factor: float) -> Waves:
        return self.model_copy(update={"rate_per_s": factor * self.rate_per_s})


class Trace(Record):
    """As recorded: times, and the lengths with them. file: CSV beside the scenario, or a path of its own; faster:
    divides the times. Repeated from its beginning where more requests are asked for than it has."""

    kind: Literal["trace"]
    file: str
    faster: Positive = 1.0

    def hurried(self, factor: float) -> Trace:
        return self.model_copy(update={"faster": factor * self.faster})


Arrivals = Annotated[Poisson | Bursts | Waves | Trace, Field(discriminator="kind")]
