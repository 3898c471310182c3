"""All requests of a run, drawn before it begins: when, for which model, how long, and how the prompts begin.

What a request is depends on the seed and its number alone, never on what the fleet does with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .arrivals import Arrivals, Trace
from .lengths import Constant, Lengths
from .record import Count, Record, Share, Tokens
from .trace import read_trace
from .worker import SAMPLED_ID, VOCABULARY

Integers = NDArray[np.int64]
_SPECIAL = 16  # ids below are left to special tokens
_NOISE = 1 << 16


class Prefixes(Record):
    """So many beginnings, each of so many tokens; the share of requests that begin with one of them."""

    groups: Count
    tokens: Tokens
    share: Share = 1.0


class Traffic(Record):
    """Lengths are those of the trace where one is given and they are not."""

    arrivals: Arrivals
    input_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    prefixes: Prefixes | None = None


class Slo(Record):
    """A request is good that keeps both."""

    ttft_ms: Annotated[float, Field(gt=0)]
    tpot_ms: Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Workload:
    """Columns over R requests by arrival. fleet: which one serves it; prefix: its beginning, or -1."""

    arrival_s: NDArray[np.float64]
    input_tokens: Integers
    output_tokens: Integers
    fleet: Integers
    prefix: Integers
    prefix_tokens: int

    def __len__(self) -> int:
        return len(self.arrival_s)

    def shared_tokens(self, number: int) -> int:
        """Integers of its prompt that are a shared beginning."""
        return min(self.prefix_tokens, int(self.input_tokens[number])) if self.prefix[number] >= 0 else 0


def draw_workload(traffic: Traffic, count: int, seed: int, shares: Sequence[float], folder: Path) -> Workload:
    """shares: of the fleets. folder: beside which a trace's file is looked for. ConfigError: an unreadable trace."""
    # A stream for each column: a longer run begins as a shorter one does.
    times, taken, given, kinds, begin_alike, beginnings = (np.random.default_rng([seed, each]) for each in range(6))
    one = Constant(kind="constant", tokens=1)
    if isinstance(traffic.arrivals, Trace):
        recorded = read_trace(folder / Path(traffic.arrivals.file).expanduser())
        arrival_s = _repeated(recorded.arrival_s, count) / traffic.arrivals.faster
        inputs, outputs = np.resize(recorded.input_tokens, count), np.resize(recorded.output_tokens, count)
    else:
        arrival_s = traffic.arrivals.times(times, count)
        inputs = outputs = one.draw(taken, count)
    if traffic.input_tokens is not None:
        inputs = traffic.input_tokens.draw(taken, count)
    if traffic.output_tokens is not None:
        outputs = traffic.output_tokens.draw(given, count)
    fleet = kinds.choice(len(shares), count, p=np.array(shares) / sum(shares)).astype(np.int64)
    prefix, prefix_tokens = np.full(count, -1, dtype=np.int64), 0
    if traffic.prefixes is not None:
        prefix_tokens = traffic.prefixes.tokens
        shared = begin_alike.random(count) < traffic.prefixes.share
        prefix = np.where(shared, beginnings.integers(0, traffic.prefixes.groups, count), -1)
    return Workload(arrival_s, inputs, outputs, fleet, prefix, prefix_tokens)


def _repeated(arrival_s: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The times over and over, a mean gap between the last of one round and the first of the next."""
    rounds = np.arange(count) // len(arrival_s)
    lasts_s = arrival_s[-1] * (1.0 + 1.0 / len(arrival_s)) if arrival_s[-1] > 0 else 1.0
    return np.resize(arrival_s, count) + rounds * lasts_s


class Prompts:
    """The token ids of each request. Prompts differ in the first tokens behind their shared beginning."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._workload = workload
        longest = int(workload.input_tokens.max()) if len(workload) else 0
        draw = np.random.default_rng([seed, 100])
        self._noise = draw.integers(_SPECIAL, VOCABULARY, longest + _NOISE, dtype=np.int64)
        self._seed, self._beginnings = seed, dict[int, Integers]()

    def of(self, number: int, generated: int = 0) -> Integers:
        """The prompt, with `generated` tokens of its answer behind it."""
        length, shared = int(self._workload.input_tokens[number]), self._workload.shared_tokens(number)
        tokens = np.empty(length + generated, dtype=np.int64)
        tokens[:length] = self._noise[:length]
        tokens[length:] = SAMPLED_ID
        if shared:
            tokens[:shared] = self._beginning(int(self._workload.prefix[number]))[:shared]
        digits = number % VOCABULARY, number // VOCABULARY
        own = tokens[shared : min(shared + 2, length)]
        own[:] = digits[: len(own)]
        return tokens

    def _beginning(self, prefix: int) -> Integers:
        if prefix not in self._beginnings:
            draw = np.random.default_rng([self._seed, 101, prefix])
            size = self._workload.prefix_tokens
            self._beginnings[prefix] = draw.integers(_SPECIAL, VOCABULARY, size, dtype=np.int64)
        return self._beginnings[prefix]
