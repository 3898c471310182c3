"""A run as sections of a report: `report.page` makes the file of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..charts import Axis, Chart, Series
from ..report import Section

_ROWS = (
    ("first token", "ttft_ms"), ("each further token", "tpot_ms"), ("queue", "queueing_ms"),
)  # fmt: skip
LATENCIES = ("ms", "mean", "50 %", "90 %", "99 %")
KINDS = ("workers", "role", "places", "steps", "mean batch", "busy", "rented h", "preemptions", "failures")


def sections(result: dict[str, Any]) -> list[Section]:
    """result: of `measures`."""
    return [
        Section(
            "What the requests saw",
            facts=facts(result),
            header=LATENCIES,
            rows=latencies(result),
            charts=_curves(result),
        ),
        Section("The workers", header=KINDS, rows=kinds(result), charts=_over_time(result)),
    ]


def about(result: dict[str, Any]) -> str:
    return f"simulated with seed {result['seed']}: the real scheduler on a virtual clock, steps as long as planned"


def latencies(result: dict[str, Any]) -> list[list[str]]:
    columns = ("mean", "p50", "p90", "p99")
    return [[label, *(number(result[key][each]) for each in columns)] for label, key in _ROWS]


def kinds(result: dict[str, Any]) -> list[list[str]]:
    return [
        [f"{fleet['name']}: {each['name']}", each["role"], f"{each['places']:,}", f"{each['steps']:,}",
         number(each["mean_batch"]), percent(each["utilisation"]), f"{each['rented_s'] / 3600:,.2f}",
         f"{each['preemptions']:,}", f"{each['failures']:,}"]
        for fleet in result["fleets"]
        for each in fleet["workers"]
    ]  # fmt: skip


def facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What was reached, and what it costs."""
    counts, good = result["requests"], result["goodput"]
    ended = f"{counts['done']:,} of {counts['total']:,} done, {counts['refused']:,} refused, {counts['lost']:,} lost"
    why = f" (the first refused: {counts['refusal']})" if counts["refusal"] else ""
    took = f"in {result['lasted_s']:,.1f} s, {number(result['arrivals_per_s'])} arriving a second"
    bounds = f"{good['ttft_ms']:g} ms and {good['tpot_ms']:g} ms a token"
    batch = number(result["mean_batch"])
    found = [
        ("requests", f"{ended} {took}{why}"),
        ("goodput", f"{number(good['requests_per_s'])} requests/s, {percent(good['share'])} within {bounds}"),
        ("throughput", f"{number(result['output_tokens_per_s'])} new tokens/s, mean batch {batch}"),
        ("cost", f"{number(result['eur'])} EUR, {number(result['eur_per_million_tokens'])} a million new tokens"),
        ("prefix cache", f"{percent(result['prefix_hit_share'])} of the prompts' tokens"),
    ]
    if result["failures"]:
        again = f"{result['recomputed']:,} requests begun again"
        found.append(("failures", f"{result['failures']:,} workers died, {again}"))
    if moved := sum(fleet["moved_bytes"] for fleet in result["fleets"]):
        found.append(("moved", f"{moved / 1e9:,.1f} GB of KV over the links"))
    return found


def number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _curves(result: dict[str, Any]) -> Sequence[Chart]:
    def of(title: str, key: str) -> Chart:
        series = [
            Series(fleet["name"], list(enumerate(fleet["curves_ms"][key])), has_marks=False)
            for fleet in result["fleets"]
        ]
        return Chart(title, Axis("per cent of the requests"), Axis("ms"), series)

    return of("Time to the first token", "ttft"), of("Time of each further token", "tpot")


def _over_time(result: dict[str, Any]) -> Sequence[Chart]:
    def of(title: str, key: str, label: str) -> Chart:
        series = [
            Series(f"{fleet['name']}, {each['role']}: {each['name']}", _points(each["over_time"], key), has_marks=False)
            for fleet in result["fleets"]
            for each in fleet["workers"]
        ]
        return Chart(title, Axis("seconds"), Axis(label, least=0.0), series)

    return of("How busy", "utilisation", "share of the time"), of("Workers rented", "workers", "workers")


def _points(over_time: dict[str, Any], key: str) -> list[tuple[float, float]]:
    return [(index * over_time["stretch_s"], value) for index, value in enumerate(over_time[key])]
