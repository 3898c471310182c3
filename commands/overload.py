"""`ambidex bench overload`: far more requests than the KV cache holds."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import bench_options, options
from .progress import ticking
from .table import fields, table

MIB = 2**20


def overload(
    model: options.ModelArgument = None,
    input_len: Annotated[int, typer.Option(min=1, metavar="N", help="Prompt of each request, in tokens.")] = 64,
    output_len: Annotated[int, typer.Option(min=1, metavar="N", help="New tokens of each request.")] = 64,
    fitting: Annotated[int, typer.Option(min=1, metavar="N", help="Requests that the KV cache holds at once.")] = 16,
    times: Annotated[int, typer.Option(min=3, metavar="N", help="So many times more clients ask.")] = 10,
    seconds: Annotated[float, typer.Option(min=1.0, metavar="S", help="Length of each of the two phases.")] = 60.0,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    determinism: options.Determinism = "run",
    output_json: bench_options.OutputJson = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure an engine process under as many clients as fit, then under many times more.

    Nothing may be lost: every request that was taken ends with all its tokens, every other one is refused. Nothing may
    be leaked: pages, memory and open files are compared before, between and after.
    """
    from ..bench.overload import Plan, measure

    bench_options.check_outputs(None, output_json)
    plan = Plan(
        model=model, device=device, dtype=dtype, input_len=input_len, output_len=output_len, fitting=fitting,
        times=times, seconds=seconds, determinism=determinism,
    )  # fmt: skip
    with ticking("overload", plan.warm_up_s + 2 * seconds) as tick:
        result = {"model": model or "embedded", **measure(plan, tick)}
    bench_options.give_out(result, _shown(result), output_json, as_object)


def _shown(result: dict[str, Any]) -> str:
    header = ["clients", "tokens/s", "ended", "refused", "broken", "preemptions"]
    rows = [
        [
            str(phase["clients"]), f"{phase['tokens_per_s']:,.1f}", f"{phase['requests_ended']:,}",
            f"{phase['requests_refused']:,}", str(len(phase["requests_broken"])), str(phase["preemptions"]),
        ]
        for phase in (result["uncontended"], result["overload"])
    ]  # fmt: skip
    state = [["", "free pages", "engine MiB", "engine files", "client MiB", "client files"]]
    state += [[name, *_state(values)] for name, values in result["state"].items()]
    ratio = fields([("throughput of the crowd", f"{result['throughput_ratio']:.3f} of the uncontended")])
    numbers = range(1, 6)
    return "\n".join([table([header, *rows], numbers=range(6)), "", ratio, "", table(state, numbers=numbers)])


def _state(values: dict[str, int]) -> list[str]:
    cells = [f"{values['free_pages']} of {values['num_pages']}"]
    for side in ("engine", "client"):
        resident = values.get(f"{side}_resident_bytes")
        cells += ["?" if resident is None else f"{resident / MIB:,.1f}", str(values.get(f"{side}_open_files", "?"))]
    return cells
