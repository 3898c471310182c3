"""A run as one HTML page that needs nothing beside it: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .charts import Points, lines

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2328}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;border-bottom:1px solid #d0d7de;"
    "text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;margin:1rem 0}"
)
_LATENCIES = (
    ("Time to first token, ms", "ttft_ms"),
    ("Each further token, ms", "tpot_ms"),
    ("In the queue, ms", "queueing_ms"),
)


def page(name: str, result: dict[str, Any]) -> str:
    """result: of `measures`."""
    sections = [_summary(result), _curves(result), _over_time(result), _kinds(result)]
    title = escape(f"{name}: {result['about']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1>{''.join(sections)}<p>A simulation with seed {result['seed']}: the real scheduler on a virtual "
        "clock, steps as long as the planner predicts them.</p></html>\n"
    )


def _summary(result: dict[str, Any]) -> str:
    rows = [["", "mean", "50 %", "90 %", "99 %"]]
    rows += [
        [label, *(_text(result[key][each]) for each in ("mean", "p50", "p90", "p99"))] for label, key in _LATENCIES
    ]
    counts, good = result["requests"], result["goodput"]
    facts = [
        ["Requests", f"{counts['total']:,}: {counts['done']:,} done, {counts['refused']:,} refused, {counts['lost']:,} lost"],
        ["Goodput", f"{_text(good['requests_per_s'])} requests/s within {good['ttft_ms']:g} ms and {good['tpot_ms']:g} ms a token"],
        ["New tokens a second", _text(result["output_tokens_per_s"])],
        ["EUR a million new tokens", _text(result["eur_per_million_tokens"])],
        ["Mean batch", _text(result["mean_batch"])],
        ["Found in prefix caches", _text(result["prefix_hit_share"])],
    ]  # fmt: skip
    return _table(rows) + _table([["", ""], *facts])


def _curves(result: dict[str, Any]) -> str:
    def across(key: str) -> dict[str, Points]:
        return {fleet["name"]: list(enumerate(fleet["curves_ms"][key])) for fleet in result["fleets"]}

    return lines("Time to first token", across("ttft"), "per cent of requests", "ms") + lines(
        "Time of each further token", across("tpot"), "per cent of requests", "ms"
    )


def _over_time(result: dict[str, Any]) -> str:
    def of(key: str) -> dict[str, Points]:
        return {
            f"{fleet['name']}, {each['role']}: {each['name']}": [
                (index * each["over_time"]["stretch_s"], value) for index, value in enumerate(each["over_time"][key])
            ]
            for fleet in result["fleets"]
            for each in fleet["workers"]
        }

    return lines("Share of the time busy", of("utilisation"), "seconds", "share") + lines(
        "Workers rented", of("workers"), "seconds", "workers"
    )


def _kinds(result: dict[str, Any]) -> str:
    rows = [["Workers", "role", "places", "mean batch", "busy", "rented h", "preemptions", "failures"]]
    for fleet in result["fleets"]:
        rows += [
            [f"{fleet['name']}: {each['name']}", each["role"], f"{each['places']:,}", _text(each["mean_batch"]),
             _text(each["utilisation"]), _text(each["rented_s"] / 3600), f"{each['preemptions']:,}", f"{each['failures']:,}"]
            for each in fleet["workers"]
        ]  # fmt: skip
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>" for tag, row in
                   zip(["th", *["td"] * len(rows)], rows, strict=False))  # fmt: skip
    return f"<table>{head}{''.join(body)}</table>"


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
