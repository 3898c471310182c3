"""One contender of a comparison, in a process and an environment of its own: JSON lines in, JSON lines out.

    python -P …/bench/contender.py PEER missing                     what the environment lacks
    python -P …/bench/contender.py PEER convert FOLDER CACHE        the checkpoint in the peer's own form
    python -P …/bench/contender.py PEER serve OPTIONS               measures what is asked

This file and those of `peers/` stand alone: the standard library and the peer, nothing of Ambidex, so that any
interpreter can run them. The first line out says what was loaded; then each line in, {"measure": …}, is answered by one
line. An error is a line {"error": …, "exit_code": …}. Peak memory is counted from the moment after the peer's libraries
were imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TextIO

Answer = dict[str, Any]

MISSING_PACKAGE = 12
"""Exit code: `commands.failures` has the others."""


class Measurable(Protocol):
    """What a process serves: each further method is a measure, its arguments those of the request."""

    def loaded(self) -> Answer:
        """What there is to know before the first measurement."""
        ...


class Contender(Measurable, Protocol):
    """A runtime. Prompts are token ids; sampling is greedy; no text ends early."""

    def generate(self, prompts: list[list[int]], output_lens: list[int]) -> Answer:
        """Seconds of one batch, all prompts there from the start.

        {"total_s", "first_s" (until every prompt has its first token), "step_s" (of each step behind it in which every
        prompt got a token), "ids" (the first new token of each prompt)}.
        """
        ...


class Failure(RuntimeError):
    """An error of one line that a user can mend."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def peak_bytes() -> int:
    """The most that was resident in this process so far.

    /proc counts this process alone; `ru_maxrss` may carry the parent's figure through fork and exec.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def load_peer(name: str) -> ModuleType:
    """The file `peers/<name>.py`, a dot written as an underscore. By its path: it has the name of what it imports.

    A peer has NEEDS (module -> the package that brings it), CONTENDER (the class) and, where the peer does not read a
    checkpoint as it is, `convert(folder, target)` with CONVERT_NEEDS.
    """
    path = Path(__file__).with_name("peers") / f"{name.replace('.', '_')}.py"
    spec = importlib.util.spec_from_file_location(f"ambidex_peer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing(name: str, peer: ModuleType) -> str | None:
    """One line: what this interpreter's environment lacks for the peer; None if nothing."""
    needs = {**peer.NEEDS, **getattr(peer, "CONVERT_NEEDS", {})}
    lacking = [package for module, package in needs.items() if not _is_there(module)]
    if not lacking:
        return None
    cure = f"{sys.executable} -m pip install {' '.join(lacking)}"
    return f"{name} is not installed; {cure}, or name another environment's: --compare {name}=PYTHON"


def _is_there(module: str) -> bool:
    """Looks for a.b only where a is: `find_spec` would raise."""
    parent = module.rpartition(".")[0]
    return (not parent or _is_there(parent)) and importlib.util.find_spec(module) is not None


def converted(name: str, peer: ModuleType, folder: Path, cache: Path) -> Path:
    """The checkpoint in the peer's form, made once per content: `cache/<peer>-<digest>`."""
    if not hasattr(peer, "convert"):
        return folder
    target = cache / f"{name}-{_digest(folder)}"
    if not target.is_dir():
        print(f"{name}: the checkpoint is converted into {target}", file=sys.stderr, flush=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            with Path(os.devnull).open("wb") as nowhere:  # pages of warnings; an error is told all the same
                os.dup2(nowhere.fileno(), sys.stderr.fileno())
            peer.convert(folder, partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def serve(make: Callable[[], Measurable], name: str, requests: TextIO, answers: TextIO) -> None:
    """Loads the contender, then measures what is asked until the requests end."""
    base = peak_bytes()
    contender = make()
    _say(answers, {"contender": name, **contender.loaded()})
    for line in requests:
        request = json.loads(line)
        measure = request.pop("measure")
        if measure == "memory":
            _say(answers, {"peak_bytes": peak_bytes() - base, "base_bytes": base})
        else:
            _say(answers, getattr(contender, measure)(**request))


def _say(answers: TextIO, answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def run(work: Callable[[TextIO], None]) -> None:
    """`work` with a stream for answers that nothing else writes to; its error as an answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not break the protocol
    try:
        work(answers)
    except Exception as error:  # noqa: BLE001  (the parent reports it)
        kind = "" if hasattr(error, "exit_code") else f"{type(error).__name__}: "
        _say(answers, {"error": kind + " ".join(str(error).split()), "exit_code": getattr(error, "exit_code", 1)})


def _peer_work(name: str, action: str, arguments: Sequence[str], answers: TextIO) -> None:
    peer = load_peer(name)
    lacking = missing(name, peer)
    if lacking:
        raise Failure(lacking, MISSING_PACKAGE)
    if action == "missing":
        _say(answers, {})
    elif action == "convert":
        _say(answers, {"folder": str(converted(name, peer, Path(arguments[0]), Path(arguments[1])))})
    else:
        for module in peer.NEEDS:
            import_module(module)
        serve(lambda: peer.CONTENDER(json.loads(arguments[0])), name, sys.stdin, answers)


if __name__ == "__main__":
    run(lambda answers: _peer_work(sys.argv[1], sys.argv[2], sys.argv[3:], answers))
