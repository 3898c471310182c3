"""`ambidex generate`: a prompt in, its completion out."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..runtime.errors import RequestError
from ..runtime.request import RequestOutput, SamplingParams
from . import options
from .prediction import beside
from .session import Session, as_json, facts, load

if TYPE_CHECKING:
    from ..runtime.prompt import Prompt


@options.with_engine
def generate(
    engine: dict[str, Any],
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt; - reads standard input.")],
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text. Repeatable.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", metavar="N", help="Completions of the prompt.")] = 1,
    logprobs: Annotated[
        int | None, typer.Option(metavar="N", help="Log-probabilities of the N likeliest tokens (with --json).")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on behind the model's end of text.")] = False,
    verbose: options.Verbose = False,
    as_object: options.AsJson = False,
) -> None:
    """Complete a prompt.

    Standard output gets the text as it is drawn and nothing else; standard error ends with one line of facts: device,
    profile, hash of the kernels' manifest, tokens a second, share of the memory roofline.
    """
    asked = options.given(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, stop=stop,
        n=n, logprobs=logprobs, ignore_eos=ignore_eos or None,
    )  # fmt: skip
    SamplingParams(**asked)  # refused before a model is loaded
    if logprobs is not None and not as_object:
        raise typer.BadParameter("log-probabilities are printed with --json", param_hint="--logprobs")
    text = read_prompt(prompt)
    session = load(options.one_model(model, model_option), engine, verbose=verbose)
    output = answer(session, text, session.params(asked), as_object=as_object)
    if verbose:
        print("\n".join(beside(session, output)), file=sys.stderr)


def read_prompt(given: str) -> str:
    """The prompt's text. RequestError: an empty one, or bytes that are no text."""
    try:
        text = sys.stdin.read() if given == "-" else given
    except UnicodeDecodeError:
        raise RequestError("standard input is not UTF-8 text: convert it first") from None
    if not text:
        raise RequestError("the prompt is empty: give some text")
    return text


def answer(session: Session, prompt: Prompt, params: SamplingParams, *, as_object: bool) -> RequestOutput:
    """Runs one prompt and prints it as its user asked: streamed text, all completions, or one object."""
    if as_object:
        (output,) = session.llm.generate(prompt, params)
        print(json.dumps(as_json(session, output)))
        return output
    if params.n > 1:
        (output,) = session.llm.generate(prompt, params)
        print("\n\n".join(each.text for each in output.outputs))
    else:
        output = stream(session, prompt, params)
    print(facts(session, output).line(), file=sys.stderr)
    return output


def stream(session: Session, prompt: Prompt, params: SamplingParams) -> RequestOutput:
    """Prints the text as it grows, then a line's end if it has none; the finished request."""
    output: RequestOutput | None = None
    for growing, piece in pieces(session, prompt, params):
        output = growing
        print(piece, end="", flush=True)
    assert output is not None
    if not output.outputs[0].text.endswith("\n"):
        print(flush=True)
    return output


def pieces(
    session: Session, prompt: Prompt, params: SamplingParams
) -> Generator[tuple[RequestOutput, str], None, None]:
    """The growing request and the text that came with each step."""
    num_shown = 0
    for output in session.llm.stream(prompt, params):
        text = output.outputs[0].text
        yield output, text[num_shown:]
        num_shown = len(text)
