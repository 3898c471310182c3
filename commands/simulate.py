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
        str | None, typer.Argument(metavar="SCENARIO", show_default=False, help="A shipped one; none lists them.")
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="A scenario of your own (YAML).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Instead of the scenario's.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, metavar="N", help="Instead of the scenario's number.")] = None,
    routing: Annotated[str | None, typer.Option(metavar="POLICY", help="Instead of that of every fleet.")] = None,
    max_rate: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, metavar="SHARE", help="Find the rate at which this share keeps the limits."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report that needs nothing else.")] = None,
    output_json: bench_options.OutputJson = None,
    plot: bench_options.Plot = None,
    as_object: options.AsJson = False,
) -> None:
    """Run a fleet of the real scheduler on planned devices: latencies, goodput, cost, before anything is rented.

    Arrivals, lengths, routing, scaling and failures come from the scenario; the same seed gives the same report.
    """
    from ..planning.fleet.scenario import names, read_scenario, rerouted

    if scenario is None and file is None:
        print(json.dumps(names()) if as_object else _listed(names()))
        return
    if scenario is not None and file is not None:
        raise typer.BadParameter("a scenario and a file are given: give one", param_hint="--file")
    bench_options.check_outputs(plot, output_json, html)
    chosen, folder = read_scenario(scenario, file)
    changes = options.given(seed=seed, requests=requests)
    chosen = rerouted(chosen, routing) if routing else chosen
    changed = chosen.model_copy(update=changes)
    result = _run(changed, folder) if max_rate is None else _most(changed, folder, max_rate)
    if html is not None:
        from ..planning.fleet.sections import about, sections
        from ..planning.report import page

        html.write_text(page(result["about"], sections(result), about(result)), encoding="utf-8")
    if plot is not None:
        _draw(result, plot)
    bench_options.give_out(result, shown(result), output_json, as_object)


def _run(scenario: Any, folder: Path) -> dict[str, Any]:
    from ..planning.fleet.build import build
    from ..planning.fleet.measures import measures

    simulation = build(scenario, folder)
    with ticking("simulate", len(simulation.workload)) as tick:
        return measures(scenario, simulation.run(tick))


def _most(scenario: Any, folder: Path, share: float) -> dict[str, Any]:
    """The run at the highest rate that the fleet holds."""
    from ..planning.fleet.capacity import capacity

    with ticking("simulate", 10) as tick:
        found = capacity(scenario, folder, share, tick)
    if found is None:
        limits = f"{scenario.slo.ttft_ms:g} ms and {scenario.slo.tpot_ms:g} ms a token"
        raise typer.BadParameter(f"at no rate {share:.0%} of the requests keep {limits}", param_hint="--max-rate")
    return found


def _listed(names: list[str]) -> str:
    from ..planning.fleet.scenario import read_scenario

    rows = [["scenario", "requests", "about"]]
    for name in names:
        found, _ = read_scenario(name)
        rows.append([name, f"{found.requests:,}" if found.requests else "the trace's", found.about])
    return table(rows, numbers=[1])


def shown(result: dict[str, Any]) -> str:
    """Latencies, what was reached and what it costs, then a line for each kind of workers."""
    from ..planning.fleet.sections import KINDS, LATENCIES, facts, kinds, latencies

    parts = [
        table([LATENCIES, *latencies(result)], numbers=range(1, 5)),
        fields(facts(result)),
        table([KINDS, *kinds(result)], numbers=range(2, 9)),
    ]
    return "\n\n".join([result["about"], *parts])


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
