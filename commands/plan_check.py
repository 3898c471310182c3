"""`ambidex plan --check`: loads a model, runs it, and lays what was predicted beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .progress import ticking
from .table import fields, table

if TYPE_CHECKING:
    from ..planning.calibration import Calibration


def check(
    model: str | None,
    *,
    shape: str | None = None,
    device: str | None = None,
    calibration: Path | None = None,
    as_object: bool = False,
) -> None:
    """Prints each case with its error. shape: one of bench.shapes, drawn at random, instead of a model. calibration: a
    file of `ambidex calibrate`; None: where it lies by default. Errors: those of `bench.check.measure`."""
    from ..bench.check import Plan, measure
    from ..bench.shapes import SHAPES

    if shape is not None and (model is not None or shape not in SHAPES):
        raise typer.BadParameter(f"instead of a model one of {', '.join(SHAPES)}", param_hint="--shape")
    plan = Plan(model=model, shape=SHAPES[shape] if shape else None, device=device)
    overlay = here(device, calibration)
    with ticking("checking", 1 + len(plan.cases())) as tick:
        result = {"model": shape or model or "embedded", **measure(plan, overlay, tick)}
    print(json.dumps(result) if as_object else text(result))


def here(device: str | None, named: Path | None) -> Calibration | None:
    """The calibration of the present device's profile. ConfigError: a file that cannot be used, or is another's."""
    from ..planning.calibration import find
    from ..runtime.errors import ConfigError
    from ..runtime.start import place

    _, _, profile = place(device)
    found = find(profile, named)
    if named is not None and found is None:
        raise ConfigError(f"{named}: is no calibration of {profile.name}, which is the profile of this device")
    return found


def text(result: dict[str, Any]) -> str:
    """The cases, the memory, and under which conditions."""
    return "\n\n".join([_steps(result), _memory(result["memory"]), _conditions(result)])


def _steps(result: dict[str, Any]) -> str:
    has_ceilings = result["ceilings"] is not None
    head = ["step", "measured ms", "predicted ms", "error"]
    rows = [head + (["at this moment's R, C", "error", "R", "C"] if has_ceilings else [])]
    for row in result["rows"]:
        name = f"{row['batch']} × {row['context']:,}" if "batch" in row else f"prompt of {row['prompt']:,}"
        cells = [name, f"{row['measured_ms']:,.2f}", f"{row['predicted_ms']:,.2f}", f"{row['error']:+.0%}"]
        if has_ceilings:
            cells += [f"{row['at_ceilings_ms']:,.2f}", f"{row['error_at_ceilings']:+.0%}",
                      f"{row['read_gb_per_s']:,.1f}", f"{row['matrix_tflops']:,.3g}"]  # fmt: skip
        rows.append(cells)
    return table(rows, numbers=range(1, len(rows[0])))


def _memory(memory: dict[str, Any]) -> str:
    rows = [["memory", "measured MiB", "predicted MiB", ""]]
    for name, part in memory["parts"].items():
        measured = "–" if part["num_bytes"] is None else f"{part['num_bytes'] / 2**20:,.1f}"
        rows.append([name, measured, f"{part['predicted'] / 2**20:,.1f}", part["note"]])
    error = "–" if memory["error"] is None else f"{memory['error']:+.1%}"
    return table([*rows, ["error of the sum", error, "", ""]], numbers=(1, 2))


def _conditions(result: dict[str, Any]) -> str:
    found, ceilings = result["summary"], result["ceilings"]
    lines = [("model", f"{result['model']} on {result['device']}, {result['date']}"),
             ("plan", result["efficiency_source"]),
             ("error", f"median {found['median_error']:.1%}, worst {found['worst_error']:.1%}")]  # fmt: skip
    if ceilings is not None:
        worst, middle = found["worst_error_at_ceilings"], found["median_error_at_ceilings"]
        reads, rates = ceilings["read_gb_per_s"], ceilings["matrix_tflops"]
        lines += [("", f"at each moment's ceilings: median {middle:.1%}, worst {worst:.1%}"),
                  ("R", f"{_range(reads)} GB/s"), ("C", f"{_range(rates)} TFLOP/s")]  # fmt: skip
    if unsteady := sum(not row["is_steady"] for row in result["rows"]):
        lines.append(("unsteady", f"the ceilings changed in {unsteady} of the cases, whenever they were run"))
    if result["left_out"]:
        cases = ", ".join(f"{batch} × {length}" if batch else f"prompt of {length}" for batch, length in
                          result["left_out"])  # fmt: skip
        lines.append(("left out", f"{cases}: longer than the model's context, or than the memory holds"))
    return fields(lines)


def _range(found: dict[str, float]) -> str:
    planned, least, middle, most = (found[each] for each in ("planned", "min", "median", "max"))
    return f"planned {planned:,.3g}, here {least:,.3g} to {most:,.3g} (median {middle:,.3g})"
