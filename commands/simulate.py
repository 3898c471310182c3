"""`ambidex simulate`: a fleet on the clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from . import bench_options, options
from .progress import ticking
from .table import fields, table


def simulate(
    scenario: Annotated[
        str | None, typer.Argument(metavar="SCENARIO", show_default=False, help="One that is shipped; none lists them.")
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="A scenario of your own (YAML).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Instead of the scenario's.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, metavar="N", help="Instead of the scenario's number.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report that needs nothing beside it.")
    ] = None,
    output_json: bench_options.OutputJson = None,
    plot: bench_options.Plot = None,
    as_object: options.AsJson = False,
) -> None:
    """Run a fleet of the real scheduler on planned devices: latencies, goodput, cost, before anything is rented.

    Arrivals, lengths, routing, scaling and failures come from the scenario; the same seed gives the same report.
    """
    from ..planning.fleet.scenario import names, read_scenario

    if scenario is None and file is None:
        print(json.dumps(names()) if as_object else _listed(names()))
        return
    if scenario is not None and file is not None:
        raise typer.BadParameter("a scenario and a file are given: give one", param_hint="--file")
    bench_options.check_outputs(plot, output_json, html)
    chosen, folder = read_scenario(scenario, file)
    changes = options.given(seed=seed, requests=requests)
    result = _run(chosen.model_copy(update=changes), folder)
    if html is not None:
        from ..planning.fleet.page import page

        html.write_text(page(scenario or str(file), result), encoding="utf-8")
    if plot is not None:
        _draw(result, plot)
    bench_options.give_out(result, shown(result), output_json, as_object)


def _run(scenario: Any, folder: Path) -> dict[str, Any]:
    from ..planning.fleet.build import build
    from ..planning.fleet.measures import measures

    simulation = build(scenario, folder)
    with ticking("simulate", len(simulation.workload)) as tick:
        return measures(scenario, simulation.run(tick))


def _listed(names: list[str]) -> str:
    from ..planning.fleet.scenario import read_scenario

    rows = [["scenario", "requests", "about"]]
    for name in names:
        found, _ = read_scenario(name)
        rows.append([name, f"{found.requests:,}" if found.requests else "the trace's", found.about])
    return table(rows, numbers=[1])


def shown(result: dict[str, Any]) -> str:
    """Latencies, what was reached and what it costs, then a line for each kind of workers."""
    header = ["ms", "mean", "50 %", "90 %", "99 %"]
    latencies = [
        [label, *(_number(result[key][each]) for each in ("mean", "p50", "p90", "p99"))]
        for label, key in (("first token", "ttft_ms"), ("each further token", "tpot_ms"), ("queue", "queueing_ms"))
    ]
    kinds = [["fleet", "role", "workers", "steps", "mean batch", "busy", "rented h"]]
    for fleet in result["fleets"]:
        kinds += [
            [f"{fleet['name']}: {each['name']}", each["role"], f"{each['places']:,}", f"{each['steps']:,}",
             _number(each["mean_batch"]), _percent(each["utilisation"]), f"{each['rented_s'] / 3600:,.2f}"]
            for each in fleet["workers"]
        ]  # fmt: skip
    parts = [
        table([header, *latencies], numbers=range(1, 5)),
        fields(_facts(result)),
        table(kinds, numbers=range(2, 7)),
    ]
    return "\n\n".join([result["about"], *parts])


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    counts, good = result["requests"], result["goodput"]
    ended = f"{counts['done']:,} of {counts['total']:,} done, {counts['refused']:,} refused, {counts['lost']:,} lost"
    why = f" (the first refused: {counts['refusal']})" if counts["refusal"] else ""
    moved = sum(fleet["moved_bytes"] for fleet in result["fleets"])
    facts = [
        ("requests", f"{ended} in {result['lasted_s']:,.1f} s, {_number(result['arrivals_per_s'])} arriving a second{why}"),
        ("goodput", f"{_number(good['requests_per_s'])} requests/s, {_percent(good['share'])} within "
                    f"{good['ttft_ms']:g} ms and {good['tpot_ms']:g} ms a token"),
        ("throughput", f"{_number(result['output_tokens_per_s'])} new tokens/s, mean batch {_number(result['mean_batch'])}"),
        ("cost", f"{_number(result['eur'])} EUR, {_number(result['eur_per_million_tokens'])} a million new tokens"),
        ("prefix cache", f"{_percent(result['prefix_hit_share'])} of the prompts' tokens"),
    ]  # fmt: skip
    if result["failures"]:
        facts.append(("failures", f"{result['failures']:,} workers, {result['recomputed']:,} requests begun again"))
    if moved:
        facts.append(("moved", f"{moved / 1e9:,.1f} GB of KV"))
    return facts


def _number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _draw(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for fleet in result["fleets"]:
        for each in fleet["workers"]:
            over_time = each["over_time"]
            times = [over_time["stretch_s"] * index for index in range(len(over_time["utilisation"]))]
            upper.plot(times, over_time["utilisation"], label=f"{fleet['name']}, {each['role']}: {each['name']}")
            lower.plot(times, over_time["workers"])
    upper.set_ylabel("busy")
    upper.set_ylim(0, 1.05)
    lower.set_ylabel("workers rented")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("seconds")
    upper.legend(frameon=False, fontsize=7)
    figure.savefig(path)
