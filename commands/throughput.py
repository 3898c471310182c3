"""`ambidex bench throughput`: all requests at once, until the last has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import bench_options, options
from .bench_options import figure, shown_conditions, shown_range
from .plot import bars
from .progress import ticking
from .table import table

_DATASETS = ("random", "sharegpt")


def throughput(
    model: bench_options.Model = None,
    shape: bench_options.ModelShape = None,
    dataset_name: Annotated[
        str, typer.Option(metavar="NAME", help="random, or sharegpt with --dataset-path.")
    ] = "random",
    dataset_path: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Conversations as JSON, in ShareGPT's form.")
    ] = None,
    input_len: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of a random prompt.")] = 512,
    output_len: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="New tokens a request. [default: 128, or the data's answers]")
    ] = None,
    random_range_ratio: Annotated[
        float, typer.Option(min=0, max=0.99, metavar="R", help="Random lengths from (1 - R) to (1 + R) times.")
    ] = 0.0,
    num_prompts: Annotated[int, typer.Option(min=1, metavar="N", help="Requests.")] = 64,
    max_num_seqs: Annotated[int, typer.Option(min=1, metavar="N", help="Requests that run at once.")] = 64,
    max_num_batched_tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens of one step.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of lengths and ids.")] = 0,
    num_iters_warmup: bench_options.WarmUps = 1,
    num_iters: bench_options.Repetitions = 3,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    compare: bench_options.Compare = None,
    output_json: bench_options.OutputJson = None,
    plot: bench_options.Plot = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure tokens a second offline, all requests at once; options and keys are vLLM's."""
    from ..bench.throughput import Plan, measure

    bench_options.check_outputs(plot, output_json)
    _check_dataset(dataset_name, dataset_path)
    others = bench_options.peers(compare)
    with bench_options.checkpoint(model, shape) as folder:
        plan = Plan(
            model=folder, device=device, dtype=dtype, dataset=str(dataset_path) if dataset_path else None,
            input_len=input_len, output_len=output_len, num_prompts=num_prompts, range_ratio=random_range_ratio,
            seed=seed, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
            num_iters_warmup=num_iters_warmup, num_iters=num_iters, compare=others,
        )  # fmt: skip
        with ticking("throughput", (1 + len(others)) * (num_iters_warmup + num_iters)) as tick:
            result = {"model": shape or model or "embedded", **measure(plan, tick)}
    if plot is not None:
        rates = {row["contender"]: [row["output_tokens_per_second"]] for row in result["measurements"]}
        bars(plot, [f"{num_prompts} requests"], rates, "new tokens/s")
    bench_options.give_out(result, shown(result), output_json, as_object)


def _check_dataset(name: str, path: Path | None) -> None:
    if name not in _DATASETS:
        raise typer.BadParameter(f"{name} is not known: there are {', '.join(_DATASETS)}", param_hint="--dataset-name")
    if (name == "sharegpt") != (path is not None):
        raise typer.BadParameter("sharegpt and a file belong together: give both", param_hint="--dataset-path")


def shown(result: dict[str, Any]) -> str:
    """The result as a table with its conditions."""
    rows = [["", "requests/s", "tokens/s", "new tokens/s", "from–to", "ambidex is", "of limits"]]
    for row in result["measurements"]:
        ratio = result["ratios"].get(row["contender"])
        new = row["output_tokens_per_second"]
        rows.append([
            row["contender"], f"{row['requests_per_second']:.2f}", figure(row["tokens_per_second"]),
            figure(new["median"]), shown_range(new), f"{ratio:.2f} ×" if ratio else "",
            f"{row['share_of_roofline']:.0%}",
        ])  # fmt: skip
    ours, plan = result["measurements"][0], result["plan"]
    method = (
        f"{ours['num_requests']} requests of {ours['total_num_tokens']} tokens in all, at most {plan['max_num_seqs']} "
        f"at once; medians of {plan['num_iters']} repetitions after {plan['num_iters_warmup']} to warm up, in turn"
    )
    return "\n\n".join([table(rows, numbers=range(1, 7)), shown_conditions(result, method)])
