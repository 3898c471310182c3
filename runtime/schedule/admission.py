"""Who waits, and what a request that is let in needs not compute: pages found by their content, or its leader's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from ..errors import QueueFull
from .pages import PagePool
from .request import Rank, Scheduled

_SPARE_HUSKS = 64


class Waiting:
    """The waiting completions by rank. What is removed from the middle leaves a husk that goes when it comes up.

    max_queued bounds requests: one is one entry in the queue, however many of its completions wait.
    """

    def __init__(self, max_queued: int) -> None:
        self.max_queued = max_queued
        self._heap: list[tuple[Rank, int, Scheduled]] = []
        self._num_pushed = 0
        self._waiting_of: Counter[int] = Counter()  # waiting completions of each request
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def num_requests(self) -> int:
        """Requests of which a completion waits."""
        return len(self._waiting_of)

    def push(self, request: Scheduled, *, bounded: bool = False) -> None:
        """QueueFull: only a newcomer is refused (`bounded`); who was admitted once always comes back."""
        if bounded and self.num_requests >= self.max_queued:
            raise QueueFull(
                f"{self.num_requests:,} requests are waiting, max_queued is {self.max_queued:,}: try again later, "
                "or raise it"
            )
        self._num_pushed += 1
        request.is_waiting = True
        self._num_waiting += 1
        self._waiting_of[request.request] += 1
        heappush(self._heap, (request.rank, self._num_pushed, request))

    def first(self) -> Scheduled | None:
        while self._heap and not self._heap[0][2].is_waiting:
            heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def remove(self, request: Scheduled) -> None:
        request.is_waiting = False
        self._num_waiting -= 1
        self._waiting_of[request.request] -= 1
        if not self._waiting_of[request.request]:
            del self._waiting_of[request.request]
        if len(self._heap) > 2 * self._num_waiting + _SPARE_HUSKS:
            self._heap = sorted(entry for entry in self._heap if entry[2].is_waiting)


@dataclass(frozen=True)
class Placed:
    """The pages of a request that is let in. copies: by group, (from, to) of the page whose beginning it shares and
    whose end it writes itself."""

    num_computed: int
    copies: Mapping[str, tuple[int, int]]


class Admission:
    """Hands pages to requests that are let in, and keeps what those that leave have computed."""

    def __init__(self, pools: Mapping[str, PagePool], page_sizes: Mapping[str, int], prefix_caching: bool) -> None:
        self.pools, self.page_sizes, self.prefix_caching = pools, page_sizes, prefix_caching

    def place(self, request: Scheduled, reserve: int) -> Placed | None:
        """Gives the request pages for all its tokens, shared ones first; None, and nothing changed, if after that
        fewer than `reserve` of a group would be left for the running ones to grow into."""
        known = len(request.tokens)
        found, sources = self._shared(request)
        num_computed = min(found, known - 1)  # somebody has to yield the next token's logits
        shared = {group: sources[group][: num_computed // size] for group, size in self.page_sizes.items()}
        for group, pages in shared.items():
            self.pools[group].share(pages)
        fresh = {group: self._pages(group, known) - len(pages) for group, pages in shared.items()}
        if any(self.pools[group].num_free < count + reserve for group, count in fresh.items()):
            for group, pages in shared.items():
                self.pools[group].give_back(pages)
            return None
        copies: dict[str, tuple[int, int]] = {}
        for group, pages in shared.items():
            taken = self.pools[group].take(fresh[group])
            request.pages[group] = [*pages, *taken]
            if num_computed % self.page_sizes[group]:
                copies[group] = (sources[group][len(pages)], taken[0])
        return Placed(num_computed, copies)

    def would_fit(self, request: Scheduled, leaving: Sequence[Scheduled], reserve: int) -> bool:
        """Whether its tokens find pages once these have left, and with them what nobody else holds."""
        for group, pool in self.pools.items():
            held = Counter(page for each in leaving for page in each.pages[group])
            freed = sum(pool.holders(page) == count for page, count in held.items())
            if pool.num_free + freed < self._pages(group, len(request.tokens)) + reserve:
                return False
        return True

    def holds(self, lengths: Sequence[int], spare: int) -> bool:
        """Whether pages are free for newcomers of so many tokens, and one more each, beside `spare` in each group."""
        return all(
            self.pools[group].num_free >= sum(length // size + 1 for length in lengths) + spare
            for group, size in self.page_sizes.items()
        )

    def fits(self, request: Scheduled, reserve: int) -> bool:
        return self.would_fit(request, (), reserve)

    def keep(self, request: Scheduled, tokens: NDArray[np.int32]) -> None:
        """The request's pages that `tokens` fill are found by their content from now on."""
        for group, size in self.page_sizes.items():
            pool, pages = self.pools[group], request.pages[group]
            for key, page in zip(request.keys(size, tokens), pages, strict=False):
                pool.keep(page, key)

    def forget(self, request: Scheduled) -> None:
        """Nothing that was computed of the request's tokens is found any more."""
        for group, size in self.page_sizes.items():
            pool = self.pools[group]
            for key in request.keys(size, request.tokens):
                pool.forget(pool.find([key]))

    def give_back(self, request: Scheduled) -> None:
        for group, pages in request.pages.items():
            self.pools[group].give_back(pages)
        request.pages = {}

    def _shared(self, request: Scheduled) -> tuple[int, dict[str, list[int]]]:
        """How many of the request's first tokens lie computed in pages, the least over the groups, and which."""
        leader, length = request.leader, len(request.tokens)
        if leader is not None and length == request.prompt_length <= leader.num_shareable:
            return length, leader.pages
        if not self.prefix_caching:
            return 0, {group: [] for group in self.pools}
        found = {
            group: self.pools[group].find(request.keys(size, request.tokens)) for group, size in self.page_sizes.items()
        }
        return self._common({group: len(pages) for group, pages in found.items()}), found

    def _common(self, num_pages: Mapping[str, int]) -> int:
        """The most tokens that are whole pages of every group."""
        tokens = min(count * self.page_sizes[group] for group, count in num_pages.items())
        while any(tokens % size for size in self.page_sizes.values()):
            tokens = min(tokens // size * size for size in self.page_sizes.values())
        return tokens

    def _pages(self, group: str, num_tokens: int) -> int:
        return -(-num_tokens // self.page_sizes[group])
