"""The engine: submissions in, sampled tokens out, one step at a time.

Planning knows integers only (`schedule/`), execution tensors only (`execute/`); here they meet. With overlap, the host
plans and launches a step while the device still computes the one before: what that one samples stays on the device,
where the next step reads it, and is committed here one step later. What the engine does not know: text, HTTP, files,
vendors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from time import monotonic
from typing import Protocol

import numpy as np

from .execute.sampled import Sampled
from .intake import Intake
from .messages import TIMEOUT, Counters, Ended, Integers, Limits, Progress, Reals, Started, Submission
from .schedule import moves
from .schedule.planned import Planned
from .schedule.repeat import num_alike, repeat
from .schedule.scheduler import Scheduler
from .step import Step

_SPARE_DEADLINES = 64
_NAN = "the model's logits were not numbers: the weights or the device are at fault, or the prompt provoked it"
_NOTHING = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32),
            np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))  # fmt: skip

Result = Callable[[], Sampled]


class Execution(Protocol):
    """What runs steps: takes one without waiting for it, in order; the result waits."""

    def launch(self, step: Step) -> Result: ...


@dataclass(frozen=True)
class _Launched:
    planned: Planned
    launched_s: float
    result: Result


class Engine:
    """One thread drives it. overlap: whether a step is launched before the one before it is committed.

    phase_seconds: what the parts of its start took.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        worker: Execution,
        intake: Intake,
        limits: Limits,
        *,
        overlap: bool = False,
        clock: Callable[[], float] = monotonic,
        phase_seconds: Mapping[str, float] | None = None,
    ) -> None:
        self.scheduler, self.worker, self.limits, self.overlap = scheduler, worker, limits, overlap
        self.phase_seconds: Mapping[str, float] = phase_seconds or {}
        self._intake, self._clock = intake, clock
        self._in_flight: _Launched | None = None
        self._ended: list[Ended] = []
        self._deadlines: list[tuple[float, int]] = []
        self._finished_s = clock()
        self._steps = self._prompt_tokens = self._cached_tokens = self._sampled_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler) or self._in_flight is not None or bool(self._ended)

    def submit(self, submission: Submission, num_brought: int = 0) -> None:
        """Queues a request. RequestError: it cannot be served. QueueFull: not now. num_brought: the first tokens of its
        prompt whose pages come with it, computed elsewhere (`schedule/moves.py`)."""
        now_s = self._clock()
        completions = self._intake.take(submission, now_s)
        if num_brought:
            keys = moves.content(self.scheduler.page_sizes, completions[0], num_brought)
            moves.received(self.scheduler.admission, moves.receive(self.scheduler.admission, keys))
        for completion in completions:
            self.scheduler.add(completion)
            if submission.timeout_s is not None:
                heappush(self._deadlines, (now_s + submission.timeout_s, completion.number))
        if len(self._deadlines) > 2 * len(self.scheduler) + _SPARE_DEADLINES:  # of those that ended in time
            self._deadlines = sorted(each for each in self._deadlines if each[1] in self.scheduler)

    def abort(self, numbers: Sequence[int], message: str | None = None) -> None:
        """Ends completions wherever they are; unknown and finished ones are passed over."""
        self._ended += [Ended(number, "abort", None, message) for number in numbers if self.scheduler.drop(number)]

    def step(self) -> Progress:
        """One pass: plan and launch, then take in what is done: the step before with overlap, else this one."""
        self._abort_overdue()
        launched = self._launch(self.scheduler.schedule())
        done, self._in_flight = (self._in_flight, launched) if self.overlap else (launched, None)
        tokens = self._commit(done) if done else _NOTHING
        started = [Started(*each, launched.launched_s) for each in launched.planned.started] if launched else ()
        ended, self._ended = tuple(self._ended), []
        return Progress(self._clock(), *tokens, tuple(started), ended)

    def num_alike(self, most: int, token: int) -> int:
        """How many of the next steps, up to `most`, `repeat` can stand for if this is all that will be sampled."""
        has_more = self._in_flight is not None or bool(self._ended) or bool(self._deadlines)
        return 0 if has_more else num_alike(self.scheduler, most, token)

    def repeat(self, num_steps: int, token: int) -> None:
        """So many steps in one call, at most `num_alike`. The worker is not asked: for a device on a clock."""
        repeat(self.scheduler, num_steps, token)
        self._steps += num_steps
        self._sampled_tokens += num_steps * len(self.scheduler.running)

    def counters(self) -> Counters:
        """The state of the engine now, and its sums since the start."""
        free, kept, pages = self.scheduler.page_counts()
        return Counters(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            free_pages=free,
            num_pages=pages,
            cached_pages=kept,
            steps=self._steps,
            preemptions=self.scheduler.num_preemptions,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_tokens,
            sampled_tokens=self._sampled_tokens,
        )

    def _launch(self, planned: Planned) -> _Launched | None:
        if planned.is_idle:
            return None
        self._steps += 1
        self._cached_tokens += sum(cached for _, cached in planned.started)
        self._prompt_tokens += planned.num_prompt_tokens
        return _Launched(planned, self._clock(), self.worker.launch(planned.step))

    def _commit(self, done: _Launched) -> tuple[Integers, Integers, Reals, Integers, Reals]:
        """The columns of Progress: what was sampled for whom."""
        planned, sampled = done.planned, done.result()
        now_s = self._clock()
        if self.scheduler.pace:
            # It ran from its launch on, or from when the device was free.
            self.scheduler.pace.observe(planned.nominal_s, now_s - max(done.launched_s, self._finished_s))
        self._finished_s = now_s
        failed = np.isnan(sampled.logprobs)
        committed = self.scheduler.commit(planned, sampled.ids, failed)
        self._ended += [Ended(*each, _NAN if each[1] == "error" else None) for each in committed.ended]
        rows = committed.rows[~failed[committed.rows]] if failed.any() else committed.rows
        self._sampled_tokens += len(rows)
        columns = planned.numbers, sampled.ids, sampled.logprobs, sampled.top_ids, sampled.top_logprobs
        if len(rows) == len(sampled.ids):
            return columns
        numbers, ids, logprobs, top_ids, top_logprobs = columns
        return numbers[rows], ids[rows], logprobs[rows], top_ids[rows], top_logprobs[rows]

    def _abort_overdue(self) -> None:
        now_s = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, number = heappop(self._deadlines)
            self.abort([number], TIMEOUT)
