"""`LLM`: a model in this process. Prompts in, completions out, all at once or as they grow."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any, cast

from ..ops.manifest import fingerprint, manifest, references
from .build import build_measured
from .describe import summary
from .errors import RequestError
from .front import Front
from .options import Options
from .prompt import Encoded, Prompt, encode, render
from .request import RequestOutput, SamplingParams
from .start import decide
from .template import Message
from .tokenizer import Tokenizer

_LOG = logging.getLogger("ambidex")


class LLM:
    """A loaded model with its engine. What was decided at its start goes to the logger `ambidex`, at INFO.

    model: a folder in Hugging Face layout, a hub id, or None for the model that is shipped inside the package.
    Keyword arguments are the fields of `runtime.options.Options`, under vLLM's names where vLLM has them.

    >>> llm = LLM()
    >>> llm.generate("def add(a, b):", SamplingParams(temperature=0, max_tokens=16))[0].outputs[0].text

    Errors: those of `runtime.errors` (a user's to mend, one line each), `BindingError`, `ProfileError`.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        unknown = sorted(set(options) - set(Options.__dataclass_fields__))
        if unknown:
            known = ", ".join(sorted(set(Options.__dataclass_fields__) - {"model"}))
            raise TypeError(f"LLM has no argument {', '.join(unknown)}: there are {known}")
        self.decided = decide(Options(model=model, **options))
        for line in self.decided.binding.warnings:
            _LOG.warning("%s", line)
        _LOG.info("%s", summary(self.decided))
        tokenizer = Tokenizer(self.decided.folder)
        self.engine, self.holdings = build_measured(self.decided)
        self._front = Front(tokenizer, self.engine.limits, self.decided.backend.clock)
        self._ids = count()
        self._arrived: dict[str, RequestOutput] = {}

    def get_tokenizer(self) -> Tokenizer:
        return self._front.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Completes every prompt, batched; one result a prompt, in order.

        sampling_params: one for all, one for each, or None for the defaults. priority: one for each, the lower the
        earlier. RequestError: nothing has been started.
        """
        listed = _listed(prompts)
        params = _for_each(sampling_params, len(listed))
        priorities = _priorities(priority, len(listed))
        encoded = [encode(prompt, self.get_tokenizer()) for prompt in listed]
        ids = [str(next(self._ids)) for _ in listed]
        try:
            self._submit(zip(ids, encoded, params, priorities, strict=True))
            return [self._finished(request_id) for request_id in ids]
        finally:
            self._drop(ids)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Yields the growing result after each step that added to it; leaving the loop early aborts the request."""
        encoded = encode(prompt, self.get_tokenizer())
        request_id = str(next(self._ids))
        try:
            self._submit([(request_id, encoded, sampling_params or SamplingParams(), 0)])
            while True:
                output = self._next(request_id)
                finished = output.finished  # it grows on while the caller looks at it and steps for others
                yield output
                if finished:
                    return
        finally:
            self._drop([request_id])

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Like `generate`, on conversations: a list of {"role", "content"} messages, or a list of such lists."""
        conversations = [messages] if _is_conversation(messages) else messages
        own = sorted({"messages", "tokenizer", "add_generation_prompt"} & set(chat_template_kwargs or {}))
        if own:
            raise RequestError(f"chat_template_kwargs has {', '.join(own)}: that is an argument of chat itself")
        prompts = [
            self.render(each, add_generation_prompt=add_generation_prompt, **(chat_template_kwargs or {}))  # type: ignore[arg-type]
            for each in conversations
        ]
        return self.generate(prompts, sampling_params)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **kwargs: Any) -> Prompt:
        """A conversation as token ids, by the checkpoint's chat template."""
        return render(messages, self.get_tokenizer(), add_generation_prompt=add_generation_prompt, **kwargs)

    def manifest(self) -> dict[str, Any]:
        """Which kernel serves each site, who was refused and why."""
        return manifest(self.decided.binding)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.decided.binding)

    @property
    def reference_sites(self) -> list[str]:
        """Sites that no kernel serves here."""
        return references(self.decided.binding)

    def _submit(self, requests: Iterable[tuple[str, Encoded, SamplingParams, int]]) -> None:
        """RequestError: one cannot be served; those before it are under way."""
        with _whole_steps():
            for request_id, prompt, params, priority in requests:
                submission = self._front.open(request_id, prompt, params, priority=priority)
                while self.engine.scheduler.waiting.num_requests >= self.engine.limits.max_queued:
                    self._step()  # whoever waits here is the one who would be told to come again
                self.engine.submit(submission)

    def _next(self, request_id: str) -> RequestOutput:
        """The request's next result; those of others, whose loops are not at work, wait for them."""
        while request_id not in self._arrived:
            self._step()
        return self._arrived.pop(request_id)

    def _step(self) -> None:
        with _whole_steps():
            outputs, ended = self._front.take(self.engine.step())
            self.engine.abort(ended)
            self._arrived |= {output.request_id: output for output in outputs}

    def _finished(self, request_id: str) -> RequestOutput:
        while True:
            output = self._next(request_id)
            if output.finished:
                return output

    def _drop(self, request_ids: Sequence[str]) -> None:
        """Ends what still runs of these requests and forgets what came of them; without others the engine rests."""
        for request_id in request_ids:
            self.engine.abort(self._front.abort(request_id))
            self._arrived.pop(request_id, None)
        while not len(self._front) and self.engine.has_work:
            self._step()


@contextmanager
def _whole_steps() -> Iterator[None]:
    """Ctrl-C waits for the end of a step, for half a step would leave tokens and pages that belong to nobody.

    A second Ctrl-C does not wait.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed: list[FrameType | None] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(frame)
        if len(pressed) > 1:
            before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        before(signal.SIGINT, pressed[0])


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several as a list: a list of whole numbers is one prompt."""
    one = isinstance(prompts, (str, Mapping)) or (len(prompts) > 0 and isinstance(prompts[0], int))
    return cast("list[Prompt]", [prompts] if one else list(prompts))


def _is_conversation(messages: Sequence[Any]) -> bool:
    return not messages or isinstance(messages[0], Mapping)


def _for_each(params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise RequestError(f"{len(params)} sampling_params for {num_prompts} prompts: give one, or one for each")
    return list(params)


def _priorities(given: Sequence[int] | None, num_prompts: int) -> list[int]:
    if given is None:
        return [0] * num_prompts
    if len(given) != num_prompts or any(type(each) is not int for each in given):
        raise RequestError(f"priority is a list of {num_prompts} whole numbers, one for each prompt")
    return list(given)
