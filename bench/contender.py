"""One contender of a comparison, in a process of its own: JSON lines in, JSON lines out.

    python -m ambidex.bench.contender ambidex '{"model": null, …}'

The first line out says what was loaded; then each line in, {"measure": …}, is answered by one line. An error is a line
{"error": …, "exit_code": …}. Peak memory is counted from the moment after `import torch`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

Answer = dict[str, Any]


class Contender(Protocol):
    """What is measured. Prompts are token ids; sampling is greedy; no text ends early."""

    def loaded(self) -> Answer:
        """What there is to know before the first measurement."""
        ...

    def generate(self, prompts: list[list[int]], num_tokens: int) -> Answer:
        """Seconds of one batch: {"total_s", "first_s" (to the first tokens), "step_s" (of each step behind them)}."""
        ...

    def bandwidth_gb_per_s(self) -> float | None:
        """What the device reads a second, measured now; None where this contender does not measure it."""
        ...


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


def prompt_ids(num_prompts: int, length: int, vocabulary_size: int, seed: int) -> list[list[int]]:
    """The same ids for every contender."""
    draw = random.Random(seed)
    return [[draw.randrange(vocabulary_size) for _ in range(length)] for _ in range(num_prompts)]


def serve(name: str, options: Mapping[str, Any], requests: TextIO, answers: TextIO) -> None:
    """Loads the contender, then measures what is asked until the requests end."""
    import torch

    base = peak_bytes()
    contender = _make(name, options)
    loaded = {"contender": name, "torch": torch.__version__, "threads": torch.get_num_threads(), **contender.loaded()}
    _say(answers, loaded)
    for line in requests:
        _say(answers, _measure(contender, json.loads(line), loaded["vocabulary_size"], base))


def _make(name: str, options: Mapping[str, Any]) -> Contender:
    if name == "ambidex":
        from .ambidex_contender import AmbidexContender

        return AmbidexContender(options)
    from .transformers_contender import TransformersContender

    return TransformersContender(options)


def _measure(contender: Contender, request: Mapping[str, Any], vocabulary_size: int, base_bytes: int) -> Answer:
    if request["measure"] == "memory":
        return {"peak_bytes": peak_bytes() - base_bytes, "base_bytes": base_bytes}
    if request["measure"] == "bandwidth":
        return {"read_bandwidth_gb_per_s": contender.bandwidth_gb_per_s()}
    prompts = prompt_ids(request["batch_size"], request["input_len"], vocabulary_size, request["seed"])
    return contender.generate(prompts, request["output_len"])


def _say(answers: TextIO, answer: Answer) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not break the protocol
    try:
        serve(sys.argv[1], json.loads(sys.argv[2]), sys.stdin, answers)
    except Exception as error:  # noqa: BLE001  (the parent reports it)
        kind = "" if hasattr(error, "exit_code") else f"{type(error).__name__}: "
        _say(answers, {"error": kind + " ".join(str(error).split()), "exit_code": getattr(error, "exit_code", 1)})


if __name__ == "__main__":
    main()
