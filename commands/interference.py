"""`ambidex bench interference`: what a long prompt does to those who are already being answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .failures import missing_package
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
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the times (.svg or .png).")] = None,
    output_json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole result there.")] = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure the inter-token time of running requests while a long prompt is read, chunked and whole.

    The chunks are as long as `--step-budget-ms` allows by prediction, corrected by the steps before.
    """
    from ..bench.interference import Plan, measure

    result = measure(
        Plan(
            model=model, device=device, dtype=dtype, input_len=input_len, num_requests=num_requests,
            decode_input_len=decode_input_len, step_budget_ms=step_budget_ms, unchunked=unchunked,
            determinism=determinism,
        )
    )  # fmt: skip
    if output_json is not None:
        output_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        _draw(result, plot)
    print(json.dumps(result) if as_object else _shown(result))


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
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_package("matplotlib") from None
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
