"""The running requests as columns by slot: what planning and committing a step of hundreds of requests reads at once.

S slots, C the longest context, K stop ids of a request. Everything here is a numpy array, so that a step costs a fixed
number of array operations, however many requests take part.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from .request import Rank, Scheduled

_INTEGERS = ("ticket", "number", "computed", "known", "committed", "prompt_length", "max_length", "stoppable_length")
_FLAGS = ("random", "filtered", "penalized", "masked")
_NO_STOP = -1


class Running:
    """One [S] array a fact, and the requests themselves.

    ticket: of the admission, -1 for a free slot; a row of a step in flight belongs to the slot's request only if the
    tickets agree. order: the slots in use, who is served first at the front. committed: tokens that the host has;
    known: those and the ones in flight; computed: tokens whose step was planned. tokens: [S, C]. num_pages: by state
    group, entries of the slot's page table. stoppable_length: from which a stop id ends the completion. asked: how many
    ask for what (`random`, `filtered`, `penalized`, `masked`), and by number how many for so many log-probabilities.
    """

    ticket: NDArray[np.int64]
    number: NDArray[np.int64]
    computed: NDArray[np.int64]
    known: NDArray[np.int64]
    committed: NDArray[np.int64]
    prompt_length: NDArray[np.int64]
    max_length: NDArray[np.int64]
    stoppable_length: NDArray[np.int64]

    def __init__(self, num_slots: int, max_length: int, groups: Iterable[str]) -> None:
        for name in _INTEGERS:
            setattr(self, name, np.zeros(num_slots, dtype=np.int64))
        self.ticket.fill(-1)
        self.tokens = np.zeros((num_slots, max_length), dtype=np.int32)  # committed by the system when touched
        self.num_pages = {group: np.zeros(num_slots, dtype=np.int64) for group in groups}
        self.requests: list[Scheduled | None] = [None] * num_slots
        self.asked: Counter[str | int] = Counter()
        self.order = np.empty(0, dtype=np.int64)
        self._ranks: list[Rank] = []
        self._stops = np.full((num_slots, 1), _NO_STOP, dtype=np.int64)
        self._free = list(range(num_slots - 1, -1, -1))
        self._num_admitted = 0

    def __len__(self) -> int:
        return len(self.order)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def at(self, slot: int) -> Scheduled:
        request = self.requests[slot]
        assert request is not None, "a free slot was asked for its request"
        return request

    def num_outputs(self, request: Scheduled) -> int:
        """Tokens that the host has of a request beyond its prompt, whether it has a slot now or not."""
        have = int(self.committed[request.slot]) if request.slot >= 0 else len(request.tokens)
        return have - request.prompt_length

    def last(self) -> Scheduled | None:
        """The request that is served last."""
        return self.at(int(self.order[-1])) if len(self.order) else None

    def add(self, request: Scheduled, num_computed: int) -> None:
        """Gives the request a slot; the first `num_computed` of its tokens need no computing."""
        slot, length = self._free.pop(), len(request.tokens)
        request.slot, request.ticket = slot, self._num_admitted
        self._num_admitted += 1
        self.requests[slot] = request
        self.ticket[slot], self.number[slot] = request.ticket, request.number
        self.computed[slot] = num_computed
        self.known[slot] = self.committed[slot] = length
        self.prompt_length[slot], self.max_length[slot] = request.prompt_length, request.max_length
        self.stoppable_length[slot] = request.prompt_length + request.params.min_tokens
        self.asked.update(_asks(request))
        self.tokens[slot, :length] = request.tokens
        self._set_stops(slot, request.stop_ids)
        for group, counts in self.num_pages.items():
            counts[slot] = len(request.pages[group])
        place = bisect_left(self._ranks, request.rank)
        self._ranks.insert(place, request.rank)
        self.order = np.concatenate([self.order[:place], (slot,), self.order[place:]])

    def remove(self, request: Scheduled) -> None:
        """Takes the slot back; the request keeps the tokens that the host has."""
        slot = request.slot
        request.tokens = self.tokens[slot, : self.committed[slot]].copy()
        request.slot = -1
        self.ticket[slot], self.requests[slot] = -1, None
        self.asked.subtract(_asks(request))
        place = bisect_left(self._ranks, request.rank)
        del self._ranks[place]
        self.order = np.concatenate([self.order[:place], self.order[place + 1 :]])
        self._free.append(slot)

    def stopped(self, slots: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these sampled ids end the completion in their slot."""
        hit = (self._stops[slots] == ids[:, None]).any(axis=1)
        return hit & (self.committed[slots] >= self.stoppable_length[slots])

    def may_stop(self, slots: NDArray[np.int64], token: int) -> bool:
        """Whether it is a stop id of one of these."""
        return bool(np.count_nonzero(self._stops[slots] == token))

    def extend(self, slots: NDArray[np.int64], count: int, token: int) -> None:
        """So many more tokens of each of these have been computed, and each time this one sampled."""
        places = self.committed[slots][:, None] + np.arange(count)
        self.tokens[slots[:, None], places] = token
        for column in (self.computed, self.known, self.committed):
            column[slots] += count

    @property
    def num_logprobs(self) -> int:
        """The most log-probabilities that any of them asks for."""
        return max((each for each, count in self.asked.items() if count and isinstance(each, int)), default=0)

    def _set_stops(self, slot: int, ids: tuple[int, ...]) -> None:
        if len(ids) > self._stops.shape[1]:
            wider = np.full((len(self._stops), len(ids)), _NO_STOP, dtype=np.int64)
            wider[:, : self._stops.shape[1]] = self._stops
            self._stops = wider
        self._stops[slot] = _NO_STOP
        self._stops[slot, : len(ids)] = ids


def _asks(request: Scheduled) -> list[str | int]:
    params = request.params
    asked = params.temperature > 0, params.filtered, params.penalized, request.is_masked
    return [params.logprobs or 0, *compress(_FLAGS, asked)]
