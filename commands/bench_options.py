"""What the `bench` commands share: their options, the checkpoint that is measured, how a result is given out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .plot import check_plot
from .table import fields

if TYPE_CHECKING:
    from ..bench.contenders import Peer

GIB = 2**30

Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="M", help="Folder or hub id; the embedded model by default.")
]
ModelShape = Annotated[
    str | None,
    typer.Option("--shape", metavar="S", help="A random checkpoint of this shape instead: 0.5b, 1b or tiny."),
]
Compare = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=PYTHON]",
        help="Measure this one in turn with ours: transformers, openvino or llama.cpp; PYTHON is the interpreter of "
        "the environment that has it. Repeatable.",
    ),
]
WarmUps = Annotated[int, typer.Option(min=0, metavar="N", help="Repetitions that do not count.")]
Repetitions = Annotated[int, typer.Option(min=1, metavar="N", help="Repetitions that count.")]
OutputJson = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole result there.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the result: FILE.svg, .png or .pdf.")]


def peers(compare: Sequence[str] | None) -> tuple[Peer, ...]:
    """The contenders that are named. ContenderFailed: one is not installed, with what to install."""
    from ..bench.contenders import Peer

    try:
        named = [Peer.parse(each) for each in compare or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--compare") from None
    if len({peer.name for peer in named}) < len(named):
        raise typer.BadParameter("a contender is named twice", param_hint="--compare")
    for peer in named:
        peer.check()
    return tuple(named)


@contextmanager
def checkpoint(model: str | None, shape: str | None) -> Iterator[str | None]:
    """The folder of the model, or of a random checkpoint as long as it is needed.

    Another process writes it: this one stays small.
    """
    from ..bench.shapes import SHAPES

    if model is not None and shape is not None:
        raise typer.BadParameter("a model and a shape are given: give one", param_hint="--shape")
    if shape is None:
        yield model
        return
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape} is not known: there are {', '.join(SHAPES)}", param_hint="--shape")
    with tempfile.TemporaryDirectory(prefix="ambidex-") as folder:
        package = (__package__ or "").rpartition(".")[0]
        subprocess.run([sys.executable, "-m", f"{package}.bench.shapes", shape, folder], check=True)
        yield folder


def check_outputs(plot: Path | None, output_json: Path | None, html: Path | None = None) -> None:
    """Before anything is measured: can the result be drawn and written where it is wanted?"""
    check_file(plot, "--plot")
    check_file(output_json, "--output-json")
    check_file(html, "--html")
    check_plot(plot)


def check_file(path: Path | None, option: str) -> None:
    """Can this file be written?"""
    if path is None:
        return
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}: make it first", param_hint=option)
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder: name a file in it", param_hint=option)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise typer.BadParameter(f"{path} may not be written by this user: name another", param_hint=option)


def give_out(result: Mapping[str, Any], text: str, output_json: Path | None, as_object: bool) -> None:
    """Prints the result as text or as one JSON object, and writes it where a file is named."""
    if output_json is not None:
        output_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result) if as_object else text)


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def shown_range(rate: Mapping[str, float]) -> str:
    return f"{figure(rate['min'])}–{figure(rate['max'])}"


def shown_conditions(result: Mapping[str, Any], method: str) -> str:
    """Under which conditions the figures were made, as lines below their table."""
    ours, machine, limits = result["contenders"]["ambidex"], result["machine"], result["limits"]
    others = [f"{name} {each['version']}" for name, each in result["contenders"].items() if name != "ambidex"]
    matrix = limits["matrix_gflops_per_s"]
    return fields(
        [
            ("model", f"{result['model']}, {ours['dtype']}, greedy"),
            ("device", f"{ours['device_name']}, profile {ours['profile']}, {ours['threads']} threads"),
            ("limits", f"R {limits['read_gb_per_s']:.1f} GB/s read, C {matrix:,.0f} GFLOP/s in torch's products, both "
                       "measured between the turns"),
            ("kernels", f"{ours['fingerprint']}; by the reference: {', '.join(ours['reference_sites']) or 'none'}"),
            ("software", ", ".join([f"ambidex {machine['ambidex']}", f"python {machine['python']}", ours["version"],
                                    *others])),
            ("method", method),
        ]
    )  # fmt: skip
