"""From what a user hands in as a prompt to token ids. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import RequestError
from .messages import Integers
from .template import Message
from .tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or {"prompt": text} / {"prompt_token_ids": ids}."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt's token ids, as a list and as an array [prompt], and its text where it came as text."""

    token_ids: list[int]
    array: Integers
    text: str | None = None


def encode(prompt: Prompt, tokenizer: Tokenizer) -> Encoded:
    """RequestError: no prompt, or one that is no text or no whole numbers."""
    if isinstance(prompt, Mapping):
        if "prompt_token_ids" in prompt:
            return _encoded(_checked(prompt["prompt_token_ids"]), prompt.get("prompt"))
        if not isinstance(prompt.get("prompt"), str):
            raise RequestError('a prompt object has "prompt" (text) or "prompt_token_ids"')
        prompt = prompt["prompt"]
    if isinstance(prompt, str):
        if not prompt:
            raise RequestError("the prompt is empty: give some text")
        return _encoded(tokenizer.encode(prompt), prompt)
    return _encoded(_checked(prompt))


def render(
    messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True, **kwargs: Any
) -> Prompt:
    """A conversation as a prompt of token ids, by the checkpoint's chat template."""
    text = tokenizer.template.render(messages, add_generation_prompt=add_generation_prompt, **kwargs)
    return {"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}


def _checked(ids: object) -> list[int]:
    if not isinstance(ids, Sequence) or any(isinstance(each, bool) or not isinstance(each, int) for each in ids):
        raise RequestError("prompt token ids are a list of whole numbers")
    return list(ids)


def _encoded(ids: list[int], text: str | None = None) -> Encoded:
    try:
        return Encoded(ids, np.array(ids, dtype=np.int64), text)
    except OverflowError:
        raise RequestError("a prompt token id has more than 63 bits: it is outside the vocabulary") from None
