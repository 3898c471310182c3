"""What goes into an engine and what comes out: plain typed values, the same in one process and between two.

A *completion* is one of the n answers to a request; it has a number that its front has chosen. The engine knows
completions by number alone: text, tokenizers and request ids stay with the front. Between processes these structs
travel as msgpack (`process/wire.py`). L rows of a step that were sampled, k likeliest tokens of each.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from .request import SamplingParams

Integers = NDArray[np.int64]
Reals = NDArray[np.float32]
EndReason = Literal["stop", "length", "abort", "error"]

TIMEOUT = "timeout"
"""The message of completions that were aborted at their deadline."""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A request for `params.n` completions, numbered from `number` on.

    prompt_ids: [prompt] token ids. priority: lower is served earlier; waiting makes up for it (`Options.ageing_s`).
    timeout_s: seconds from arrival after which what is not finished is aborted. salt: requests share cached prefixes
    only with those of the same salt (a tenant's).
    """

    number: int
    prompt_ids: Integers
    params: SamplingParams
    priority: int = 0
    timeout_s: float | None = None
    salt: str = ""


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """A completion that gets no further token. stop_id: the stop token that ended it, where one did (end-of-text tokens
    count, and are told apart by the front). message: the cause of `error`, or of an `abort` that nobody asked for."""

    number: int
    reason: EndReason
    stop_id: int | None = None
    message: str | None = None


class Started(msgspec.Struct, frozen=True, array_like=True):
    """A completion that was given a slot, at time_s of the engine's clock. num_cached_tokens: of its prompt, found in
    the prefix cache."""

    number: int
    num_cached_tokens: int
    time_s: float


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """What one step brought: a sampled token of each of the L completions in `numbers`, then what started and ended.

    ids [L]; logprobs [L] under the raw logits; top_ids, top_logprobs [L, k], k the most that any row asked for.
    time_s: the engine's clock. A completion in `ended` may have a last token in this very step: take tokens first.
    """

    time_s: float
    numbers: Integers
    ids: Integers
    logprobs: Reals
    top_ids: Integers
    top_logprobs: Reals
    started: tuple[Started, ...] = ()
    ended: tuple[Ended, ...] = ()


class Limits(msgspec.Struct, frozen=True):
    """What one request may ask of an engine."""

    max_model_len: int
    vocabulary_size: int
    eos_ids: frozenset[int]
    kv_cache_tokens: int
    max_queued: int


class Counters(msgspec.Struct, frozen=True):
    """The engine's state now, and its sums since the start. running, waiting: completions, of which several may be of
    one request. Pages are of all state groups."""

    running: int
    waiting: int
    free_pages: int
    num_pages: int
    cached_pages: int
    steps: int
    preemptions: int
    prompt_tokens: int
    cached_prompt_tokens: int
    sampled_tokens: int
