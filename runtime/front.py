"""Between users and an engine: requests become submissions, an engine's progress becomes growing outputs.

The engine knows completions by number; here are the request ids, texts and stop strings that belong to the numbers. A
front serves one engine, in its process or in another, from one thread; whatever it does to a completion, a failing
tokenizer included, no other completion sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .completion import Completion
from .errors import RequestError
from .messages import Limits, Progress, Submission
from .prompt import Encoded
from .request import RequestMetrics, RequestOutput, SamplingParams
from .tokenizer import Tokenizer

_MAX_PRIORITY = 100
"""Either way: what a quarter of an hour of waiting makes up for, at the usual `ageing_s`."""


@dataclass(eq=False, slots=True)
class _Request:
    """A request under way: its completions by number; those that have ended are not there any more."""

    output: RequestOutput
    live: dict[int, Completion]


class Front:
    """clock: seconds, the same as the engine's `Progress.time_s`."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits, clock: Callable[[], float]) -> None:
        self.tokenizer, self.limits, self._clock = tokenizer, limits, clock
        self._next_number = 0
        self._requests: dict[str, _Request] = {}
        self._owner: dict[int, _Request] = {}

    def __len__(self) -> int:
        """How many requests are under way."""
        return len(self._requests)

    def open(
        self,
        request_id: str,
        prompt: Encoded,
        params: SamplingParams,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        salt: str = "",
    ) -> Submission:
        """What to submit for a request, which is under way from now on. RequestError: its id is taken."""
        _check(priority, timeout_s, salt)
        if request_id in self._requests:
            raise RequestError(f"request id {request_id!r} is running: give another")
        number, self._next_number = self._next_number, self._next_number + params.n
        completions = [Completion(index, params, self.tokenizer, self.limits.eos_ids) for index in range(params.n)]
        request = _Request(
            RequestOutput(
                request_id, prompt.text, prompt.token_ids, [each.output for each in completions],
                finished=False, metrics=RequestMetrics(arrival_time=self._clock()),
            ),
            {number + index: completion for index, completion in enumerate(completions)},
        )  # fmt: skip
        self._requests[request_id] = request
        self._owner.update(dict.fromkeys(request.live, request))
        return Submission(
            number=number, prompt_ids=prompt.array, params=params, priority=priority, timeout_s=timeout_s, salt=salt
        )

    def output(self, request_id: str) -> RequestOutput:
        """The growing result of a request that is under way."""
        return self._requests[request_id].output

    def take(self, progress: Progress) -> tuple[list[RequestOutput], list[int]]:
        """The requests that gained something, and the numbers that the engine is to abort: their text has ended."""
        ended = {each.number: each for each in progress.ended}
        touched: dict[str, _Request] = {}
        done: list[int] = []
        for started in progress.started:
            self._note_start(started.number, started.num_cached_tokens, started.time_s)
        for row, (number, token_id) in enumerate(zip(progress.numbers.tolist(), progress.ids.tolist(), strict=True)):
            request = self._owner.get(number)
            if request is None:
                continue  # its text had ended before the engine heard of it
            completion = request.live[number]
            if completion.wants_logprobs:
                top_ids, top_logprobs = progress.top_ids[row].tolist(), progress.top_logprobs[row].tolist()
                completion.note(token_id, float(progress.logprobs[row]), top_ids, top_logprobs)
            completion.push(token_id, ended.get(number))
            touched[request.output.request_id] = request
            if completion.finished:
                self._retire(number)
                done.append(number)
        self._note_first_tokens(touched, progress.time_s)
        for number in (each for each in ended if each in self._owner):  # ends that came without a token
            request = self._owner[number]
            request.live[number].end(ended[number])
            touched[request.output.request_id] = request
            self._retire(number)
        outputs = [self._close(request, progress.time_s) for request in touched.values()]
        return outputs, [number for number in done if number not in ended]

    def abort(self, request_id: str) -> list[int]:
        """Ends a request now; the numbers that the engine is to abort, none if the request is not under way."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        numbers = list(request.live)
        for number in numbers:
            request.live[number].abort()
            self._retire(number)
        self._close(request, self._clock())
        return numbers

    def _note_start(self, number: int, num_cached_tokens: int, time_s: float) -> None:
        request = self._owner.get(number)
        if request is not None and request.output.metrics.first_scheduled_time is None:
            request.output.metrics.first_scheduled_time = time_s
            request.output.num_cached_tokens = num_cached_tokens

    def _note_first_tokens(self, touched: dict[str, _Request], time_s: float) -> None:
        for request in touched.values():
            if request.output.metrics.first_token_time is None:
                request.output.metrics.first_token_time = time_s

    def _retire(self, number: int) -> None:
        del self._owner.pop(number).live[number]

    def _close(self, request: _Request, time_s: float) -> RequestOutput:
        output = request.output
        if not request.live:
            output.finished, output.metrics.finished_time = True, time_s
            del self._requests[output.request_id]
        return output


def _check(priority: object, timeout_s: object, salt: object) -> None:
    """What the wire could not carry is refused here, where it harms one request."""
    if type(priority) is not int or abs(priority) > _MAX_PRIORITY:
        raise RequestError(
            f"priority is {priority!r}: it must be a whole number from -{_MAX_PRIORITY} to {_MAX_PRIORITY}"
        )
    if timeout_s is not None and (isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float))):
        raise RequestError(f"timeout_s is {timeout_s!r}: it must be a number of seconds")
    if not isinstance(salt, str) or any(0xD800 <= ord(letter) <= 0xDFFF for letter in salt):
        raise RequestError("salt must be text that UTF-8 can write")
