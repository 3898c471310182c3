"""`LLM`: a model in this process. Prompts in, completions out, all at once or as they grow."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, cast

from ..ops.manifest import fingerprint, manifest, references
from .engine import Engine
from .errors import RequestError
from .options import Options
from .request import RequestOutput, SamplingParams
from .start import build, decide
from .template import Message
from .tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or {"prompt": text} / {"prompt_token_ids": ids}."""


class LLM:
    """A loaded model with its engine.

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
        self.engine: Engine = build(self.decided)
        self._ids = count()
        self._arrived: dict[str, RequestOutput] = {}
        for line in self.decided.binding.warnings:
            print(f"warning: {line}", file=sys.stderr)

    def get_tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Completes every prompt, batched; one result a prompt, in order.

        sampling_params: one for all, one for each, or None for the defaults. RequestError: nothing has been started.
        """
        listed = _listed(prompts)
        params = _for_each(sampling_params, len(listed))
        encoded = [self._encode(prompt) for prompt in listed]
        ids = self._add_all([(text, tokens, each) for (text, tokens), each in zip(encoded, params, strict=True)])
        try:
            return [self._finished(request_id) for request_id in ids]
        finally:
            self._drop(ids)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Yields the growing result after each step that added to it; leaving the loop early aborts the request."""
        text, tokens = self._encode(prompt)
        (request_id,) = self._add_all([(text, tokens, sampling_params or SamplingParams())])
        try:
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
        own = sorted({"messages", "add_generation_prompt"} & set(chat_template_kwargs or {}))
        if own:
            raise RequestError(f"chat_template_kwargs has {', '.join(own)}: that is an argument of chat itself")
        prompts = [
            self.render(each, add_generation_prompt=add_generation_prompt, **(chat_template_kwargs or {}))  # type: ignore[arg-type]
            for each in conversations
        ]
        return self.generate(prompts, sampling_params)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **kwargs: Any) -> Prompt:
        """A conversation as token ids, by the checkpoint's chat template."""
        tokenizer = self.get_tokenizer()
        text = tokenizer.template.render(messages, add_generation_prompt=add_generation_prompt, **kwargs)
        return {"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}

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

    def _next(self, request_id: str) -> RequestOutput:
        """The request's next result; those of others, whose loops are not at work, wait for them."""
        while request_id not in self._arrived:
            self._arrived |= {output.request_id: output for output in self.engine.step()}
        return self._arrived.pop(request_id)

    def _finished(self, request_id: str) -> RequestOutput:
        while True:
            output = self._next(request_id)
            if output.finished:
                return output

    def _drop(self, request_ids: Sequence[str]) -> None:
        """Ends what still runs of these requests and forgets what came of them."""
        for request_id in request_ids:
            self.engine.abort(request_id)
            self._arrived.pop(request_id, None)

    def _add_all(self, requests: Sequence[tuple[str | None, Sequence[int], SamplingParams]]) -> list[str]:
        added: list[str] = []
        try:
            for text, tokens, params in requests:
                request_id = str(next(self._ids))
                self.engine.add(request_id, tokens, params, text)
                added.append(request_id)
        except RequestError:
            self._drop(added)
            raise
        return added

    def _encode(self, prompt: Prompt) -> tuple[str | None, Sequence[int]]:
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("the prompt is empty: give some text")
            return prompt, self.get_tokenizer().encode(prompt)
        if isinstance(prompt, Mapping):
            if "prompt_token_ids" in prompt:
                return prompt.get("prompt"), _ids(prompt["prompt_token_ids"])
            if isinstance(prompt.get("prompt"), str):
                return self._encode(prompt["prompt"])
            raise RequestError('a prompt object has "prompt" (text) or "prompt_token_ids"')
        return None, _ids(prompt)


def _ids(ids: object) -> list[int]:
    if not isinstance(ids, Sequence) or any(isinstance(each, bool) or not isinstance(each, int) for each in ids):
        raise RequestError("prompt token ids are a list of whole numbers")
    return list(ids)


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
