"""Chat templates: the one place that renders a checkpoint's jinja2 text, in the immutable sandbox.

A template is hostile input: it sees the messages, the special tokens' texts and an allow-list of keyword arguments, and
no attribute that leads out. The environment is Hugging Face's: trimmed blocks, loop controls, `tojson` without HTML
escapes, `raise_exception`, `strftime_now`, the `generation` tag.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import CheckpointCorrupt, RequestError

ALLOWED_KWARGS = frozenset({"enable_thinking", "thinking", "tools", "documents", "reasoning_effort", "date_string"})
"""Keyword arguments that a request may hand to a template."""

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_COMPLAINT_CHARACTERS = 300

Message = Mapping[str, Any]


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks the assistant's text for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return caller()


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class ChatTemplate:
    """A checkpoint's template; `source` is None where it has none."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        self.source, self._special_tokens = source, special_tokens

    @classmethod
    def read(cls, folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate:
        """From chat_template.jinja, else from tokenizer_config.json (a text, or a list of named ones: `default`)."""
        path = folder / "chat_template.jinja"
        source = _text(path) if path.is_file() else tokenizer_config.get("chat_template")
        if isinstance(source, list):
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        tokens = {name: _token_text(tokenizer_config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
        return cls(source if isinstance(source, str) else None, tokens)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **kwargs: Any) -> str:
        """The prompt's text. RequestError: no template, a kwarg off the allow-list, or the template's own complaint."""
        if self.source is None:
            raise RequestError(
                "this model has no chat template: use generate, or add chat_template.jinja to its folder"
            )
        if len(self.source) > MAX_TEMPLATE_CHARACTERS:
            raise RequestError(
                f"the chat template has {len(self.source):,} characters: {MAX_TEMPLATE_CHARACTERS:,} at most"
            )
        unknown = sorted(set(kwargs) - ALLOWED_KWARGS)
        if unknown:
            raise RequestError(
                f"chat template argument {', '.join(unknown)} is not allowed: {', '.join(sorted(ALLOWED_KWARGS))} are"
            )
        try:
            template = _environment().from_string(self.source)
            return template.render(
                messages=check_messages(messages),
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
                **kwargs,
            )
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001  (a template is foreign code: it may raise anything)
            raise RequestError(f"the chat template refuses these messages: {_short(error)}") from None


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as plain dicts with `role` and `content`; RequestError names the first that is not one."""
    if not messages:
        raise RequestError("there are no messages: give at least one {'role': 'user', 'content': …}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"message {index} has no role: give {{'role': 'user', 'content': …}}")
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise RequestError(f"message {index} has a content of {type(message.get('content')).__name__}: give text")
    return [dict(message) for message in messages]


def _text(path: Path) -> str:
    """A template's text. CheckpointCorrupt: longer than any template, or bytes that are no text."""
    if path.stat().st_size > 4 * MAX_TEMPLATE_CHARACTERS:
        raise CheckpointCorrupt(f"{path} is {path.stat().st_size:,} bytes long, more than any chat template")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointCorrupt(f"{path} is not UTF-8 text: copy the file again") from None


def _short(error: Exception) -> str:
    """A template writes its own complaint, as long as it likes."""
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_COMPLAINT_CHARACTERS else f"{text[:MAX_COMPLAINT_CHARACTERS]}…"


def _token_text(token: Any) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
