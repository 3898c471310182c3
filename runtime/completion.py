"""One completion as it grows: text from tokens, log-probabilities, and the rules that end it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .request import CompletionOutput, FinishReason, Logprob, SamplingParams
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Drawn:
    """One sampled token on the host, with its log-probability and the likeliest tokens."""

    token_id: int
    logprob: float
    top_ids: Sequence[int] = ()
    top_logprobs: Sequence[float] = ()


class Completion:
    """Takes tokens, keeps a `CompletionOutput`. Text that may yet become a stop string is held back until it cannot."""

    def __init__(self, index: int, params: SamplingParams, tokenizer: Tokenizer, eos_ids: frozenset[int]) -> None:
        self.output = CompletionOutput(index)
        self._params, self._tokenizer = params, tokenizer
        self._stream = tokenizer.stream(skip_special_tokens=params.skip_special_tokens)
        self._eos_ids = frozenset[int]() if params.ignore_eos else eos_ids
        self._stop_ids = frozenset(params.stop_token_ids or ())
        self._text = ""
        if params.logprobs is not None:
            self.output.logprobs, self.output.cumulative_logprob = [], 0.0

    @property
    def finished(self) -> bool:
        return self.output.finish_reason is not None

    def push(self, drawn: Drawn, *, last: bool) -> None:
        """Takes one token; `last` means that the length allows no further one."""
        self.output.token_ids.append(drawn.token_id)
        self._note_logprobs(drawn)
        enough = len(self.output.token_ids) >= self._params.min_tokens
        if enough and drawn.token_id in self._stop_ids:
            self._finish("stop", drawn.token_id)
        elif enough and drawn.token_id in self._eos_ids:
            self._finish("stop")
        else:
            self._text += self._stream.push(drawn.token_id)
            self._end_by_text(enough, last)

    def abort(self) -> None:
        self._finish("abort")

    def _end_by_text(self, enough: bool, last: bool) -> None:
        found = self._earliest_stop() if enough else None
        if found is not None:
            start, stop = found
            end = start + len(stop) if self._params.include_stop_str_in_output else start
            self._text = self._text[:end]
            self._finish("stop", stop)
        elif last:
            self._finish("length")
        else:
            self.output.text = self._text[: len(self._text) - self._held_back()]

    def _finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        self.output.text = self._text
        self.output.finish_reason, self.output.stop_reason = reason, stop_reason

    def _earliest_stop(self) -> tuple[int, str] | None:
        found = [(self._text.find(stop), stop) for stop in self._params.stops]
        return min(((start, stop) for start, stop in found if start >= 0), default=None)

    def _held_back(self) -> int:
        """Characters at the end that begin a stop string."""
        longest = 0
        for stop in self._params.stops:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _note_logprobs(self, drawn: Drawn) -> None:
        if self._params.logprobs is None or self.output.logprobs is None:
            return
        count = self._params.logprobs
        ranked = dict(zip(drawn.top_ids[:count], drawn.top_logprobs[:count], strict=True))
        # The chosen token's value is one float wherever it appears.
        values = {drawn.token_id: drawn.logprob, **ranked, drawn.token_id: drawn.logprob}
        entry = {token: Logprob(value, self._tokenizer.token(token)) for token, value in values.items()}
        self.output.logprobs.append(entry)
        self.output.cumulative_logprob = (self.output.cumulative_logprob or 0.0) + drawn.logprob
