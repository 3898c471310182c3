"""First come, first served, continuously: which tokens of which requests the next step computes.

Running requests first (those that decode before those still in their prompt, each in order of arrival), then waiting
ones while a slot, the token budget and pages last. A prompt longer than what is left of the budget is computed in
chunks. A request is admitted when all the pages it can ever need are free, so an admitted request always finishes.
Integers and numpy arrays only; time never enters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..request import SamplingParams
from ..step import Integers, SlotAdded, Step
from .pages import PagePool


@dataclass(eq=False)
class Scheduled:
    """A request as the scheduler sees it. num_computed counts tokens whose step was scheduled; tokens grow in commit.

    allowed: words of the allowed-token mask, or None for all; allowed_early: the same without the stop ids, in force
    before min_tokens are there.
    """

    request_id: str
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    seed: int
    max_length: int
    allowed: NDArray[np.int32] | None = None
    allowed_early: NDArray[np.int32] | None = None
    slot: int = -1
    num_computed: int = 0
    pages: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    @property
    def num_outputs(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def num_pending(self) -> int:
        """Known tokens that no step has computed."""
        return len(self.tokens) - self.num_computed

    @property
    def mask(self) -> NDArray[np.int32] | None:
        return self.allowed_early if self.num_outputs < self.params.min_tokens else self.allowed


@dataclass(frozen=True)
class Planned:
    """A step, whose token each row of its logits is, and who was admitted by it."""

    step: Step
    sampled: tuple[Scheduled, ...]
    admitted: tuple[Scheduled, ...]


@dataclass
class _Deltas:
    added: list[SlotAdded] = field(default_factory=list[SlotAdded])
    pages: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict[str, list[tuple[int, int, int]]])
    spans: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    logits: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    sampled: list[Scheduled] = field(default_factory=list[Scheduled])
    admitted: list[Scheduled] = field(default_factory=list[Scheduled])


class Scheduler:
    """State: the waiting queue, the running requests by slot, and one page pool a state group."""

    def __init__(
        self, pools: Mapping[str, PagePool], page_sizes: Mapping[str, int], num_slots: int, token_budget: int
    ) -> None:
        self.pools, self.page_sizes, self.token_budget = dict(pools), dict(page_sizes), token_budget
        self.waiting: deque[Scheduled] = deque()
        self.running: list[Scheduled] = []
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._freed: list[int] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Scheduled) -> None:
        self.waiting.append(request)

    def pages_needed(self, group: str, num_tokens: int) -> int:
        return -(-num_tokens // self.page_sizes[group])

    def schedule(self) -> Planned:
        deltas, budget = _Deltas(), self.token_budget
        for request in sorted(self.running, key=lambda each: each.num_pending > 1):
            budget -= self._span(request, budget, deltas)
        while self.waiting and budget > 0 and self._can_admit(self.waiting[0]):
            request = self.waiting.popleft()
            self._admit(request, deltas)
            budget -= self._span(request, budget, deltas)
        return Planned(self._step(deltas), tuple(deltas.sampled), tuple(deltas.admitted))

    def finish(self, request: Scheduled) -> None:
        """Takes a request out, wherever it is; its slot and pages are free for the next step."""
        if request.slot < 0:
            self.waiting.remove(request)
            return
        self.running.remove(request)
        for group, pages in request.pages.items():
            self.pools[group].give_back(pages)
        self._freed.append(request.slot)
        self._free_slots.append(request.slot)

    def _can_admit(self, request: Scheduled) -> bool:
        needed = {group: self.pages_needed(group, request.max_length) for group in self.pools}
        return bool(self._free_slots) and all(self.pools[group].num_free >= count for group, count in needed.items())

    def _admit(self, request: Scheduled, deltas: _Deltas) -> None:
        request.slot = self._free_slots.pop()
        self.running.append(request)
        deltas.admitted.append(request)
        deltas.added.append(_slot_added(request))
        for group, pool in self.pools.items():
            pages = pool.take(self.pages_needed(group, request.max_length))
            request.pages[group] = pages
            rows = [(request.slot, index, page) for index, page in enumerate(pages)]
            deltas.pages.setdefault(group, []).extend(rows)

    def _span(self, request: Scheduled, budget: int, deltas: _Deltas) -> int:
        """Gives the request what the budget allows of its tokens that are not computed; returns how many."""
        count = min(request.num_pending, budget)
        if count <= 0:
            return 0
        deltas.spans.append((request.slot, request.num_computed, count))
        request.num_computed += count
        if request.num_pending == 0:
            deltas.logits.append((len(deltas.spans) - 1, count - 1))
            deltas.sampled.append(request)
        return count

    def _step(self, deltas: _Deltas) -> Step:
        freed, self._freed = np.array(self._freed, dtype=np.int64), []
        params = [request.params for request in deltas.sampled]
        return Step(
            added=tuple(deltas.added),
            freed=freed,
            pages={group: _integers(rows, 3) for group, rows in deltas.pages.items()},
            spans=_integers(deltas.spans, 3),
            logits=_integers(deltas.logits, 2),
            num_logprobs=max((each.logprobs or 0 for each in params), default=0),
            random=any(each.temperature > 0 for each in params),
            filtered=any(each.filtered for each in params),
            penalized=any(each.penalized for each in params),
            masks={row: request.mask for row, request in enumerate(deltas.sampled) if request.mask is not None},
        )


def _integers(rows: list[tuple[int, ...]] | list[tuple[int, int, int]] | list[tuple[int, int]], width: int) -> Integers:
    return np.array(rows, dtype=np.int64).reshape(-1, width)


def _slot_added(request: Scheduled) -> SlotAdded:
    params = request.params
    return SlotAdded(
        slot=request.slot,
        tokens=np.array(request.tokens, dtype=np.int64),
        prompt_length=request.prompt_length,
        temperature=params.temperature,
        top_k=max(params.top_k, 0),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=params.repetition_penalty,
        presence=params.presence_penalty,
        frequency=params.frequency_penalty,
        seed=request.seed,
    )
