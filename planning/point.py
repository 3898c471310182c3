"""One operating point of a deployment: so many requests at once, each with so long a prompt and so long an answer.

Requests come and go so that always `batch` of them run, each somewhere between its first and its last token, so at a
context of input + output / 2 on average. A prompt is read in chunks of the token budget beside the others' tokens; what
a chunk adds to a step is its cost, as in `runtime.schedule`. So of B requests with answers of n tokens

    tokens a second = B n / (n t + B c),    time per token = B / that,

t a step that gives each a token, c what a prompt's chunks add. The time to the first token is that of an empty queue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .deployment import Deployment
from .step_time import Breakdown

_MOST_CHUNKS = 256


@dataclass(frozen=True)
class Load:
    """input_len, output_len: tokens of each request."""

    input_len: int = 1000
    output_len: int = 200

    @property
    def longest(self) -> int:
        return self.input_len + self.output_len


@dataclass(frozen=True)
class Point:
    """What is to be expected. tokens_per_s: that are generated. limit: what sets the step, or `memory` where more
    requests would run if their keys had room. decode: a step that gives each request a token."""

    batch: int
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    decode: Breakdown
    limit: str

    def eur_per_million_tokens(self, eur_per_hour: float | None) -> float | None:
        return eur_per_hour / 3600 / self.tokens_per_s * 1e6 if eur_per_hour else None

    def kj_per_million_tokens(self, watts: float | None) -> float | None:
        """At the devices' full power: from above."""
        return watts / self.tokens_per_s * 1e6 / 1e3 if watts else None


def decode_step(deployment: Deployment, batch: int, context: float) -> Breakdown:
    """A step that gives each of `batch` requests at `context` tokens one more."""
    first = np.full(batch, max(int(context) - 1, 0))
    return deployment.step_time.breakdown(first, np.ones(batch, dtype=np.int64), batch)


def prompt_s(deployment: Deployment, input_len: int, others: int, context: float) -> tuple[float, float]:
    """Seconds until a prompt is read beside `others` that decode, and what of them it adds to their steps."""
    budget, first = max(deployment.token_budget - others, 16), 0
    firsts = np.full(others + 1, max(int(context) - 1, 0))
    counts = np.ones(others + 1, dtype=np.int64)
    alone = decode_step(deployment, others, context).seconds if others else 0.0
    total = added = 0.0
    # Of very many chunks every so manieth stands for its neighbours: a chunk's time grows evenly with what lies before.
    stride = -(-input_len // (budget * _MOST_CHUNKS))
    while first < input_len:
        firsts[-1], counts[-1] = first, min(budget, input_len - first)
        is_last = first + stride * counts[-1] >= input_len
        took = deployment.step_time.seconds(firsts, counts, others + int(is_last))
        num_alike = min(stride, -(-(input_len - first) // budget))
        total, added, first = (
            total + num_alike * took,
            added + num_alike * max(took - alone, 0.0),
            first + stride * budget,
        )
    return total, added


def point(deployment: Deployment, batch: int, load: Load, wanted: int | None = None) -> Point:
    """The point of `batch` requests at once. wanted: how many there would be if memory allowed."""
    context = load.input_len + load.output_len / 2
    decode = decode_step(deployment, batch, context)
    ttft_s, added_s = prompt_s(deployment, load.input_len, batch - 1, context)
    tpot_s = decode.seconds + batch * added_s / load.output_len
    is_short = wanted is not None and wanted > batch
    return Point(batch, ttft_s, tpot_s, batch / tpot_s, decode, "memory" if is_short else decode.limit)


def capacity(deployment: Deployment, load: Load) -> int:
    """The most requests of this load at once: by slots, by a token of a step for each, and by pages for each to its
    last token."""
    pages = -(-load.longest // deployment.page_size)
    held = -(-deployment.kv_cache_tokens // deployment.page_size) // pages
    return max(1, min(deployment.max_num_seqs, deployment.token_budget, held))
