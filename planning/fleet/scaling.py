"""More workers when more is to do, fewer when less: at a constant interval, within the places that each group has.

A worker serves only after its weights have been read, so reacting is late by minutes. With a period given, what was
needed one period ago at the time when a worker rented now would begin to serve is rented ahead.
"""

from __future__ import annotations

import math

from .agenda import Agenda
from .fleet import Fleet
from .group import Group
from .record import NotNegative, Positive, Record
from .stage import Stage
from .worker import Replica, Worker


class Loading(Record):
    """What passes before a new worker serves: its weights over this rate, and the rest of its start."""

    gb_per_s: Positive
    start_s: NotNegative = 0.0

    def seconds(self, replica: Replica) -> float:
        return self.start_s + replica.weight_bytes / (1e9 * self.gb_per_s)


class Scaling(Record):
    """requests_per_worker: aimed at. calm_s: how long fewer must do before a worker goes. prewarm_period_s: of the
    history that repeats itself; None reacts only."""

    every_s: Positive = 30.0
    requests_per_worker: Positive
    calm_s: NotNegative = 300.0
    prewarm_period_s: Positive | None = None


class Scaler:
    """One stage's. History is kept by interval: the workers that were needed."""

    def __init__(self, scaling: Scaling, loading: Loading, fleet: Fleet, stage: Stage, agenda: Agenda) -> None:
        self._scaling, self._loading, self._fleet, self._stage, self._agenda = scaling, loading, fleet, stage, agenda
        self._needed: list[int] = []
        self._calm_since_s: float | None = None
        agenda.at(scaling.every_s, self._look)

    def _look(self, now_s: float) -> None:
        backlog = len(self._fleet.backlog)
        needed = math.ceil((self._stage.num_requests + backlog) / self._scaling.requests_per_worker)
        self._needed.append(needed)
        self._adapt(max(needed, self._foreseen()), now_s)
        self._agenda.at(now_s + self._scaling.every_s, self._look)

    def _foreseen(self) -> int:
        """The most that was needed one period ago, from now until a worker rented now would serve."""
        if self._scaling.prewarm_period_s is None:
            return 0
        back = len(self._needed) - 1 - round(self._scaling.prewarm_period_s / self._scaling.every_s)
        slowest_s = max(self._loading.seconds(group.replica) for group in self._stage.groups)
        ahead = math.ceil(slowest_s / self._scaling.every_s) + 1
        return max(self._needed[max(back, 0) : max(back + ahead + 1, 0)], default=0)

    def _adapt(self, wanted: int, now_s: float) -> None:
        stage = self._stage
        serving = stage.loads.num_open + len(stage.loading)
        if wanted >= serving:
            self._calm_since_s = None
            for _ in range(min(wanted - serving, len(stage.workers))):
                self._rent(now_s)
            return
        if self._calm_since_s is None:
            self._calm_since_s = now_s
        if now_s - self._calm_since_s >= self._scaling.calm_s:
            self._let_go(now_s)

    def _rent(self, now_s: float) -> None:
        """The first free place of the first group that has one."""
        for place, worker in enumerate(self._stage.workers):
            if worker is None and place not in self._stage.loading:
                group = self._stage.group_of[place]
                self._stage.rent(place, now_s, self._loading.seconds(group.replica))
                return

    def _let_go(self, now_s: float) -> None:
        """The last worker beyond those that its group keeps."""
        for place in reversed(range(len(self._stage.workers))):
            worker, group = self._stage.workers[place], self._stage.group_of[place]
            if worker is not None and not worker.is_draining and self._num_open(group) > group.num_initial:
                self._stage.drain(worker, now_s)
                return

    def _num_open(self, group: Group) -> int:
        return sum(self._stage.loads.is_open(place) for place in group.places)


def replace(stage: Stage, worker: Worker, loading: Loading, now_s: float) -> None:
    """A new worker for one that is gone, in its place."""
    stage.rent(worker.slot, now_s, loading.seconds(worker.replica))
