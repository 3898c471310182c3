"""`ambidex bench ops`: every kernel on every case of its op, or a decoder layer's products in a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import bench_options, options
from .progress import ticking
from .table import fields, table

if TYPE_CHECKING:
    import torch

    from ..bench.ceilings import Ceilings
    from ..bench.chain import Chain, Shape
    from ..bench.ops import Bench, Selection
    from ..bench.stopwatch import Stopwatch
    from ..bench.trials import Place

Pattern = Annotated[str, typer.Option(metavar="PATTERN", help="Only those whose name fits, as in '*linear*'.")]


def ops(
    ops: Pattern = "*",
    cases: Pattern = "*",
    kernels: Pattern = "*",
    dtype: Annotated[
        str, typer.Option(metavar="D", help="float32, bfloat16 or float16, where the op has it.")
    ] = "bfloat16",
    device: options.Device = None,
    chain: Annotated[
        bool, typer.Option("--chain", help="Instead: the four products of decoder layers, chained.")
    ] = False,
    kernel: options.Kernels = None,
    max_seconds: Annotated[float, typer.Option(min=0.01, metavar="S", help="To measure each kernel for.")] = 0.3,
    output_json: bench_options.OutputJson = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure kernels: time, bytes/s, FLOP/s, share of this run's roofline, the library beside, the error.

    A kernel that is not right on a case's twin is not timed. --kernel chooses for --chain, as in explain.
    """
    from ..bench.chain import Chain
    from ..bench.ops import Bench
    from ..bench.results import conditions

    shapes = _shapes(cases) if chain else {}
    selection = _selection(ops, "*" if chain else cases, kernels, dtype)
    place, watch, device_name = here(device, max_seconds)
    limits = ceilings(watch, selection.dtype)
    about = {
        **conditions(), "device": device_name, "profile": place.profile.name, "limits": limits.plain(),
    }  # fmt: skip
    if chain:
        made = {name: Chain(shape, selection.dtype, place, watch) for name, shape in shapes.items()}
        measured = _chains(made, limits, options.kernel_choices(kernel))
        text = _shown_chains(measured)
    else:
        measured = _cases(selection, Bench(place, watch, limits))
        text = _shown(measured)
    shown = f"{text}\n\n{shown_limits(about)}"
    bench_options.give_out({**about, "measurements": measured}, shown, output_json, as_object)


def here(device: str | None, budget_s: float) -> tuple[Place, Stopwatch, str]:
    """Where to measure and with what; the device's own name."""
    from ..backends.choosing import best
    from ..bench.stopwatch import Stopwatch
    from ..bench.trials import Place
    from ..ops.discovery import missing_languages

    found = best(device)
    assert found.match.profile is not None
    where = found.backend.device(found.report)
    watch = Stopwatch(found.backend, where, budget_s)
    return Place(found.match.profile, where, missing_languages()), watch, found.report.name


def float_dtype(name: str) -> torch.dtype:
    from ..runtime.options import DTYPES

    if name not in DTYPES:
        raise typer.BadParameter(f"{name} is not known: there are {', '.join(DTYPES)}", param_hint="--dtype")
    return DTYPES[name]


def ceilings(watch: Stopwatch, dtype: torch.dtype) -> Ceilings:
    """R, and C in the dtype, in bfloat16 and in float32."""
    import torch

    from ..bench.ceilings import measure

    return measure(watch, list(dict.fromkeys([torch.bfloat16, torch.float32, dtype])))


def _selection(ops: str, cases: str, kernels: str, dtype: str) -> Selection:
    from ..bench.ops import Selection

    selection = Selection(ops, cases, kernels, float_dtype(dtype))
    if not selection.trials():
        raise typer.BadParameter(f"no op fits {ops!r} with a case {cases!r}", param_hint="--ops")
    return selection


def _shapes(pattern: str) -> dict[str, Shape]:
    from fnmatch import fnmatch

    from ..bench.chain import SHAPES

    shapes = {name: shape for name, shape in SHAPES.items() if fnmatch(name, pattern)}
    if not shapes:
        raise typer.BadParameter(f"no chain fits {pattern!r}: there are {', '.join(SHAPES)}", param_hint="--cases")
    return shapes


def _cases(selection: Selection, bench: Bench) -> list[dict[str, Any]]:
    from ..bench.ops import rows

    with ticking("cases", len(selection.trials())) as tick:
        return list(rows(selection, bench, tick))


def _chains(chains: Mapping[str, Chain], limits: Ceilings, choices: Mapping[str, str]) -> list[dict[str, Any]]:
    from ..bench.chain import ROWS

    measured = []
    with ticking("chains", len(chains) * len(ROWS)) as tick:
        for name, chain in chains.items():
            for num_rows in ROWS:
                measured.append({"shape": name, **chain.measure(num_rows, limits, choices)})
                tick()
            chain.forget()
    return measured


def _shown(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["op", "case", "dtype", "kernel", "µs", "GB/s", "TFLOP/s", "roofline", "× library", "error", "launch"]
    timed = [_cells(row) for row in rows if "time_us" in row]
    others = [f"{row['op']} {row['case']}: {row['kernel']} {_why(row)}" for row in rows if "time_us" not in row]
    parts = [table([header, *timed], numbers=range(4, 10))] if timed else []
    return "\n\n".join([*parts, "\n".join(others)]).strip()


def _cells(row: Mapping[str, Any]) -> list[str]:
    times = row["times_library"]
    return [
        row["op"], row["case"], row["dtype"], row["kernel"] + (" (eager)" if row["eager"] else ""),
        f"{row['time_us']:,.2f}", f"{row['gb_per_s']:,.0f}", f"{row['tflops']:,.2f}", f"{row['roofline_share']:.1%}",
        "" if times is None else f"{times:.2f}", f"{row['error']:.1e}", row["launch_source"] or "",
    ]  # fmt: skip


def _why(row: Mapping[str, Any]) -> str:
    return f"refuses: {row['refused']}" if "refused" in row else f"is not right and was not timed: {row['failed']}"


def _shown_chains(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["layer of", "rows", "µs", "GB/s", "of R", "roofline", "× library", "error", "kernels"]
    cells = [
        [row["shape"], str(row["rows"]), f"{row['time_us']:,.1f}", f"{row['gb_per_s']:,.0f}",
         f"{row['read_share']:.1%}", f"{row['roofline_share']:.1%}", f"{row['times_library']:.2f}",
         f"{row['error']:.1e}", ", ".join(dict.fromkeys(row["kernels"].values()))]
        for row in rows
    ]  # fmt: skip
    return table([header, *cells], numbers=range(1, 8))


def shown_limits(about: Mapping[str, Any]) -> str:
    limits, machine = about["limits"], about["machine"]
    matrix = ", ".join(f"{name} {value:,.2f}" for name, value in limits["matrix_tflops"].items())
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return fields(
        [
            ("device", f"{about['device']}, profile {about['profile']}"),
            ("R", f"{limits['read_gb_per_s']:,.1f} GB/s read in this run (by {limits['reader']})"),
            ("C", f"TFLOP/s of torch's best product in this run: {matrix}"),
            ("software", f"ambidex {machine['ambidex']}, python {machine['python']}, {packages}"),
            ("date", about["date"]),
        ]
    )
