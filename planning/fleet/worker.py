"""A worker on the clock: the real engine, scheduler, prefix cache and intake on a virtual device.

A step is planned and committed by the very code that serves on the metal; only what the device would do is replaced: it
takes the seconds that the replica's step time says, and every row samples the same id at once. Host work and its
overlap with the device are in the step time already, so the engine runs without overlap of its own.

Steps that only go on with what runs are foreseen, many at a time: they have an end each, and are done in one call of
the scheduler when the last of them has ended, or as far as they have begun when something else comes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...backends.virtual_clock import VirtualBackend
from ...hwprofiles.schema import Profile
from ...runtime.engine import Engine
from ...runtime.execute.sampled import Sampled
from ...runtime.intake import Intake
from ...runtime.messages import Limits, Progress, Submission
from ...runtime.request import SamplingParams
from ...runtime.schedule import moves
from ...runtime.schedule.pages import PagePool
from ...runtime.schedule.prefix import PageKeys, root_key
from ...runtime.schedule.scheduler import Scheduler
from ...runtime.step import Step

VOCABULARY = 32_000
SAMPLED_ID = 5
_GROUP = "kv"
_AGEING_S = 10.0
_UNTOLD = "what comes to a worker comes after `interrupt`"
MOST_FORESEEN = 256

Integers = NDArray[np.int64]


class StepSeconds(Protocol):
    """What a step takes: its spans compute count[i] tokens behind first[i] stored ones. And what each of several takes
    that give every request one token more, to the bit."""

    def seconds(self, first: Integers, count: Integers, num_logits: int) -> float: ...

    def decode_seconds(self, first: Integers, num_steps: int) -> NDArray[np.float64]: ...


class Replica(Protocol):
    """What a worker needs to know of its deployment (`planning.deployment.Deployment` says what each means)."""

    @property
    def name(self) -> str: ...
    @property
    def profile(self) -> Profile: ...
    @property
    def tensor_parallel(self) -> int: ...
    @property
    def step_time(self) -> StepSeconds: ...
    @property
    def kv_cache_tokens(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def max_num_seqs(self) -> int: ...
    @property
    def token_budget(self) -> int: ...
    @property
    def eur_per_hour(self) -> float | None: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def kv_bytes_per_token(self) -> int: ...


class _Device:
    """Samples the same id for every row; the clock goes on by what the step takes."""

    def __init__(self, backend: VirtualBackend, step_time: StepSeconds, most_rows: int) -> None:
        self._backend, self._seconds = backend, step_time.seconds
        self._ids = np.full(most_rows, SAMPLED_ID, dtype=np.int64)
        self._logprobs = np.zeros(most_rows, dtype=np.float32)
        self._top_ids = np.empty((most_rows, 0), dtype=np.int64)
        self._top_logprobs = np.empty((most_rows, 0), dtype=np.float32)
        self.num_spans = 0

    def launch(self, step: Step) -> Callable[[], Sampled]:
        count, rows = step.spans[:, 2], len(step.logits)
        self._backend.advance(self._seconds(step.spans[:, 1], count, rows))
        self.num_spans += len(count)
        sampled = self.sampled(rows)
        return lambda: sampled

    def sampled(self, rows: int) -> Sampled:
        return Sampled(self._ids[:rows], self._logprobs[:rows], self._top_ids[:rows], self._top_logprobs[:rows])


@lru_cache(maxsize=1 << 16)
def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, detokenize=False)


class Worker:
    """One replica that runs. slot: its place in its stage. order: that of the ends of its steps among what happens at
    the same time. held: the tokens to come of each request that it has. progress: what the step under way will have
    brought when it ends. busy_since_s: None while it has nothing to do. unseen: requests that were let in and have not
    shown a token yet. incoming: (request, its tokens, how many of them come as pages, whom to tell) from other workers,
    not let in yet. num_lent: transfers that read its pages."""

    def __init__(self, replica: Replica, slot: int, now_s: float, *, prefix_caching: bool, order: int = 0) -> None:
        self.replica, self.slot, self.order = replica, slot, order
        self.backend = VirtualBackend(replica.profile, now_s)
        pages = replica.kv_cache_tokens // replica.page_size
        limits = Limits(replica.max_model_len, VOCABULARY, frozenset(), replica.kv_cache_tokens, 1 << 30)
        self.scheduler = Scheduler(
            {_GROUP: PagePool(pages)},
            {_GROUP: replica.page_size},
            num_slots=replica.max_num_seqs,
            max_length=replica.max_model_len,
            token_budget=replica.token_budget,
            prefix_caching=prefix_caching,
        )
        self.device = _Device(self.backend, replica.step_time, replica.max_num_seqs + 1)
        intake = Intake(limits, model="", seed=0, ageing_s=_AGEING_S, longest={_GROUP: pages * replica.page_size})
        self.engine = Engine(self.scheduler, self.device, intake, limits, clock=self.backend.clock)
        self.progress: Progress | None = None
        self.busy_since_s: float | None = None
        self._ends_s: list[float] = []  # of the steps under way that the scheduler has not done yet
        self.held: dict[int, int] = {}
        self.unseen: set[int] = set()
        self.incoming: deque[tuple[int, Integers, int, int, Callable[[float], None]]] = deque()
        self.is_alive, self.is_draining, self.link_free_s, self.num_lent = True, False, 0.0, 0

    def submit(self, number: int, prompt: Integers, max_tokens: int, num_brought: int = 0) -> None:
        """RequestError: this replica cannot serve it."""
        assert not self._ends_s, _UNTOLD
        submission = Submission(number=number, prompt_ids=prompt, params=_params(max_tokens))
        self.engine.submit(submission, num_brought)
        self.held[number] = min(max_tokens, self.replica.max_model_len - len(prompt))

    def bring(
        self, number: int, prompt: Integers, max_tokens: int, num_brought: int, let_in: Callable[[float], None]
    ) -> None:
        """A request whose first `num_brought` tokens have been computed elsewhere; it is let in when there is room, and
        `let_in` told the time."""
        assert not self._ends_s, _UNTOLD
        self.incoming.append((number, prompt, max_tokens, num_brought, let_in))

    def send_away(self, number: int) -> None:
        """A request that was brought and is not let in does not come."""
        self.incoming = deque(each for each in self.incoming if each[0] != number)

    def begin(self, now_s: float) -> float | None:
        """Plans a step and runs it, or foresees several: the time at which the last will have ended; None if there is
        nothing to do, or nobody can be let in as long as others read what lies in the pages."""
        self.backend.idle_until(now_s)
        if self.incoming:
            self._let_in(now_s)
        if not self.engine.has_work:
            return None
        if not self.incoming and (num_steps := self.engine.num_alike(MOST_FORESEEN, SAMPLED_ID)):
            return self._foresee(now_s, num_steps)
        progress = self.engine.step()
        if self.backend.clock() <= now_s:
            return None
        self.progress = progress
        return self.backend.clock()

    def _foresee(self, now_s: float, num_steps: int) -> float:
        running = self.scheduler.running
        seconds = self.replica.step_time.decode_seconds(running.computed[running.order], num_steps)
        self._ends_s = list(accumulate(seconds.tolist(), initial=now_s))[1:]  # as the clock adds them
        sampled = self.device.sampled(len(running))
        columns = sampled.ids, sampled.logprobs, sampled.top_ids, sampled.top_logprobs
        self.progress = Progress(self._ends_s[-1], running.number[running.order], *columns)
        return self._ends_s[-1]

    def interrupt(self, reached: tuple[float, int]) -> float | None:
        """Of the foreseen steps only those happen that have begun when the agenda has `reached` this far: the time at
        which the last of them ends; None if none were foreseen."""
        if not self._ends_s:
            return None
        num_ended = bisect_left(self._ends_s, reached, key=lambda ends_s: (ends_s, self.order))
        self.catch_up(num_ended + 1)
        return self.backend.clock()

    def catch_up(self, num_steps: int | None = None) -> None:
        """The scheduler does the foreseen steps, or the first so many of them; there are no others any more."""
        if not self._ends_s:
            return
        chosen, self._ends_s = self._ends_s[:num_steps], []
        self.engine.repeat(len(chosen), SAMPLED_ID)
        self.device.num_spans += len(chosen) * len(self.scheduler.running)
        self.backend.idle_until(chosen[-1])

    def _let_in(self, now_s: float) -> None:
        """What has come waits outside until the next step would let it in, so that its pages are not put out again."""
        lengths: list[int] = []
        while self.incoming:
            number, prompt, max_tokens, num_brought, let_in = self.incoming[0]
            lengths.append(len(prompt))
            if self.scheduler and (len(self.scheduler.waiting) >= len(lengths) or not self.scheduler.has_room(lengths)):
                return
            self.incoming.popleft()
            self.submit(number, prompt, max_tokens, num_brought)
            let_in(now_s)

    def delivered(self, number: int) -> int:
        """Integers of a held request that have left this worker: those of the step under way have not."""
        found = self.scheduler.find(number)
        if found is None:
            return 0
        in_flight = self.progress is not None and number in self.progress.numbers
        return self.scheduler.running.num_outputs(found) - int(in_flight)

    def lend(self, prompt: Integers) -> tuple[moves.Pages, int]:
        """Keeps the prompt's whole pages in place while they are read; and how many tokens they hold."""
        assert not self._ends_s, _UNTOLD
        keys = {_GROUP: PageKeys(root_key("", "", ""), self.replica.page_size).of(prompt.astype(np.int32))}
        pages = moves.lend(self.scheduler.admission, keys)
        self.num_lent += 1
        return pages, len(pages[_GROUP]) * self.replica.page_size

    def take_back(self, pages: moves.Pages) -> None:
        assert not self._ends_s, _UNTOLD
        moves.take_back(self.scheduler.admission, pages)
        self.num_lent -= 1
