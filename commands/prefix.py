"""`ambidex bench prefix`: what the prefix cache saves of the time to the first token."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import bench_options, options
from .bench_options import shown_conditions
from .progress import ticking
from .table import table


def prefix(
    model: bench_options.Model = None,
    shape: bench_options.ModelShape = None,
    input_len: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens of a prompt.")] = 1024,
    hit_rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0, max=1, metavar="R", help="Share of the prompt that was seen. Repeatable. [default: 0 0.5 0.9]"
        ),
    ] = None,
    num_iters_warmup: bench_options.WarmUps = 1,
    num_iters: bench_options.Repetitions = 5,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    output_json: bench_options.OutputJson = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure the time to the first token of prompts whose beginning is in the prefix cache, next to new ones."""
    from ..bench.prefix import Plan, measure

    bench_options.check_outputs(None, output_json)
    rates = tuple(dict.fromkeys(hit_rate or (0.0, 0.5, 0.9)))
    with bench_options.checkpoint(model, shape) as folder:
        plan = Plan(
            model=folder, device=device, dtype=dtype, input_len=input_len, hit_rates=rates,
            num_iters_warmup=num_iters_warmup, num_iters=num_iters,
        )  # fmt: skip
        with ticking("prefix", len(rates) * (num_iters_warmup + num_iters)) as tick:
            result = {"model": shape or model or "embedded", **measure(plan, tick)}
    bench_options.give_out(result, shown(result), output_json, as_object)


def shown(result: dict[str, Any]) -> str:
    """The result as a table with its conditions."""
    rows = [["hit rate", "shared", "found", "cold, ms", "warm, ms", "warm is", "operations allow"]]
    rows += [
        [f"{row['hit_rate']:.0%}", str(row["shared_tokens"]), str(row["warm_cached_tokens"]),
         f"{row['cold_s']['median'] * 1000:.1f}", f"{row['warm_s']['median'] * 1000:.1f}",
         f"{row['ratio']:.3f} ×", f"{row['floor']:.3f} ×"]
        for row in result["measurements"]
    ]  # fmt: skip
    plan = result["plan"]
    method = (
        f"prompts of {plan['input_len']} tokens, time to the first token; cold and warm in turn, medians of "
        f"{plan['num_iters']} repetitions after {plan['num_iters_warmup']} to warm up"
    )
    return "\n\n".join([table(rows, numbers=range(7)), shown_conditions(result, method)])
