"""`ambidex bench step`: the device's part of decode steps and prompts, on random weights of a known shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import bench_options, options
from .table import table

if TYPE_CHECKING:
    from collections.abc import Sequence


def step(
    shape: Annotated[str, typer.Option(metavar="NAME", help="Of bench latency's shapes, and 8b.")] = "8b",
    contexts: Annotated[
        str, typer.Option(metavar="N,…", help="Tokens of context of a decode step's requests.")
    ] = "256,1024,8192,32768",
    batch_size: Annotated[str, typer.Option(metavar="N,…", help="Requests of a decode step.")] = "1,8,32",
    prompts: Annotated[str, typer.Option(metavar="N,…", help="Tokens of a prompt.")] = "2048,8192",
    determinism: options.Determinism = "run",
    kernel: options.Kernels = None,
    device: options.Device = None,
    output_json: bench_options.OutputJson = None,
    as_object: options.AsJson = False,
) -> None:
    """Time captured decode steps and prompts on the device itself, against what it reads and multiplies at most.

    Weights are drawn on the device: no checkpoint is written.
    """
    from ..bench.shapes import SHAPES
    from ..bench.step import Plan, measure

    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape} is not known: there are {', '.join(SHAPES)}", param_hint="--shape")
    plan = Plan(
        shape=SHAPES[shape], device=device, determinism=determinism, contexts=_numbers("--contexts", contexts),
        batches=_numbers("--batch-size", batch_size), prompts=_numbers("--prompts", prompts),
        kernels=tuple(options.kernel_choices(kernel).items()),
    )  # fmt: skip
    result = {"model": shape, **measure(plan)}
    bench_options.give_out(result, _text(result), output_json, as_object)


def _numbers(option: str, given: str) -> tuple[int, ...]:
    words = given.split(",")
    if not all(word.isdigit() and int(word) for word in words):
        raise typer.BadParameter("whole numbers above 0, as in 512 or 512,1024", param_hint=option)
    return tuple(dict.fromkeys(map(int, words)))


def _text(result: dict[str, Any]) -> str:
    rows: list[Sequence[str]] = [("step", "ms", "tokens/s", "of R", "of C", "of roof")]
    for each in (*result["decode"], *result["prefill"]):
        name = f"{each['batch']} × {each['context']:,}" if "batch" in each else f"prompt of {each['prompt']:,}"
        shares = (f"{each[share]:.2f}" for share in ("of_r", "of_c", "of_roof"))
        rows.append((name, f"{each['ms']:.3f}", f"{each['tokens_per_s']:,.0f}", *shares))
    lines = [
        table(rows, numbers=range(1, 6)),
        "",
        f"R {result['read_gb_per_s']:,.0f} GB/s, C {result['matrix_tflops']:,.1f} TFLOP/s",
    ]
    if fit := result["fit"]:
        lines.append(
            f"one request: {fit['constant_ms']:.3f} ms + {1e3 * fit['slope_ms']:.4f} µs a token of context; "
            f"{fit['overhead_ms']:.3f} ms over the weights' time at R"
        )
    return "\n".join(lines)
