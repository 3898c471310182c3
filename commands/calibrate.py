"""`ambidex calibrate`: measures the present device and writes the overlay of its profile that plans then stand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .progress import ticking
from .table import fields, table

if TYPE_CHECKING:
    from ..planning.calibration import Calibration


def calibrate(
    device: options.Device = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there instead of where plans look for it.")
    ] = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure what this device reaches, in about a minute, and write it as an overlay of its profile.

    Bandwidth, matrix rates, the shares of both that its kernels reach on the sites of a model's layers, what a call and
    a step cost. Nothing else should run meanwhile.
    """
    from ..bench.calibrate import default_sizes, measure
    from ..planning.calibration import default_path
    from ..runtime.start import place

    _, _, profile = place(device)
    path = output or default_path(profile.name)
    _check(path)
    sizes = default_sizes(device)
    with ticking("calibrating", sizes.num_cases) as tick:
        found = measure(sizes, device, tick)
    found.write(path)
    print(json.dumps({"file": str(path), **found.model_dump(mode="json")}) if as_object else _text(found, path))


def _check(path: Path) -> None:
    """Before anything is measured."""
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder: name a file in it", param_hint="--output")


def _text(found: Calibration, path: Path) -> str:
    rates = ", ".join(f"{tflops:g} {rate}" for rate, tflops in found.matrix_tflops.items())
    launches = ", ".join(f"{kind.replace('_', ' ')} {micros:g}" for kind, micros in found.launch_us)
    lines = [
        ("profile", f"{found.profile} on {found.device}, {found.date.isoformat()}"),
        ("bandwidth", f"{found.bandwidth_gb_per_s:g} GB/s read"),
        ("products", f"{rates} TFLOP/s"),
        ("a call", f"{launches} µs"),
        ("a step", f"{found.step_us:g} µs of the device beside them, {found.host_us:g} µs of the host and "
                   f"{found.host_us_per_request:g} µs a request"),
    ]  # fmt: skip
    rows = [("share of the ceilings", "over", "")]
    rows += [(kind.replace("_", " "), _AXES[kind], _shares(points.axis, points.shares))
             for kind, points in found.curves]  # fmt: skip
    return "\n".join([fields(lines), "", table(rows), "", f"written to {path}"])


_AXES = {"product": "rows", "decode_attention": "keys a row", "prompt_attention": "keys a row", "other": "rows"}


def _shares(axis: tuple[float, ...], shares: tuple[float, ...]) -> str:
    """At up to five places of the curve."""
    places = sorted({round(each * (len(axis) - 1) / 4) for each in range(5)})
    return ", ".join(f"{shares[place]:.0%} at {axis[place]:,.3g}" for place in places)
