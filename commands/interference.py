"""`ambidex bench interference`: what a long prompt does to those who are already being answered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import bench_options, options
from .progress import ticking
from .table import table


def interference(
    model: options.ModelArgument = None,
    input_len: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens of the long prompt.")] = 768,
    num_requests: Annotated[int, typer.Option(min=1, metavar="N", help="Requests that decode meanwhile.")] = 4,
    decode_input_len: Annotated[int, typer.Option(min=1, metavar="N", help="Their prompts, in tokens.")] = 128,
    step_budget_ms: Annotated[float, typer.Option(min=0.001, metavar="MS", help="What a step may take.")] = 200.0,
    unchunked: Annotated[
        bool, typer.Option("--unchunked/--no-unchunked", help="Run it again, the long prompt read in one step.")
    ] = True,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    determinism: options.Determinism = "batch",
    output_json: bench_options.OutputJson = None,
    plot: bench_options.Plot = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure the inter-token time of running requests while a long prompt is read, chunked and whole.

    The chunks are as long as `--step-budget-ms` allows by prediction, corrected by the steps before.
    """
    from ..bench.interference import Plan, measure

    bench_options.check_outputs(plot, output_json)
    plan = Plan(
        model=model, device=device, dtype=dtype, input_len=input_len, num_requests=num_requests,
        decode_input_len=decode_input_len, step_budget_ms=step_budget_ms, unchunked=unchunked,
        determinism=determinism,
    )  # fmt: skip
    with ticking("interference", len(plan.budgets_ms) * input_len) as tick:
        result = {"model": model or "embedded", **measure(plan, tick)}
    if plot is not None:
        _draw(result, plot)
    bench_options.give_out(result, _shown(result), output_json, as_object)


def _shown(result: dict[str, Any]) -> str:
    header = ["long prompt", "first token after, s", "inter-token ms: median", "99 %", "longest", "99 % / budget"]
    rows = []
    for run in result["runs"]:
        budget = run["step_budget_ms"]
        rows.append(
            [
                f"in chunks of {budget:g} ms" if budget else "whole",
                f"{run['time_to_first_token_s']:.2f}",
                *(f"{run[key]:,.1f}" for key in ("median_ms", "p99_ms", "max_ms")),
                f"{run['p99_ms'] / budget:.2f}" if budget else "",
            ]
        )
    return table([header, *rows], numbers=range(1, len(header)))


def _draw(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for run in result["runs"]:
        budget = run["step_budget_ms"]
        label = f"chunks of {budget:g} ms" if budget else "whole"
        axes.plot(run["ends_s"], run["gaps_ms"], marker=".", linewidth=0.8, label=label)
    axes.axhline(1.5 * result["plan"]["step_budget_ms"], color="grey", linestyle="--", label="1.5 × budget")
    axes.set_yscale("log")
    axes.set_xlabel("seconds since the long prompt arrived")
    axes.set_ylabel("others' inter-token time, ms")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)
