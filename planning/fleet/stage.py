"""The workers that do one part of the work behind one router: all of it, prompts only, or answers only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from .agenda import Agenda
from .group import Group, speed
from .routing import Loads, Policy
from .worker import Worker

Delivery = Callable[[float, "Stage", Worker], None]


class Stage:
    """role: serve, prefill or decode. deliver: takes what a step of a worker has brought. came: called when a worker
    has come. loading: places whose worker has been rented and loads."""

    def __init__(self, role: str, groups: Sequence[Group], policy: Policy, agenda: Agenda, deliver: Delivery) -> None:
        self.role, self.groups, self.policy = role, list(groups), policy
        self.came: list[Callable[[float, Worker], None]] = []
        self._agenda, self._deliver = agenda, deliver
        self.workers: list[Worker | None] = [None] * sum(len(group.places) for group in groups)
        self.group_of = [group for group in groups for _ in group.places]
        speeds = [speed(group.replica, role) for group in groups]
        self._speeds = [each / max(speeds) for each, group in zip(speeds, groups, strict=True) for _ in group.places]
        self.loads = Loads(len(self.workers))
        self.loading: set[int] = set()
        self._ends: dict[int, int] = {}  # by order of a worker: how the agenda calls the end of its step
        self._rented_from: dict[int, float] = {}
        self._weights: dict[int, tuple[int, int, float]] = {}  # of a request: its place, tokens before its first, after

    def begin(self) -> None:
        """The first workers are there, loaded, when the clock starts."""
        for group in self.groups:
            for place in group.places[: group.num_initial]:
                self._rented_from[place] = 0.0
                self._open(place, 0.0)

    def rent(self, place: int, now_s: float, load_s: float) -> None:
        """A worker that will serve when it has loaded."""
        self.loading.add(place)
        self._rented_from[place] = now_s
        self._agenda.at(now_s + load_s, partial(self._open, place))

    def choose(self, prefix: int, prefix_tokens: int) -> tuple[Worker | None, int]:
        """The worker for a request, None while there is none; and tokens of its prompt that are known there, as far as
        the router knows."""
        if not self.loads.num_open:
            return None, 0
        place, num_known = self.policy.choose(self.loads, prefix, prefix_tokens)
        return self.workers[place], num_known

    def expect(self, number: int, worker: Worker, before_first: int, after: float) -> None:
        """The request has been sent there, with so many tokens to compute before and (expected) after its first."""
        self._weights[number] = worker.slot, before_first, after
        self.loads.requests[worker.slot] += 1.0
        self.loads.tokens[worker.slot] += before_first + after

    def has_begun(self, number: int) -> None:
        """Its first token has come."""
        place, before_first, after = self._weights[number]
        self._weights[number] = place, 0, after
        self.loads.tokens[place] -= before_first

    def leave(self, number: int) -> None:
        place, before_first, after = self._weights.pop(number)
        self.loads.requests[place] -= 1.0
        self.loads.tokens[place] -= before_first + after

    @property
    def num_requests(self) -> int:
        return len(self._weights)

    def wake(self, worker: Worker, now_s: float) -> None:
        """A worker that stands still goes on if there is something to do."""
        if worker.progress is None and worker.is_alive:
            self._step(worker, now_s)

    def interrupt(self, worker: Worker) -> None:
        """Something comes for the worker: it goes on with what it has only until the step under way has ended."""
        ends_s = worker.interrupt(self._agenda.reached)
        if ends_s is not None:
            self._agenda.cancel(self._ends.pop(worker.order))
            self._note(worker, ends_s)

    def drain(self, worker: Worker, now_s: float) -> None:
        """It gets no new requests, and goes when it has none."""
        self.loads.close(worker.slot)
        worker.is_draining = True
        self._retire(worker, now_s)

    def remove(self, worker: Worker, now_s: float) -> None:
        """It is gone from now on."""
        self.interrupt(worker)
        if worker.progress is not None:
            self._agenda.cancel(self._ends.pop(worker.order))
        self._stands(worker, now_s)
        place = worker.slot
        worker.is_alive, self.workers[place] = False, None
        self.loads.close(place)
        self.policy.forget(place)
        self.group_of[place].has_gone(worker, self._rented_from.pop(place), now_s)

    def finish(self, now_s: float) -> None:
        """The sums of those that are here still, and the rent of those that load."""
        for worker in [each for each in self.workers if each is not None]:
            self.remove(worker, now_s)
        for group in self.groups:
            group.reach(now_s)
        for place, since_s in self._rented_from.items():
            self.group_of[place].rented.append((since_s, now_s))

    def _open(self, place: int, now_s: float) -> None:
        group = self.group_of[place]
        order = self._agenda.new_order()
        worker = Worker(group.replica, place, now_s, prefix_caching=group.prefix_caching, order=order)
        self.loading.discard(place)
        self.workers[place] = worker
        self.loads.open(place, self._speeds[place])
        for callback in self.came:
            callback(now_s, worker)

    def _step(self, worker: Worker, now_s: float) -> None:
        ends_s = worker.begin(now_s)
        if ends_s is not None:
            worker.busy_since_s = now_s if worker.busy_since_s is None else worker.busy_since_s
            self._note(worker, ends_s)
            return
        self._stands(worker, now_s)
        if worker.is_draining:
            self._retire(worker, now_s)

    def _note(self, worker: Worker, ends_s: float) -> None:
        self._ends[worker.order] = self._agenda.at(ends_s, partial(self._ended, worker), worker.order)

    def _ended(self, worker: Worker, now_s: float) -> None:
        del self._ends[worker.order]
        worker.catch_up()
        progress = worker.progress
        if progress and (progress.started or progress.ended or worker.unseen):
            self._deliver(now_s, self, worker)
        worker.progress = None
        self._step(worker, now_s)

    def _stands(self, worker: Worker, now_s: float) -> None:
        """It has nothing to do any more."""
        if worker.busy_since_s is not None:
            self.group_of[worker.slot].was_busy(worker.busy_since_s, now_s)
            worker.busy_since_s = None

    def _retire(self, worker: Worker, now_s: float) -> None:
        """It goes when nothing is there, comes, or is read."""
        has_requests = worker.held or self.loads.requests[worker.slot]
        if worker.is_alive and not has_requests and not worker.num_lent and worker.progress is None:
            self.remove(worker, now_s)
