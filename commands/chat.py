"""`ambidex chat`: a conversation on a terminal, or one message and its answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..runtime.errors import RequestError
from ..runtime.request import SamplingParams
from . import options
from .generate import pieces, read_prompt
from .session import Session, as_json, load

if TYPE_CHECKING:
    from ..runtime.prompt import Prompt

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


@options.with_engine
def chat(
    engine: dict[str, Any],
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    message: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this one message and end; - reads standard input.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message to begin with.")] = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    verbose: options.Verbose = False,
    as_object: options.AsJson = False,
) -> None:
    """Talk with a model that has a chat template.

    /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer. On a terminal it begins with what
    was decided (elsewhere: --verbose). With --json each answer is one object on a line of its own.
    """
    asked = options.given(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed
    )
    SamplingParams(**asked)  # refused before a model is loaded
    once = None if message is None else read_prompt(message)
    is_talk = once is None and sys.stdin.isatty()
    session = load(options.one_model(model, model_option), engine, verbose=verbose or is_talk)
    conversation = Conversation(session, session.params(asked), system, as_object=as_object)
    if once is None:
        talk(conversation)
    else:
        conversation.ask(once)


class Conversation:
    """The messages so far, and how answers are drawn and shown."""

    def __init__(self, session: Session, params: SamplingParams, system: str | None, *, as_object: bool) -> None:
        self.session, self.params, self.as_object = session, params, as_object
        self.interactive = False
        self._system = [{"role": "system", "content": system}] if system else []
        self.messages: list[Mapping[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        self.messages = [*self._system]

    def ask(self, text: str) -> None:
        """Adds a message and prints its answer. RequestError: the conversation is as it was before."""
        messages = [*self.messages, {"role": "user", "content": text}]
        reply = self._reply(messages)
        self.messages = [*messages, {"role": "assistant", "content": reply}]

    def _reply(self, messages: list[Mapping[str, Any]]) -> str:
        prompt = self.session.llm.render(messages)
        if self.as_object:
            (output,) = self.session.llm.generate(prompt, self.params)
            print(json.dumps(as_json(self.session, output)), flush=True)
            return output.outputs[0].text
        return self._streamed(prompt)

    def _streamed(self, prompt: Prompt) -> str:
        text = ""
        growing = pieces(self.session, prompt, self.params)
        try:
            for output, piece in growing:
                print(piece, end="", flush=True)
                text = output.outputs[0].text
        except KeyboardInterrupt:
            growing.close()
            if not self.interactive:
                raise
            print(" …", end="")
        print(flush=True)
        return text


def talk(conversation: Conversation) -> None:
    """Reads messages until they end."""
    conversation.interactive = True
    if sys.stdin.isatty():
        print(f"{conversation.session.name}. {_HELP}", file=sys.stderr)
    for text in _messages():
        if text == "/reset":
            conversation.reset()
            continue
        try:
            conversation.ask(text)
        except RequestError as error:
            print(f"error: {error}", file=sys.stderr)


def _messages() -> Iterator[str]:
    """What is typed, line by line, without the empty ones; Ctrl-C discards a line."""
    prompt = ""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives `input` its line editing)

        prompt = "> "
    while True:
        try:
            text = input(prompt).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        if text == "/exit":
            return
        if text:
            yield text
