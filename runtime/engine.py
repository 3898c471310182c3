"""The engine: requests in, tokens out, one step at a time.

`step()` plans, launches and commits. Planning knows integers only (`schedule/`), execution tensors only (`execute/`);
here they meet. What the engine does not know: text of prompts, HTTP, files, vendors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from .completion import Completion, Drawn
from .errors import RequestError
from .execute.worker import Sampled, Worker
from .request import RequestMetrics, RequestOutput, SamplingParams
from .schedule.scheduler import Planned, Scheduled, Scheduler
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Limits:
    """What one request may ask of this engine."""

    max_model_len: int
    vocabulary_size: int
    eos_ids: frozenset[int]


@dataclass(eq=False)
class _Submission:
    """A request as it was added: its n completions, and which of them the scheduler still has."""

    output: RequestOutput
    completions: list[Completion]
    scheduled: list[Scheduled]


class Engine:
    def __init__(
        self,
        scheduler: Scheduler,
        worker: Worker,
        tokenizer: Tokenizer,
        limits: Limits,
        *,
        seed: int = 0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.scheduler, self.worker, self.tokenizer, self.limits = scheduler, worker, tokenizer, limits
        self._seed, self._clock, self._num_added = seed, clock, 0
        self._submissions: dict[str, _Submission] = {}
        self._owner: dict[Scheduled, tuple[_Submission, Completion]] = {}

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def step(self) -> list[RequestOutput]:
        """One pass: what the requests that gained tokens look like now."""
        return self._commit(*self._launch(self.scheduler.schedule()))

    def add(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, prompt: str | None = None
    ) -> None:
        """Queues a request. RequestError: an empty or too long prompt, an id outside the vocabulary, a taken id."""
        self._check(request_id, prompt_ids, params)
        metrics = RequestMetrics(arrival_time=self._clock())
        submission = _Submission(RequestOutput(request_id, prompt, list(prompt_ids), [], False, metrics), [], [])
        for index in range(params.n):
            completion = Completion(index, params, self.tokenizer, self.limits.eos_ids)
            scheduled = self._scheduled(request_id, prompt_ids, params, index)
            submission.completions.append(completion)
            submission.scheduled.append(scheduled)
            submission.output.outputs.append(completion.output)
            self._owner[scheduled] = (submission, completion)
            self.scheduler.add(scheduled)
        self._submissions[request_id] = submission
        self._num_added += 1

    def abort(self, request_id: str) -> RequestOutput | None:
        """Ends a request wherever it is; its last state, or None if it is not here."""
        submission = self._submissions.get(request_id)
        if submission is None:
            return None
        for completion, scheduled in zip(submission.completions, submission.scheduled, strict=True):
            if not completion.finished:
                completion.abort()
                self._retire(scheduled)
        return self._finish(submission)

    def _launch(self, planned: Planned) -> tuple[Planned, Sampled | None]:
        for admitted in planned.admitted:
            metrics = self._owner[admitted][0].output.metrics
            metrics.first_scheduled_time = metrics.first_scheduled_time or self._clock()
        return planned, self.worker.run(planned.step)

    def _commit(self, planned: Planned, sampled: Sampled | None) -> list[RequestOutput]:
        if sampled is None:
            return []
        touched: dict[str, _Submission] = {}
        for scheduled, drawn in zip(planned.sampled, _to_host(sampled), strict=True):
            submission, completion = self._owner[scheduled]
            scheduled.tokens.append(drawn.token_id)
            completion.push(drawn, last=len(scheduled.tokens) >= scheduled.max_length)
            submission.output.metrics.first_token_time = submission.output.metrics.first_token_time or self._clock()
            if completion.finished:
                self._retire(scheduled)
            touched[submission.output.request_id] = submission
        return [self._finish(submission) for submission in touched.values()]

    def _finish(self, submission: _Submission) -> RequestOutput:
        output = submission.output
        if all(completion.finished for completion in submission.completions):
            output.finished, output.metrics.finished_time = True, self._clock()
            del self._submissions[output.request_id]
        return output

    def _retire(self, scheduled: Scheduled) -> None:
        self.scheduler.finish(scheduled)
        del self._owner[scheduled]

    def _scheduled(self, request_id: str, ids: Sequence[int], params: SamplingParams, index: int) -> Scheduled:
        allowed = self._mask(params.allowed_token_ids)
        early = None
        if params.min_tokens:
            early = _without(self._mask(params.allowed_token_ids, everything=True), self._stops(params))
        return Scheduled(
            request_id,
            list(ids),
            len(ids),
            params,
            self._request_seed(params, index),
            min(len(ids) + params.max_tokens, self.limits.max_model_len),
            allowed,
            early,
        )

    def _stops(self, params: SamplingParams) -> set[int]:
        """The ids that end a completion."""
        return set(params.stop_token_ids or ()) | (set() if params.ignore_eos else self.limits.eos_ids)

    def _request_seed(self, params: SamplingParams, index: int) -> int:
        """A request's key: from its own seed where it has one, else from the engine's and its place in the sequence."""
        origin = f"seed {params.seed}" if params.seed is not None else f"engine {self._seed} request {self._num_added}"
        digest = hashlib.sha256(f"{origin} completion {index}".encode()).digest()
        return int.from_bytes(digest[:8], "little", signed=True)

    def _mask(self, allowed: Sequence[int] | None, *, everything: bool = False) -> NDArray[np.int32] | None:
        num_words = -(-self.limits.vocabulary_size // 32)
        if allowed is None:
            return np.full(num_words, -1, dtype=np.int32) if everything else None
        words = np.zeros(num_words, dtype=np.uint32)
        ids = np.array(allowed, dtype=np.int64)
        np.bitwise_or.at(words, ids // 32, (1 << (ids % 32)).astype(np.uint32))
        return words.view(np.int32)

    def _check(self, request_id: str, ids: Sequence[int], params: SamplingParams) -> None:
        limits = self.limits
        if request_id in self._submissions:
            raise RequestError(f"request id {request_id!r} is running: give another")
        if not ids:
            raise RequestError("the prompt is empty: give at least one token")
        if len(ids) >= limits.max_model_len:
            raise RequestError(
                f"the prompt has {len(ids):,} tokens, the context holds {limits.max_model_len:,} including at least "
                "one new token: shorten it, or raise max_model_len if the model and the memory allow"
            )
        named = [*ids, *(params.stop_token_ids or ()), *(params.allowed_token_ids or ())]
        outside = next((token for token in named if not 0 <= token < limits.vocabulary_size), None)
        if outside is not None:
            raise RequestError(f"token id {outside} is outside the vocabulary of {limits.vocabulary_size:,}")
        if params.allowed_token_ids and params.min_tokens and self._stops(params).issuperset(params.allowed_token_ids):
            raise RequestError(
                f"allowed_token_ids are all stop ids, and min_tokens is {params.min_tokens}: nothing could be drawn"
            )
        self._check_pages(min(len(ids) + params.max_tokens, limits.max_model_len))

    def _check_pages(self, length: int) -> None:
        for group, pool in self.scheduler.pools.items():
            needed = self.scheduler.pages_needed(group, length)
            if needed > pool.num_pages:
                size = self.scheduler.page_sizes[group]
                raise RequestError(
                    f"the request may grow to {length:,} tokens, the KV cache holds {pool.num_pages * size:,}: "
                    "lower max_tokens, or give the engine more memory"
                )


def _without(words: NDArray[np.int32] | None, ids: set[int] | frozenset[int]) -> NDArray[np.int32]:
    assert words is not None
    bits = words.view(np.uint32).copy()
    for token in ids:
        bits[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << (token % 32)))
    return bits.view(np.int32)


def _to_host(sampled: Sampled) -> list[Drawn]:
    top_ids, top_logprobs = sampled.top_ids.tolist(), sampled.top_logprobs.tolist()
    rows = zip(sampled.ids.tolist(), sampled.logprobs.tolist(), top_ids, top_logprobs, strict=True)
    return [Drawn(*row) for row in rows]
