"""An engine that obeys the contract of `runtime/engine.py` and computes nothing: completion c draws c, c + 1, c + 2, …

Run as a program it is an engine process like the real one; its options say how it behaves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ambidex.runtime.embedded.location import folder
from ambidex.runtime.errors import ConfigError, QueueFull, RequestError
from ambidex.runtime.messages import Counters, Ended, Limits, Progress, Started, Submission
from ambidex.runtime.process.__main__ import main
from ambidex.runtime.process.server import Loaded, Report
from ambidex.runtime.process.wire import Facts

VOCABULARY = 500
FACTS = Facts(str(folder()), "fp_scripted", "cpu:0", "scripted", "float32")


@dataclass
class Completion:
    number: int
    submission: Submission
    started: bool = False
    num_drawn: int = 0


@dataclass
class ScriptedEngine:
    """step_s: how long a step takes. hang_at, fail_at: the step that never ends, or raises."""

    step_s: float = 0.0
    hang_at: int | None = None
    fail_at: int | None = None
    max_queued: int = 5000
    num_logprobs: int = 0
    live: dict[int, Completion] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    steps: int = 0

    @property
    def limits(self) -> Limits:
        return Limits(1000, VOCABULARY, frozenset({2}), 1 << 20, self.max_queued)

    @property
    def has_work(self) -> bool:
        return bool(self.live or self.ended)

    def submit(self, submission: Submission) -> None:
        if submission.prompt_ids.ndim != 1 or submission.prompt_ids.max(initial=-1) >= VOCABULARY:
            raise RequestError("a token id is outside the vocabulary")
        if len(self.live) >= self.max_queued:
            raise QueueFull("too many wait")
        for number in range(submission.number, submission.number + submission.params.n):
            self.live[number] = Completion(number, submission)

    def abort(self, numbers: Sequence[int]) -> None:
        self.ended += [Ended(number, "abort") for number in numbers if self.live.pop(number, None)]

    def step(self) -> Progress:
        self.steps += 1
        if self.steps == self.fail_at:
            raise RuntimeError("the script says so")
        time.sleep(3600 if self.steps == self.hang_at else self.step_s)
        drawing = list(self.live.values())
        started = tuple(Started(each.number, 1, 0.0) for each in drawing if not each.started)
        ids = np.array([(each.number + each.num_drawn) % VOCABULARY for each in drawing], np.int64)
        for each in drawing:
            each.started, each.num_drawn = True, each.num_drawn + 1
            if each.num_drawn == each.submission.params.max_tokens:
                del self.live[each.number]
                self.ended.append(Ended(each.number, "length"))
        ended, self.ended = tuple(self.ended), []
        size = (len(ids), self.num_logprobs)
        return Progress(
            time.perf_counter(), np.array([each.number for each in drawing], np.int64), ids,
            np.full(len(ids), -1.0, np.float32), np.zeros(size, np.int64), np.zeros(size, np.float32), started, ended,
        )  # fmt: skip

    def counters(self) -> Counters:
        return Counters(len(self.live), 0, 0, 0, 0, self.steps, 0, 0, 0, 0)


def load(options: dict[str, Any], report: Report) -> Loaded:
    """load_s: how long loading takes, in `load_parts` parts that it reports."""
    del options["model"], options["progress"]
    if "wrong" in options:
        raise ConfigError("the script has no such option")
    parts = options.pop("load_parts", 1)
    load_s = options.pop("load_s", 0.0)
    for part in range(parts):
        report("weights", part / parts)
        time.sleep(load_s / parts)
    facts = Facts(FACTS.folder, options.pop("fingerprint", FACTS.fingerprint), "cpu:0", "scripted", "float32")
    return Loaded(ScriptedEngine(**options), facts, ("a decision",))


if __name__ == "__main__":
    sys.exit(main(load))
