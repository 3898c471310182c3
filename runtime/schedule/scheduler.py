"""Which tokens of which requests the next step computes: continuous batching over pages that requests grow into.

Requests are served by rank: time of arrival, put off by their priority, so that waiting makes up for any priority and
nothing starves. A step takes the running requests first (those that decode before those still in their prompt), then
admits waiting ones while a slot, the token budget and pages last. A request is admitted with the pages of what it has;
it takes more as it grows, and when none is left, the last ranked gives up its pages and waits to be computed again.
The first ranked never does, and alone it fits, so it ends; then the next is first: every admitted request ends.

Integers and numpy arrays only; time enters as numbers that the caller gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..messages import EndReason
from ..step import Integers
from .admission import Admission, Waiting
from .deltas import Deltas
from .pace import Pace
from .pages import PagePool, counts
from .planned import Committed, Ending, Planned
from .request import Scheduled
from .running import Running

_MARGIN_STEP, _MARGIN_DECAY, _MAX_MARGIN = 0.5, 0.9998, 8.0  # pages left for each running request


class Scheduler:
    """State: the waiting completions by rank, the running ones by slot, and one page pool a state group."""

    def __init__(
        self,
        pools: Mapping[str, PagePool],
        page_sizes: Mapping[str, int],
        *,
        num_slots: int,
        max_length: int,
        token_budget: int,
        max_queued: int = 1 << 30,
        prefix_caching: bool = True,
        pace: Pace | None = None,
    ) -> None:
        self.pools, self.page_sizes, self.token_budget = dict(pools), dict(page_sizes), token_budget
        self.prefix_caching, self.pace, self.num_preemptions = prefix_caching, pace, 0
        self.running = Running(num_slots, max_length, self.pools)
        self.waiting = Waiting(max_queued)
        self.admission = Admission(self.pools, self.page_sizes, prefix_caching)
        self._requests: dict[int, Scheduled] = {}
        self._parked: dict[int, Scheduled] = {}  # preempted with a token in flight, by ticket
        self._freed: list[int] = []
        self._margin = 1.0  # pages that each running request is expected to need soon
        self._held_up: Scheduled | None = None  # whom the step before could not let in

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, number: int) -> bool:
        return number in self._requests

    def find(self, number: int) -> Scheduled | None:
        return self._requests.get(number)

    def add(self, request: Scheduled) -> None:
        """Queues a completion. QueueFull where the waiting queue is at its bound."""
        if request.leader is None:
            self.waiting.push(request, bounded=True)
        else:
            request.leader.followers.append(request)
        self._requests[request.number] = request

    def drop(self, number: int) -> bool:
        """Takes a completion out wherever it is; whether it was here. Its slot and pages serve the next step."""
        request = self._requests.get(number)
        if request is None:
            return False
        self._leave(request)
        return True

    def schedule(self) -> Planned:
        running, deltas = self.running, Deltas(self.token_budget, self.pace)
        before = self.num_preemptions
        self._make_way()
        self.calm(1)
        order = running.order
        # The last token of a completion is sampled, not computed.
        pending = np.minimum(running.known[order], running.max_length[order] - 1) - running.computed[order]
        # One token each never exceeds the budget: nobody is let in unless all that run found a token's room.
        self._decode(self.grow(order[pending == 1], deltas), deltas)
        for slot in order[pending > 1].tolist():
            if running.ticket[slot] >= 0:  # else it had to give way
                self._prefill(running.at(slot), deltas)
        if self.waiting and before == self.num_preemptions:
            self._admit(deltas)
        return self._planned(deltas)

    def commit(self, planned: Planned, ids: Integers, failed: NDArray[np.bool_]) -> Committed:
        """Takes in the sampled ids [L] of a planned step; `failed` rows end with an error and are not cached."""
        running, slots = self.running, planned.slots
        for request, ticket, upto in planned.prefilled:
            if request.slot >= 0 and request.ticket == ticket:
                self._share(request, upto)
        alive = running.ticket[slots] == planned.tickets
        live, taken, failing = (slots, ids, failed) if alive.all() else (slots[alive], ids[alive], failed[alive])
        lengths = running.committed[live]
        running.tokens[live, lengths] = taken
        lengths += 1
        running.committed[live] = lengths
        stopped = running.stopped(live, taken)
        ending = stopped | failing | (lengths >= running.max_length[live])
        ended = [
            self._end(
                running.at(int(live[row])), int(taken[row]), failed=bool(failing[row]), stopped=bool(stopped[row])
            )
            for row in ending.nonzero()[0].tolist()
        ]
        if self._parked and not alive.all():
            ended += self._commit_parked(planned, ids, failed, alive)
        return Committed(alive.nonzero()[0], tuple(ended))

    def _end(self, request: Scheduled, token: int, *, failed: bool, stopped: bool) -> Ending:
        reason: EndReason = "error" if failed else "stop" if stopped else "length"
        self._leave(request, spoilt=failed)
        return request.number, reason, token if reason == "stop" else None

    def _share(self, request: Scheduled, upto: int) -> None:
        """The first `upto` tokens are computed: others may read their pages."""
        if self.prefix_caching:
            self.admission.keep(request, self.running.tokens[request.slot, :upto])
        request.num_shareable = upto
        if upto >= request.prompt_length:
            for follower in request.followers:
                self.waiting.push(follower)
            request.followers.clear()

    def _leave(self, request: Scheduled, *, spoilt: bool = False) -> None:
        del self._requests[request.number]
        self._release_followers(request)
        if request.slot >= 0:
            self._vacate(request)
        else:
            self._parked.pop(request.ticket, None)
            if request.is_waiting:
                self.waiting.remove(request)
            elif request.leader is not None:
                request.leader.followers.remove(request)
        if spoilt:
            self.admission.forget(request)

    def _vacate(self, request: Scheduled) -> None:
        """Gives back the slot and the pages; what is full and computed stays to be found."""
        slot, running = request.slot, self.running
        computed = min(int(running.computed[slot]), int(running.committed[slot]))
        running.remove(request)
        self._freed.append(slot)
        if self.prefix_caching:
            self.admission.keep(request, request.tokens[:computed])
        self.admission.give_back(request)
        request.num_shareable = 0

    def _preempt(self, request: Scheduled) -> None:
        in_flight = self.running.known[request.slot] > self.running.committed[request.slot]
        self._vacate(request)
        if in_flight:
            self._parked[request.ticket] = request
        self.waiting.push(request)
        self.num_preemptions += 1
        self._margin = min(self._margin + _MARGIN_STEP, _MAX_MARGIN)

    def _release_followers(self, request: Scheduled) -> None:
        """Those that waited for this one's prompt go their own way."""
        for follower in request.followers:
            follower.leader = None
            self.waiting.push(follower)
        request.followers.clear()

    def _commit_parked(
        self, planned: Planned, ids: Integers, failed: NDArray[np.bool_], alive: NDArray[np.bool_]
    ) -> list[Ending]:
        """Tokens that were in flight when their completion was preempted: it has them, and computes them again."""
        ended: list[Ending] = []
        for row in np.flatnonzero(~alive).tolist():
            request = self._parked.pop(int(planned.tickets[row]), None)
            if request is None:
                continue
            alive[row] = True
            token = int(ids[row])
            request.tokens = np.append(request.tokens, np.int32(token))
            num_outputs = len(request.tokens) - request.prompt_length
            stopped = token in request.stop_ids and num_outputs >= request.params.min_tokens
            if failed[row] or stopped or len(request.tokens) >= request.max_length:
                ended.append(self._end(request, token, failed=bool(failed[row]), stopped=stopped))
        return ended

    def grow(self, slots: Integers, deltas: Deltas) -> Integers:
        """Gives each of these decoding slots the page that its next token needs; those that remain running."""
        running = self.running
        for group, size in self.page_sizes.items():
            counts, pool = running.num_pages[group], self.pools[group]
            needing = slots[running.computed[slots] // size >= counts[slots]]
            if len(needing) > pool.num_free:
                needing = self._make_room(needing, pool)
                slots = slots[running.ticket[slots] >= 0]
            if len(needing):
                pages = pool.take(len(needing))
                deltas.add_pages(group, needing, counts[needing], pages)
                counts[needing] += 1
                for slot, page in zip(needing.tolist(), pages, strict=True):
                    running.at(slot).pages[group].append(page)
        return slots

    def _make_room(self, needing: Integers, pool: PagePool) -> Integers:
        """Preempts the last ranked until those that remain of `needing` can have a page each."""
        while len(needing) > pool.num_free:
            victim = self.running.last()
            assert victim is not None
            needing = needing[needing != victim.slot]
            self._preempt(victim)
        return needing

    def _decode(self, slots: Integers, deltas: Deltas) -> None:
        if not len(slots):
            return
        running = self.running
        first = running.computed[slots]
        deltas.add_decodes(slots, first)
        in_prompt = first < running.prompt_length[slots]
        if in_prompt.any():  # the last token of a prompt, alone
            for slot in slots[in_prompt].tolist():
                deltas.prefilled.append((running.at(slot), int(running.ticket[slot]), int(running.computed[slot]) + 1))
        running.computed[slots] += 1
        running.known[slots] += 1

    def _prefill(self, request: Scheduled, deltas: Deltas) -> None:
        """What the budgets allow of the tokens that are not computed, which have their pages already."""
        running, slot = self.running, request.slot
        first, known = int(running.computed[slot]), int(running.known[slot])
        count = deltas.fitting(first, known - first)
        if count <= 0:
            return
        is_sampled = first + count == known
        deltas.add_chunk(request, first, count, is_sampled=is_sampled)
        running.computed[slot] += count
        if is_sampled:
            running.known[slot] += 1

    def _admit(self, deltas: Deltas) -> None:
        while deltas.has_room and (request := self.waiting.first()) is not None:
            placed = self.admission.place(request, self._reserve(len(self.running))) if self.running.num_free else None
            if placed is None:
                self._held_up = request
                return
            self.waiting.remove(request)
            self.running.add(request, placed.num_computed)
            deltas.add_slot(request, placed, is_first=not request.has_started)
            request.has_started = True
            self._prefill(request, deltas)

    def calm(self, num_steps: int) -> None:
        """So many steps have run without a shortage of pages: the margin shrinks."""
        for _ in range(num_steps if self._margin > 1.0 else 0):
            self._margin = max(1.0, self._margin * _MARGIN_DECAY)

    def has_room(self, lengths: Sequence[int]) -> bool:
        """Whether newcomers of so many tokens, and one more each, would find slots and pages in the next step, once the
        running ones have grown."""
        spare = len(self.running) + self._reserve(len(self.running) + len(lengths))
        return len(lengths) <= self.running.num_free and self.admission.holds(lengths, spare)

    def _reserve(self, num_running: int) -> int:
        """Pages that admission leaves for the running ones: the more of them, the more often they ran out lately."""
        return int(self._margin * num_running)

    def _make_way(self) -> None:
        """Preempts the last ranked of a lower priority, if that lets in (by the next step) whom the step before could
        not. Comes before anything is planned: a step must not hold work of somebody who has lost his pages."""
        request, self._held_up = self._held_up, None
        if request is None or not request.is_waiting:
            return
        running = [self.running.at(slot) for slot in self.running.order.tolist()]
        behind = [each for each in running if each.rank > request.rank and each.priority > request.priority]
        if not behind or not self.admission.would_fit(request, behind, self._reserve(len(running) - len(behind))):
            return
        while behind and not (self.running.num_free and self.admission.fits(request, self._reserve(len(self.running)))):
            self._preempt(behind.pop())

    def _planned(self, deltas: Deltas) -> Planned:
        step, slots = deltas.step(self.running, np.array(self._freed, dtype=np.int64))
        if len(step.spans):  # else the step goes nowhere, and the next one says it
            self._freed = []
        tickets, numbers = self.running.ticket[slots], self.running.number[slots]
        started, prefilled = tuple(deltas.started), tuple(deltas.prefilled)
        return Planned(step, slots, tickets, numbers, started, deltas.num_prompt_tokens, prefilled, deltas.nominal_s)

    def page_counts(self) -> tuple[int, int, int]:
        """Free, kept and all pages, over the state groups."""
        return counts(self.pools.values())
