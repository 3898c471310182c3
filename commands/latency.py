"""`ambidex bench latency`: prefill and decode speed, next to the machine's limits and to other runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import bench_options, options
from .bench_options import GIB, figure, shown_conditions, shown_range
from .plot import bars
from .progress import ticking
from .table import table

if TYPE_CHECKING:
    from ..bench.latency import Plan

_LIMITS = {"prefill": ("share_of_matrix_rate", "C"), "decode": ("share_of_bandwidth", "R")}


def latency(
    more: Annotated[list[int] | None, typer.Argument(metavar="N", hidden=True)] = None,
    model: bench_options.Model = None,
    shape: bench_options.ModelShape = None,
    input_len: Annotated[int, typer.Option(min=1, metavar="N", help="Prompt of the prefill, in tokens.")] = 512,
    output_len: Annotated[int, typer.Option(min=2, metavar="N", help="New tokens of a decode run.")] = 128,
    decode_input_len: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts of a decode run.")] = 128,
    batch_size: Annotated[
        list[str] | None, typer.Option(metavar="N", help="Batch sizes of decode, as in 1 8 or 1,8. [default: 1 8]")
    ] = None,
    mixed_batch: Annotated[
        int | None, typer.Option(min=1, max=1024, metavar="N", help="Also a batch of so many unequal requests.")
    ] = None,
    num_iters_warmup: bench_options.WarmUps = 1,
    num_iters: bench_options.Repetitions = 5,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    compare: bench_options.Compare = None,
    output_json: bench_options.OutputJson = None,
    plot: bench_options.Plot = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure prefill and decode, one batch at a time.

    Medians over the repetitions with their spread, the share of what the machine gave in the same run (R: bytes read,
    C: torch's products), and the peak of resident memory beside what weights and KV cache take.
    """
    from ..bench.latency import Plan, measure

    bench_options.check_outputs(plot, output_json)
    sizes, others = _sizes(batch_size, more), bench_options.peers(compare)
    with bench_options.checkpoint(model, shape) as folder:
        plan = Plan(
            model=folder, device=device, dtype=dtype, input_len=input_len, output_len=output_len,
            decode_input_len=decode_input_len, batch_sizes=sizes, mixed_batch=mixed_batch,
            num_iters_warmup=num_iters_warmup, num_iters=num_iters, compare=others,
        )  # fmt: skip
        turns = (1 + len(others)) * (num_iters_warmup + num_iters) * len(plan.cases())
        with ticking("latency", turns) as tick:
            result = {"model": shape or model or "embedded", **measure(plan, tick)}
    if plot is not None:
        bars(plot, [case.name for case in plan.cases()], _rates(result), "tokens/s")
    bench_options.give_out(result, shown(result, plan), output_json, as_object)


def _sizes(given: list[str] | None, more: list[int] | None) -> tuple[int, ...]:
    """`--batch-size 1 8` leaves the 8 to the arguments; `1,8` and a repeated option are taken as well."""
    if more and not given:
        raise typer.BadParameter(f"what is {more[0]}? Batch sizes follow --batch-size")
    words = [word for each in given or ("1", "8") for word in each.replace(",", " ").split()]
    if not all(word.isdigit() and 0 < int(word) <= 1024 for word in words):
        raise typer.BadParameter("whole numbers from 1 to 1,024, as in 1 8", param_hint="--batch-size")
    return tuple(dict.fromkeys([*map(int, words), *(more or ())]))


def _rates(result: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """The rates of each contender, case by case."""
    names = result["contenders"]
    return {name: [row["tokens_per_s"] for row in result["measurements"] if row["contender"] == name] for name in names}


def shown(result: dict[str, Any], plan: Plan) -> str:
    """The result as a table with its conditions."""
    header = ["", "", "tokens/s", "from–to", "ambidex is", "of limit"]
    rows = [header, *(line for case in plan.cases() for line in _lines(result, case.name))]
    method = (
        f"decode from {plan.decode_input_len} to {plan.decode_input_len + plan.output_len} tokens; medians of "
        f"{plan.num_iters} repetitions after {plan.num_iters_warmup} to warm up, contenders in turn"
    )
    agreed = ", ".join(f"{name} {share:.0%}" for name, share in result["same_first_tokens"].items())
    method += f"; first tokens that agree with ours: {agreed}" if agreed else ""
    parts = [table(rows, numbers=range(2, 6)), _memory_table(result), shown_conditions(result, method)]
    return "\n\n".join(parts)


def _lines(result: dict[str, Any], case: str) -> list[list[str]]:
    rows = [row for row in result["measurements"] if row["case"] == case]
    lines = []
    for index, row in enumerate(rows):
        ratio = result["ratios"].get(case, {}).get(row["contender"])
        key, limit = _LIMITS.get(row["kind"], ("", ""))
        lines.append([
            "" if index else case, row["contender"], figure(row["tokens_per_s"]["median"]),
            shown_range(row["tokens_per_s"]), f"{ratio:.2f} ×" if ratio else "",
            f"{row[key]:.0%} {limit}" if key else "",
        ])  # fmt: skip
    return lines


def _memory_table(result: dict[str, Any]) -> str:
    rows = [["peak memory above the imports", "GiB", "× (weights + KV cache)", "weights", "KV cache"]]
    rows += [
        [name, *(f"{value:.3f}" for value in (each["peak_bytes"] / GIB, each["times_held"])),
         f"{each['weight_bytes'] / GIB:.3f}", f"{each['kv_cache_bytes'] / GIB:.3f}"]
        for name, each in result["memory"].items()
    ]  # fmt: skip
    return table(rows, numbers=range(1, 5))
