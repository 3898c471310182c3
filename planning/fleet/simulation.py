"""A run: requests arrive, fleets serve them, until every one of them has ended or nothing more can happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .agenda import Agenda
from .fleet import Fleet
from .journal import WAITING, Journal
from .workload import Prompts, Workload

_REPORTED_EVERY = 256


@dataclass(frozen=True)
class Outcome:
    """What a report is made of. lasted_s: until the last request had ended."""

    workload: Workload
    journal: Journal
    fleets: tuple[Fleet, ...]
    lasted_s: float


class Simulation:
    """`fleets` gets filled by whoever builds it, before `run`."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self.workload, self.journal, self.agenda = workload, Journal(len(workload)), Agenda()
        self.prompts = Prompts(workload, seed)
        self.fleets: list[Fleet] = []

    def run(self, tick: Callable[[float], None] = lambda num_ended: None) -> Outcome:
        """`tick` is told now and then how many more requests have ended."""
        journal, agenda = self.journal, self.agenda
        self._arrive(0)
        told = journal.remaining
        while journal.remaining and agenda.next():
            if told - journal.remaining >= _REPORTED_EVERY:
                tick(told - journal.remaining)
                told = journal.remaining
        for number in (journal.state == WAITING).nonzero()[0].tolist():
            journal.lose(number)
        for fleet in self.fleets:
            for stage in fleet.stages:
                stage.finish(agenda.now_s)
        return Outcome(self.workload, journal, tuple(self.fleets), agenda.now_s)

    def _arrive(self, number: int) -> None:
        if number < len(self.workload):
            self.agenda.at(float(self.workload.arrival_s[number]), lambda now_s: self._arrived(number, now_s))

    def _arrived(self, number: int, now_s: float) -> None:
        self._arrive(number + 1)
        self.fleets[self.workload.fleet[number]].arrive(now_s, number)
