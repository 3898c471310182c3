"""What a run shows, as plain values: percentiles of latencies, goodput, cost, and how busy the workers were.

Nothing in it depends on the machine or the time of the simulation: the same scenario and seed give the same bits.
Latencies are of requests that ended; TPOT of those with two tokens or more. Cost is rent from a worker's order (loading
included) until it goes or the last request has ended, for a million generated tokens as in a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fleet import Fleet
from .group import Group
from .journal import DONE, LOST, REFUSED, Journal
from .scenario import FleetSpec, Scenario
from .simulation import Outcome
from .stage import Stage
from .workload import Slo, Workload

Reals = NDArray[np.float64]
_PERCENTILES = (50, 90, 99)
_HOUR_S = 3600.0


def measures(scenario: Scenario, outcome: Outcome) -> dict[str, Any]:
    """The report; `docs/cli.md` describes its keys."""
    workload, journal = outcome.workload, outcome.journal
    groups = [group for fleet in outcome.fleets for stage in fleet.stages for group in stage.groups]
    everything = np.ones(len(workload), dtype=np.bool_)
    steps = sum(group.num_steps for group in groups)
    return {
        "about": scenario.about,
        "seed": scenario.seed,
        "requests": _counts(journal),
        "lasted_s": outcome.lasted_s,
        "arrivals_per_s": _rate(len(workload), float(workload.arrival_s[-1])),
        **_latencies(workload, journal, everything, scenario.slo, outcome.lasted_s),
        **_cost(groups, _generated(journal, everything)),
        "steps": steps,
        "mean_batch": _share(sum(group.num_spans for group in groups), steps),
        "prefix_hit_share": _share(int(journal.cached.sum()), int(journal.prompted.sum())),
        "failures": sum(group.num_failures for group in groups),
        "recomputed": int((journal.attempts > 1).sum()),
        "fleets": [
            _fleet(spec, fleet, outcome, workload.fleet == index, scenario.slo)
            for index, (spec, fleet) in enumerate(zip(scenario.fleets, outcome.fleets, strict=True))
        ],
    }


def _counts(journal: Journal) -> dict[str, Any]:
    return {
        "total": len(journal.state),
        "done": journal.num(DONE),
        "refused": journal.num(REFUSED),
        "lost": journal.num(LOST),
        "refusal": journal.refusal,
    }


def _latencies(
    workload: Workload, journal: Journal, chosen: NDArray[np.bool_], slo: Slo, lasted_s: float
) -> dict[str, Any]:
    done = journal.done & chosen
    tokens, arrived = journal.generated[done], workload.arrival_s[done]
    first, ended = journal.first_s[done], journal.ended_s[done]
    ttft_ms = 1e3 * (first - arrived)
    is_long = tokens > 1
    tpot_ms = np.zeros(len(tokens))
    tpot_ms[is_long] = 1e3 * (ended - first)[is_long] / (tokens[is_long] - 1)
    good = (ttft_ms <= slo.ttft_ms) & (tpot_ms <= slo.tpot_ms)
    return {
        "requests_per_s": _rate(int(done.sum()), lasted_s),
        "output_tokens_per_s": _rate(int(tokens.sum()), lasted_s),
        "input_tokens_per_s": _rate(int(workload.input_tokens[done].sum()), lasted_s),
        "ttft_ms": percentiles(ttft_ms),
        "tpot_ms": percentiles(tpot_ms[is_long]),
        "queueing_ms": percentiles(1e3 * (journal.started_s[done] - arrived)),
        "curves_ms": {"ttft": _curve(ttft_ms), "tpot": _curve(tpot_ms[is_long])},
        "goodput": {
            "ttft_ms": slo.ttft_ms,
            "tpot_ms": slo.tpot_ms,
            "share": _share(int(good.sum()), int(chosen.sum())),
            "requests_per_s": _rate(int(good.sum()), lasted_s),
        },
    }


def percentiles(values: Reals) -> dict[str, float | None]:
    """Mean and percentiles; None where there is no value."""
    if not len(values):
        return dict.fromkeys(["mean", *(f"p{each}" for each in _PERCENTILES)])
    found = np.percentile(values, _PERCENTILES)
    return {
        "mean": float(values.mean()),
        **{f"p{each}": float(at) for each, at in zip(_PERCENTILES, found, strict=True)},
    }


def _curve(values: Reals) -> list[float]:
    """The percentiles 0 to 100."""
    return np.percentile(values, np.arange(101)).tolist() if len(values) else []


def _generated(journal: Journal, chosen: NDArray[np.bool_]) -> int:
    """Tokens of answers that ended."""
    return int(journal.generated[journal.done & chosen].sum())


def _cost(groups: Sequence[Group], num_tokens: int) -> dict[str, float | None]:
    """EUR at the profiles' prices; None where one has none."""
    prices = [group.replica.eur_per_hour for group in groups]
    hours = [group.rented_s / _HOUR_S for group in groups]
    if any(price is None for price in prices):
        return {"eur": None, "eur_per_million_tokens": None}
    eur = sum((price or 0.0) * hour for price, hour in zip(prices, hours, strict=True))
    return {"eur": eur, "eur_per_million_tokens": _share(1e6 * eur, num_tokens)}


def _fleet(spec: FleetSpec, fleet: Fleet, outcome: Outcome, chosen: NDArray[np.bool_], slo: Slo) -> dict[str, Any]:
    groups = [group for stage in fleet.stages for group in stage.groups]
    return {
        "name": spec.name,
        "routing": spec.routing,
        "requests": int(chosen.sum()),
        **_latencies(outcome.workload, outcome.journal, chosen, slo, outcome.lasted_s),
        **_cost(groups, _generated(outcome.journal, chosen)),
        "moved_tokens": fleet.num_moved_tokens,
        "moved_bytes": fleet.num_moved_bytes,
        "workers": [_workers(stage, group, outcome.lasted_s) for stage in fleet.stages for group in stage.groups],
    }


def _workers(stage: Stage, group: Group, lasted_s: float) -> dict[str, Any]:
    rented = over_time(group.rented, group.stretch_s, lasted_s)
    busy = np.zeros(len(rented))
    busy[: len(group.busy_s)] = group.busy_s[: len(rented)]
    return {
        "name": group.replica.name,
        "role": stage.role,
        "places": len(group.places),
        "steps": group.num_steps,
        "mean_batch": _share(group.num_spans, group.num_steps),
        "computed_prompt_tokens": group.num_computed_prompt_tokens,
        "preemptions": group.num_preemptions,
        "failures": group.num_failures,
        "rented_s": group.rented_s,
        "utilisation": _share(float(busy.sum()), group.rented_s),
        "over_time": {
            "stretch_s": group.stretch_s,
            "workers": (rented / group.stretch_s).tolist(),
            "utilisation": np.divide(busy, rented, out=np.zeros(len(busy)), where=rented > 0).tolist(),
        },
    }


def over_time(intervals: Sequence[tuple[float, float]], stretch_s: float, lasted_s: float) -> Reals:
    """Seconds of all intervals that lie in each stretch."""
    edges = stretch_s * np.arange(int(lasted_s / stretch_s) + 2)
    inside = np.zeros(len(edges) - 1)
    for since, until in intervals:
        inside += np.clip(np.minimum(edges[1:], until) - np.maximum(edges[:-1], since), 0.0, None)
    return inside


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
