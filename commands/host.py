"""`ambidex bench host`: what planning and committing a step costs, with the device's work left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import bench_options, options
from .progress import ticking
from .table import table

_SIZES = (1, 4, 16, 64, 256, 1024)


def host(
    requests: Annotated[
        list[int] | None,
        typer.Option(min=1, max=65536, metavar="N", help="Running requests; repeatable. [default: 1 4 16 64 256 1024]"),
    ] = None,
    steps: Annotated[int, typer.Option(min=10, metavar="N", help="Steps that count, of each size.")] = 1000,
    overlap: Annotated[
        bool, typer.Option("--overlap/--no-overlap", help="Plan each step before the one before it is committed.")
    ] = False,
    output_json: bench_options.OutputJson = None,
    plot: bench_options.Plot = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure the host's part of a step: commit, schedule, deltas, output message.

    The engine is the real one, the device samples at once. One core is what it takes: `taskset -c 0` keeps it there.
    """
    from ..bench.host import growth

    bench_options.check_outputs(plot, output_json)
    sizes = requests or _SIZES
    with ticking("host", len(sizes)) as tick:
        result = growth(sizes, steps, overlap=overlap, tick=tick)
    if plot is not None:
        _draw(result["measurements"], plot)
    bench_options.give_out(result, _shown(result["measurements"]), output_json, as_object)


def _shown(rows: list[dict[str, Any]]) -> str:
    header = ["running requests", "µs a step: median", "10 %", "90 %", "99 %", "µs a request"]
    keys = ["median_us_per_step", "p10_us_per_step", "p90_us_per_step", "p99_us_per_step"]
    lines = [
        [f"{row['num_requests']:,}", *(f"{row[key]:,.0f}" for key in keys), f"{row['us_per_request']:.2f}"]
        for row in rows
    ]
    return table([header, *lines], numbers=range(len(header)))


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    sizes = [row["num_requests"] for row in rows]
    axes.fill_between(
        sizes, [row["p10_us_per_step"] for row in rows], [row["p90_us_per_step"] for row in rows], alpha=0.25,
        label="10 to 90 %",
    )  # fmt: skip
    axes.plot(sizes, [row["median_us_per_step"] for row in rows], marker="o", label="median")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("running requests")
    axes.set_ylabel("host, µs a step")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)
