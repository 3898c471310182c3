"""From a submission to what the scheduler keeps of it: limits checked, seeds drawn, masks made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .messages import Limits, Submission
from .request import SamplingParams
from .schedule.prefix import root_key
from .schedule.request import Scheduled

Words = NDArray[np.int32]

_MAX_PRIORITY = 1 << 31


class Intake:
    """model: names the weights, for the prefix cache. longest: tokens that each state group's whole pool holds.
    ageing_s: seconds of waiting that make up for one step of priority."""

    def __init__(self, limits: Limits, *, model: str, seed: int, ageing_s: float, longest: Mapping[str, int]) -> None:
        self._limits, self._model, self._seed = limits, model, seed
        self._ageing_s, self._longest = ageing_s, dict(longest)
        self._arrivals = count()

    def take(self, submission: Submission, now_s: float) -> list[Scheduled]:
        """Its completions, the first leading the others. RequestError: an empty or too long prompt, an id outside the
        vocabulary, nothing to draw."""
        self._check(submission)
        params, prompt = submission.params, submission.prompt_ids.astype(np.int32)
        length = min(len(prompt) + params.max_tokens, self._limits.max_model_len)
        stops = self._stops(params)
        allowed, early = self._mask(params.allowed_token_ids), None
        if params.min_tokens:
            early = _without(self._mask(params.allowed_token_ids, everything=True), stops)
        arrival, root = next(self._arrivals), root_key(self._model, "", submission.salt)
        completions = [
            Scheduled(
                number=submission.number + index,
                tokens=prompt,
                prompt_length=len(prompt),
                params=params,
                seed=self._request_seed(params, arrival, index),
                max_length=length,
                rank=(now_s + submission.priority * self._ageing_s, submission.number + index),
                priority=submission.priority,
                request=submission.number,
                stop_ids=tuple(sorted(stops)),
                root=root,
                allowed=allowed,
                allowed_early=early,
            )
            for index in range(params.n)
        ]
        for follower in completions[1:]:
            follower.leader = completions[0]
        return completions

    def _stops(self, params: SamplingParams) -> set[int]:
        """The ids that end a completion."""
        return set(params.stop_token_ids or ()) | (set() if params.ignore_eos else self._limits.eos_ids)

    def _request_seed(self, params: SamplingParams, arrival: int, index: int) -> int:
        """A completion's key: from the request's own seed where it has one, else from the engine's and its arrival."""
        origin = f"seed {params.seed}" if params.seed is not None else f"engine {self._seed} request {arrival}"
        digest = hashlib.sha256(f"{origin} completion {index}".encode()).digest()
        return int.from_bytes(digest[:8], "little", signed=True)

    def _mask(self, allowed: Sequence[int] | None, *, everything: bool = False) -> Words | None:
        num_words = -(-self._limits.vocabulary_size // 32)
        if allowed is None:
            return np.full(num_words, -1, dtype=np.int32) if everything else None
        words = np.zeros(num_words, dtype=np.uint32)
        ids = np.array(allowed, dtype=np.int64)
        np.bitwise_or.at(words, ids // 32, (1 << (ids % 32)).astype(np.uint32))
        return words.view(np.int32)

    def _check(self, submission: Submission) -> None:
        ids, params, limits = submission.prompt_ids, submission.params, self._limits
        if ids.ndim != 1 or not len(ids):
            raise RequestError("the prompt is empty: give at least one token")
        if len(ids) >= limits.max_model_len:
            raise RequestError(
                f"the prompt has {len(ids):,} tokens, the context holds {limits.max_model_len:,} including at least "
                "one new token: shorten it, or raise max_model_len if the model and the memory allow"
            )
        named = np.concatenate([ids, np.array([*(params.stop_token_ids or ()), *(params.allowed_token_ids or ())])])
        outside = named[(named < 0) | (named >= limits.vocabulary_size)]
        if len(outside):
            raise RequestError(f"token id {int(outside[0])} is outside the vocabulary of {limits.vocabulary_size:,}")
        if params.allowed_token_ids and params.min_tokens and self._stops(params).issuperset(params.allowed_token_ids):
            raise RequestError(
                f"allowed_token_ids are all stop ids, and min_tokens is {params.min_tokens}: nothing could be drawn"
            )
        if abs(submission.priority) > _MAX_PRIORITY:
            raise RequestError(f"the priority must be a whole number from -{_MAX_PRIORITY:,} to {_MAX_PRIORITY:,}")
        if submission.timeout_s is not None and not submission.timeout_s > 0:
            raise RequestError(f"timeout_s is {submission.timeout_s!r}: it must be a number of seconds above 0")
        length = min(len(ids) + params.max_tokens, limits.max_model_len)
        held = min(self._longest.values())
        if length > held:
            raise RequestError(
                f"the request may grow to {length:,} tokens, the KV cache holds {held:,}: "
                "lower max_tokens, or give the engine more memory"
            )


def _without(words: Words | None, ids: set[int]) -> Words:
    assert words is not None
    bits = words.view(np.uint32).copy()
    for token in ids:
        bits[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << (token % 32)))
    return bits.view(np.int32)
