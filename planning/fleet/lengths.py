"""How long prompts and answers are, in tokens: each kind is the part of a scenario that describes it, and draws."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field, model_validator

from .record import Positive, Record, Tokens

Integers = NDArray[np.int64]


class Constant(Record):
    kind: Literal["constant"]
    tokens: Tokens

    def draw(self, draw: Generator, count: int) -> Integers:
        return np.full(count, self.tokens, dtype=np.int64)


class _Bounded(Record):
    min_tokens: Tokens = 1
    max_tokens: Tokens

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self

    def _within(self, values: NDArray[np.float64]) -> Integers:
        return np.clip(np.rint(values), self.min_tokens, self.max_tokens).astype(np.int64)


class Uniform(_Bounded):
    kind: Literal["uniform"]

    def draw(self, draw: Generator, count: int) -> Integers:
        return draw.integers(self.min_tokens, self.max_tokens, count, endpoint=True)


class LogNormal(_Bounded):
    """median_tokens × exp(sigma × a standard normal): what prompts of people look like."""

    kind: Literal["lognormal"]
    median_tokens: Positive
    sigma: Positive

    def draw(self, draw: Generator, count: int) -> Integers:
        with np.errstate(over="ignore"):  # what is beyond all bounds is cut to them
            return self._within(self.median_tokens * np.exp(self.sigma * draw.standard_normal(count)))


class Pareto(_Bounded):
    """Heavy-tailed: a share (min_tokens / n) ** alpha is longer than n; at alpha below 2 without a variance."""

    kind: Literal["pareto"]
    alpha: Positive

    def draw(self, draw: Generator, count: int) -> Integers:
        return self._within(self.min_tokens * (1.0 + draw.pareto(self.alpha, count)))


Lengths = Annotated[Constant | Uniform | LogNormal | Pareto, Field(discriminator="kind")]
