"""One completion as it grows: text from tokens, log-probabilities, and the rules of text that end it."""

from __future__ import annotations

from collections.abc import Sequence

from .messages import TIMEOUT, Ended
from .request import CompletionOutput, FinishReason, Logprob, SamplingParams
from .stops import StopSearch
from .tokenizer import Tokenizer


class Completion:
    """Takes tokens, keeps a `CompletionOutput`. Text that may yet become a stop string is held back until it cannot.

    eos_ids: of the model; which of them ended a completion is nobody's concern, unless the request named it.
    """

    def __init__(self, index: int, params: SamplingParams, tokenizer: Tokenizer, eos_ids: frozenset[int]) -> None:
        self.output = CompletionOutput(index)
        self._params, self._tokenizer = params, tokenizer
        self._stream = tokenizer.stream(skip_special_tokens=params.skip_special_tokens) if params.detokenize else None
        self._quiet_ids = eos_ids.difference(params.stop_token_ids or ())
        self._search = StopSearch(params.stops) if params.stops else None
        self._text = ""
        if params.logprobs is not None:
            self.output.logprobs, self.output.cumulative_logprob = [], 0.0

    @property
    def finished(self) -> bool:
        return self.output.finish_reason is not None

    @property
    def wants_logprobs(self) -> bool:
        return self._params.logprobs is not None

    def push(self, token_id: int, ended: Ended | None = None) -> None:
        """Takes one token; `ended`: the engine gives no further one. A stop token adds no text."""
        self.output.token_ids.append(token_id)
        if self._stream is not None and not (ended and ended.reason == "stop"):
            self._add_text(token_id)
        if ended is not None and not self.finished:
            self.end(ended)

    def end(self, ended: Ended) -> None:
        """What the engine says of the end."""
        stop_reason: int | str | None = None if ended.stop_id in self._quiet_ids else ended.stop_id
        self.output.message = ended.message
        self._finish(ended.reason, TIMEOUT if ended.message == TIMEOUT else stop_reason)

    def abort(self) -> None:
        self._finish("abort")

    def note(self, token_id: int, logprob: float, top_ids: Sequence[int], top_logprobs: Sequence[float]) -> None:
        """Takes the log-probability of the next token, and the likeliest tokens with theirs."""
        assert self.output.logprobs is not None
        count = self._params.logprobs
        ranked = dict(zip(top_ids[:count], top_logprobs[:count], strict=True))
        # The chosen token's value is one float wherever it appears.
        values = {token_id: logprob} | ranked | {token_id: logprob}
        self.output.logprobs.append({token: Logprob(value, self._spelled(token)) for token, value in values.items()})
        self.output.cumulative_logprob = (self.output.cumulative_logprob or 0.0) + logprob

    def _add_text(self, token_id: int) -> None:
        assert self._stream is not None
        try:
            piece = self._stream.push(token_id)
        except BaseException as error:  # panics of Rust are no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            self.output.message = f"token {token_id} cannot be decoded: {' '.join(str(error).split())}"
            self._finish("error")
            return
        self._text += piece
        self.output.text = self._text if self._search is None else self._certain(self._search, len(piece))

    def _certain(self, search: StopSearch, num_new: int) -> str:
        """The text without what is held back; with a stop string at its end it is over."""
        found = search.push(self._text, num_new)
        if found is None or len(self.output.token_ids) < self._params.min_tokens:
            return self._text[: search.held_from]
        start, stop = found
        self._text = self._text[: start + len(stop) if self._params.include_stop_str_in_output else start]
        self._finish("stop", stop)
        return self._text

    def _finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        self.output.text = self._text
        self.output.finish_reason, self.output.stop_reason = reason, stop_reason

    def _spelled(self, token_id: int) -> str | None:
        return self._tokenizer.token(token_id) if self._stream is not None else None
