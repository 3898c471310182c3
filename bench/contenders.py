"""Contenders side by side: Ambidex, its peers and the machine's own limits, each in a process of its own.

They are asked in turn, repetition by repetition (A B, A B, …), so that what disturbs the machine disturbs all. A peer
is a file of `peers/`; it runs under the interpreter of the environment that has it, and gets the weights, ids, dtype
and threads that Ambidex settled on.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..runtime.errors import AmbidexError

_SCRIPT = Path(__file__).with_name("contender.py")


class ContenderFailed(AmbidexError):
    """A contender ended with an error; carries its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def peer_names() -> list[str]:
    """The files of `peers/`; a name's dot is an underscore there."""
    return sorted(path.stem.replace("_", ".") for path in (_SCRIPT.parent / "peers").glob("*.py"))


@dataclass(frozen=True)
class Peer:
    """Another runtime, and the interpreter of the environment that has it."""

    name: str
    python: str = sys.executable

    @classmethod
    def parse(cls, text: str) -> Peer:
        """`NAME` or `NAME=PYTHON`. ValueError: no such peer, or no such interpreter."""
        name, equals, python = text.partition("=")
        if name not in peer_names():
            raise ValueError(f"{name} is not known: there are {', '.join(peer_names())}")
        if equals and not os.access(python, os.X_OK):
            raise ValueError(
                f"{python or 'nothing'} is not an interpreter that can be run, as in {name}=/env/bin/python"
            )
        return cls(name, python or sys.executable)

    def check(self) -> None:
        """ContenderFailed: its environment lacks a package; the line says what to install."""
        self._ask("missing")

    def converted(self, folder: str) -> str:
        """The folder of the checkpoint in this peer's form; kept for the next time."""
        return str(self._ask("convert", folder, str(cache_folder()))["folder"])

    def command(self, action: str, *arguments: str) -> list[str]:
        return [self.python, "-P", str(_SCRIPT), self.name, action, *arguments]

    def _ask(self, action: str, *arguments: str) -> dict[str, Any]:
        with Process(self.name, self.command(action, *arguments)) as process:
            return process.loaded


def cache_folder() -> Path:
    """Where converted checkpoints are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ambidex" / "converted"


class Process:
    """A contender's process: asked by a JSON line, answering by one. `loaded` is its first answer."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise ContenderFailed(f"{name}: {command[0]} cannot be run: {error.strerror}", 2) from error
        try:
            self.loaded = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, measure: str, **request: Any) -> dict[str, Any]:
        print(json.dumps({"measure": measure, **request}), file=_stream(self._process.stdin), flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            _stream(stream).close()

    def _answer(self) -> dict[str, Any]:
        line = _stream(self._process.stdout).readline()
        if not line:
            raise ContenderFailed(f"{self.name} ended without an answer (exit status {self._process.wait()})", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderFailed(f"{self.name}: {answer['error']}", answer["exit_code"])
        return answer


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@dataclass(frozen=True)
class Together:
    """What runs side by side: `ours` first among the contenders, and the machine's limits."""

    contenders: tuple[Process, ...]
    limits: Process

    @property
    def ours(self) -> Process:
        return self.contenders[0]


@contextmanager
def together(options: Mapping[str, Any], peers: Sequence[Peer], *, input_len: int) -> Iterator[Together]:
    """Ambidex (options: see `ambidex`), its peers, and the limits of a prompt of `input_len` tokens."""
    with ExitStack() as stack:

        def start(name: str, command: Sequence[str]) -> Process:
            return stack.enter_context(Process(name, command))

        ours = stack.enter_context(ambidex(options))
        same = {name: ours.loaded[name] for name in ("dtype", "threads", "device", "place")}
        limits = start("limits", _module("limits", {**same, "products": products(ours.loaded, input_len)}))
        sizes = {name: options[name] for name in ("max_model_len", "max_num_seqs", "kv_cache_tokens")}
        folder = ours.loaded["folder"]
        others = [
            start(peer.name, peer.command("serve", json.dumps(
                {"model": peer.converted(folder), "input_len": input_len, **same, **sizes}
            )))
            for peer in peers
        ]  # fmt: skip
        yield Together((ours, *others), limits)


def products(loaded: Mapping[str, Any], rows: int) -> list[list[int]]:
    """[rows, outputs, inputs, how many] of a prompt's products: those of the layers, and the head for one row."""
    return [*([rows, *each] for each in loaded["products"]), [1, *loaded["head"], 1]]


def ambidex(options: Mapping[str, Any]) -> Process:
    """Ambidex alone. options: arguments of `LLM`, `roofline_steps`, `threads`."""
    return Process("ambidex", _module("ambidex_contender", options))


def _module(name: str, options: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.{name}", json.dumps(options)]


def prompt_ids(lengths: Sequence[int], vocabulary_size: int, seed: int | str) -> list[list[int]]:
    """The same ids for every contender."""
    draw = random.Random(seed)
    return [draw.choices(range(vocabulary_size), k=length) for length in lengths]
