"""What is asked of the engine and what comes back, under the names that vLLM's users know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .errors import RequestError
from .fields import shown

FinishReason = Literal["stop", "length", "abort", "error"]

MAX_N = 16
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_LOGPROBS = 20
MAX_STOP_IDS = 64
MAX_ALLOWED_IDS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are drawn, and when it ends. Defaults draw from the model's own distribution.

    n: completions of one prompt. temperature: 0 takes the likeliest token. top_k: 0 is off. seed: same seed, same
    prompt, same parameters: same tokens (at the engine's determinism). stop: strings that end the text and are cut off
    (kept with include_stop_str_in_output). min_tokens: no stop id before so many. logprobs: how many of the likeliest
    tokens to report at each position besides the chosen one. allowed_token_ids: only these may be drawn. detokenize:
    False gives ids without text, for those who read no text.
    RequestError names a field outside its range.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int = 16
    min_tokens: int = 0
    logprobs: int | None = None
    allowed_token_ids: list[int] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _real("repetition_penalty", self.repetition_penalty, 1e-2, 100.0)
        _real("temperature", self.temperature, 0.0, 100.0)
        _real("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _integer("top_k", self.top_k, -1, 1 << 31)
        _real("min_p", self.min_p, 0.0, 1.0)
        _integer("max_tokens", self.max_tokens, 1, 1 << 31)
        _integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        self._check_flags()
        if self.seed is not None:
            _integer("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids is empty: name at least one token, or leave it out")
        self._check_ids()
        if not isinstance(self.stop, (str, list, tuple, type(None))):
            raise RequestError(f"stop is {shown(self.stop)}: it must be a string or a list of strings")
        _check_stops(self.stops)
        if self.stops and not self.detokenize:
            raise RequestError("stop strings are found in the text, and detokenize=False makes none: leave one out")

    def _check_flags(self) -> None:
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "detokenize"):
            if type(getattr(self, name)) is not bool:
                raise RequestError(f"{name} is {shown(getattr(self, name))}: it must be true or false")

    def _check_ids(self) -> None:
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("allowed_token_ids", self.allowed_token_ids)):
            if not isinstance(ids, (list, tuple, type(None))):
                raise RequestError(f"{name} is {shown(ids)}: it must be a list of token ids")
            most = MAX_STOP_IDS if name == "stop_token_ids" else MAX_ALLOWED_IDS
            if len(ids or ()) > most:
                raise RequestError(f"{name} has {len(ids or ()):,} ids: at most {most:,} are taken")
            for token in ids or ():
                _integer(name, token, 0, 1 << 31)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def penalized(self) -> bool:
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    @property
    def filtered(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{name} is {shown(value)}: it must be a whole number from {low} to {high}")


def _real(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)  # NaN lies in no range
    if not number or not (low < value if open_low else low <= value) or not value <= high:  # type: ignore[operator]
        above = "above" if open_low else "from"
        raise RequestError(f"{name} is {shown(value)}: it must be a number {above} {low:g} to {high:g}")


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise RequestError(f"stop has {len(stops)} strings: at most {MAX_STOPS} are taken")
    for stop in stops:
        if not isinstance(stop, str):
            raise RequestError(f"stop holds {shown(stop)}: it must be a string or a list of strings")
        if not stop or len(stop) > MAX_STOP_CHARACTERS:
            raise RequestError(
                f"stop has a string of {len(stop)} characters: from 1 to {MAX_STOP_CHARACTERS} are taken"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in stop):
            raise RequestError("stop holds lone surrogates: it must be text that UTF-8 can hold")


@dataclass(frozen=True)
class Logprob:
    """A token's log-probability under the raw logits, and its text (None without `detokenize`)."""

    logprob: float
    decoded_token: str | None


@dataclass
class CompletionOutput:
    """One of the n completions. logprobs: for each token, the chosen and the likeliest ones by token id.

    stop_reason: the stop string or stop token that ended it, `timeout` where its time was over. message: the cause of
    finish_reason `error`, or of an `abort` that nobody asked for.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    message: str | None = None


@dataclass
class RequestMetrics:
    """Times of a request in seconds on the engine's clock; None before the event."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass
class RequestOutput:
    """A request as its user sees it: final when `finished`, else what there is so far.

    num_cached_tokens: of the prompt, found in the prefix cache when the request was first scheduled.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    num_cached_tokens: int = 0
