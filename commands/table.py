"""Columns of plain text: readable on a terminal, in a pipe and in a file."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence


def width() -> int:
    """Columns to write in: the terminal's, from 60 to 140."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 140)


def table(rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Rows in aligned columns, the first row being the header; `numbers` are the columns aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def cell(column: int, text: str) -> str:
        return text.rjust(widths[column]) if column in numbers else text.ljust(widths[column])

    return "\n".join("  ".join(cell(*each) for each in enumerate(row)).rstrip() for row in rows)


def fields(pairs: Sequence[tuple[str, str]], *, indent: int = 0) -> str:
    """One `name  value` a line, values aligned and wrapped under themselves."""
    longest = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(wrapped(f"{' ' * indent}{name.ljust(longest)}  ", value) for name, value in pairs)


def wrapped(prefix: str, text: str) -> str:
    """`prefix` and the text behind it, further lines indented to where the text begins."""
    lines = textwrap.wrap(text, max(width() - len(prefix), 24), break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * len(prefix)).join([prefix + (lines[0] if lines else ""), *lines[1:]]).rstrip()
