"""`ambidex plan --published`: what others published, beside what a plan would have said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .plan_text import figure
from .table import table, wrapped

if TYPE_CHECKING:
    from ..planning.published import Comparison

_HEADER = ("model", "devices", "in/out", "theirs", "plan", "ratio", "limit")


def published(as_object: bool) -> None:
    """Prints every row, the mean, and the explanation of those that are far off."""
    from ..planning.published import compare, mean_ratio, read_figures

    figures = read_figures()
    found = compare(figures.rows)
    mean = mean_ratio(found)
    if as_object:
        values = [_values(each) for each in found]
        print(json.dumps({"sources": figures.sources, "rows": values, "geometric_mean_ratio": mean}))
        return
    for source, text in figures.sources.items():
        rows = [_row(each) for each in found if each.figure.source == source]
        print(wrapped("", text) + "\n\n" + table([_HEADER, *rows], numbers=(3, 4, 5)) + "\n")
    print(_summary(found, mean))


def _values(found: Comparison) -> dict[str, Any]:
    return {
        **found.figure.model_dump(),
        "predicted_tokens_per_s": found.at.tokens_per_s,
        "ratio": found.ratio,
        "batch": found.at.batch,
        "limit": found.at.limit,
        "is_far": found.is_far,
    }


def _row(found: Comparison) -> list[str]:
    row = found.figure
    devices = f"{row.devices} × {row.profile}" if row.devices > 1 else row.profile
    mark = "*" if found.is_far else ""
    lengths = f"{row.input_len:,}/{row.output_len:,}"
    return [
        f"{row.params} {row.format}", devices, lengths, figure(row.tokens_per_s), figure(found.at.tokens_per_s),
        f"{found.ratio:.2f}{mark or ' '}", found.at.limit,
    ]  # fmt: skip


def _summary(found: Sequence[Comparison], mean: float) -> str:
    from ..planning.published import LEAST_RATIO, MOST_RATIO, WITHOUT_WORKLOAD

    counted = [each for each in found if each.figure.source != WITHOUT_WORKLOAD]
    within = sum(not each.is_far for each in counted)
    lines = [
        "Tokens/s of all devices together, as published and as predicted. The ratio's geometric mean is "
        f"{mean:.2f} over {len(counted)} rows, {within} of them within {LEAST_RATIO:g} to {MOST_RATIO:g}; rows of the "
        f"{WITHOUT_WORKLOAD}, which names no workload, are not in it. The default shares of peaks alone; keys and "
        "values in FP8, 2,048 slots, steps of 8,192 tokens, as many requests as have room."
    ]
    for each in found:
        if each.is_far:
            what = f"{each.figure.source}, {' '.join(_row(each)[:3])}"
            lines.append(f"* {what}: {each.figure.explanation or 'not explained'}")
    return "\n".join(wrapped("", line) for line in lines)
