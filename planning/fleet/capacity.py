"""How much a fleet holds: the highest rate of arrivals at which a share of the requests still keeps the limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .build import build, plan_replicas
from .measures import measures
from .scenario import Scenario

_DOUBLINGS, _HALVINGS = 12, 6


def hurried(scenario: Scenario, factor: float) -> Scenario:
    """The same with so many times as many arrivals a second, for as long; a trace has no more than it has."""
    traffic = scenario.traffic
    faster = traffic.model_copy(update={"arrivals": traffic.arrivals.hurried(factor)})
    count = None if scenario.requests is None else max(round(factor * scenario.requests), 1)
    return scenario.model_copy(update={"traffic": faster, "requests": count})


def capacity(
    scenario: Scenario, folder: Path, share: float, tick: Callable[[], None] = lambda: None
) -> dict[str, Any] | None:
    """The report at the highest rate found, within 2 %; None if not even a 4,096th of the scenario's rate is kept.
    Doubled or halved from the scenario's own rate, then halves between what is kept and what is not."""
    replicas = plan_replicas(scenario)
    reports: dict[float, dict[str, Any]] = {}

    def is_kept(doublings: float) -> bool:
        chosen = hurried(scenario, 2.0**doublings)
        report = reports[doublings] = measures(chosen, build(chosen, folder, replicas).run())
        tick()
        return (report["goodput"]["share"] or 0.0) >= share

    low = next((float(each) for each in range(0, -_DOUBLINGS - 1, -1) if is_kept(each)), None)
    if low is None:
        return None
    while 0 <= low < _DOUBLINGS and is_kept(low + 1):
        low += 1
    high = low + 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_kept(middle) else (low, middle)
    return reports[low]
