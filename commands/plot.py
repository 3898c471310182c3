"""`--plot FILE`: a result as a picture, by matplotlib (`ambidex[plot]`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from .failures import missing_package

_KINDS = (".svg", ".png", ".pdf")


def check_plot(path: Path | None) -> None:
    """Before anything is measured: can this file be drawn?"""
    if path is None:
        return
    if path.suffix not in _KINDS:
        raise typer.BadParameter(f"{path.name} ends with none of {', '.join(_KINDS)}", param_hint="--plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise missing_package("matplotlib")


def bars(path: Path, cases: Sequence[str], rates: Mapping[str, Sequence[Mapping[str, float]]], unit: str) -> None:
    """A panel a case, each with its own axis; a bar a contender: its median, with its range."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(2.4 * len(cases), 3.2), layout="constrained")
    for index, (case, axes) in enumerate(zip(cases, drawing.subplots(1, len(cases), squeeze=False)[0], strict=True)):
        medians = [each[index]["median"] for each in rates.values()]
        below = [each[index]["median"] - each[index]["min"] for each in rates.values()]
        above = [each[index]["max"] - each[index]["median"] for each in rates.values()]
        colours = ["tab:orange", *["tab:gray"] * (len(rates) - 1)]
        axes.bar(list(rates), medians, yerr=[below, above], color=colours, capsize=3)
        axes.set_title(case, fontsize=9)
        axes.set_ylabel(unit if index == 0 else "")
        axes.tick_params(axis="x", labelrotation=30, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=150)
