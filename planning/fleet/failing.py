"""Workers that die: as often as devices do, or at times that are given. One device lost is its whole worker lost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field

from .agenda import Agenda
from .fleet import Fleet
from .record import Count, NotNegative, Positive, Record
from .scaling import Loading, replace
from .stage import Stage
from .worker import Worker

_DAY_S = 86_400.0


class Death(Record):
    """Of the worker in a place (counted over all groups of a stage) of a fleet, at a time."""

    time_s: NotNegative
    fleet: str | None = None
    stage: Annotated[int, Field(ge=0, le=1)] = 0
    place: Annotated[int, Field(ge=0)] = 0


class Failures(Record):
    """One device in `devices` every `days`, at random; and those `at` given times. replaced: by a worker that has to
    load first."""

    devices: Count = 64
    days: Positive | None = None
    at: tuple[Death, ...] = ()
    replaced: bool = True


class Failing:
    """Notes when workers of the fleets die."""

    def __init__(self, failures: Failures, loading: Loading, agenda: Agenda, seed: int) -> None:
        self._failures, self._loading, self._agenda = failures, loading, agenda
        self._draw = np.random.default_rng([seed, 200])

    def watch(self, fleet: Fleet, stage: Stage) -> None:
        """From now on each new worker has a time to live."""
        if self._failures.days is not None:
            stage.came.append(partial(self._expect, fleet, stage))

    def note(self, fleets: Sequence[tuple[str, Fleet]]) -> None:
        """The deaths that are given: of the first fleet where none is named."""
        for death in self._failures.at:
            fleet = dict(fleets)[death.fleet or fleets[0][0]]
            self._agenda.at(death.time_s, partial(self._strike, fleet, fleet.stages[death.stage], death.place))

    def _expect(self, fleet: Fleet, stage: Stage, now_s: float, worker: Worker) -> None:
        assert self._failures.days is not None
        mean_s = self._failures.days * _DAY_S * self._failures.devices / worker.replica.tensor_parallel
        self._agenda.at(now_s + self._draw.exponential(mean_s), partial(self._die, fleet, stage, worker))

    def _strike(self, fleet: Fleet, stage: Stage, place: int, now_s: float) -> None:
        worker = stage.workers[place]
        if worker is not None:
            self._die(fleet, stage, worker, now_s)

    def _die(self, fleet: Fleet, stage: Stage, worker: Worker, now_s: float) -> None:
        if not worker.is_alive:
            return
        fleet.fail(now_s, stage, worker)
        if self._failures.replaced and not worker.is_draining:
            replace(stage, worker, self._loading, now_s)
