"""Plans on a terminal: a row for each profile and format that fits, why others do not, the best for each goal."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .table import fields, width

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..planning.question import Question
    from ..planning.subject import Subject

Row = Mapping[str, Any]
Column = tuple[str, str, int]

COLUMNS: tuple[Column, ...] = (  # key, header, and if it is not 0: the higher, the sooner it makes room
    ("profile", "profile", 0), ("format", "format", 0), ("num_devices", "devices", 0),
    ("max_context_tokens", "longest\ncontext", 2), ("max_concurrency", "most at\nonce", 1),
    ("ttft_ms", "TTFT\nms", 0), ("tpot_ms", "TPOT\nms", 0), ("tokens_per_s", "tokens/s", 0),
    ("most_tokens_per_s", "most\ntokens/s", 3), ("eur_per_million_tokens", "EUR\n/ M", 0),
    ("kj_per_million_tokens", "kJ\n/ M", 4), ("limit", "limit", 0),
)  # fmt: skip
_OF_POINTS = ("ttft_ms", "tpot_ms", "tokens_per_s", "eur_per_million_tokens", "kj_per_million_tokens", "limit")
POINT_COLUMNS: tuple[Column, ...] = (
    ("batch", "requests\nat once", 0), *(each for each in COLUMNS if each[0] in _OF_POINTS),
)  # fmt: skip
_AT_LEAST = ("ttft_ms", "tpot_ms", "kj_per_million_tokens")
_TEXTS = ("profile", "format", "limit")


def heading(subject: Subject, question: Question) -> str:
    load = question.load
    parameters = f"{subject.num_parameters / 1e9:,.3g} billion parameters, {subject.config.max_positions:,} positions"
    return fields(
        [
            ("model", f"{subject.name}: {parameters}"),
            ("requests", f"prompts of {load.input_len:,} tokens, answers of {load.output_len:,}; "
                         f"{question.concurrency:,} of {question.longest:,} tokens held at once, "
                         f"keys and values in {question.kv_format}"),
        ]
    )  # fmt: skip


def comparison(rows: Sequence[Row], goals: Mapping[str, Row], question: Question) -> str:
    """All of it, below the heading."""
    fitting = [row for row in rows if row["fits"]]
    parts = [_table(fitting)] if fitting else ["Nothing fits."]
    parts += [fields([(goal, goal_text(goal, row)) for goal, row in goals.items()])] if goals else []
    if left := _reasons(rows):
        parts.append("not there\n" + fields(left, indent=2))
    if fitting:
        parts.append(fields([("figures", _legend(question)), *_sources(fitting)]))
    return "\n\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    shown, last = [], None
    for row in rows:
        most = row["batches"][-1]["tokens_per_s"] if row["batches"] else None
        named = "" if row["profile"] == last else row["profile"]
        shown.append({**row, "most_tokens_per_s": most, "profile": named})
        last = row["profile"]
    return grid(COLUMNS, shown)


def grid(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table of those columns that the terminal has room for."""
    ranks = sorted({rank for _, _, rank in columns}, reverse=True)
    for most in ranks:
        table = _grid([each for each in columns if each[2] <= most], rows)
        if _console().measure(table).maximum <= width():
            break
    return _rendered(table)


def _grid(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for key, header, _ in columns:
        table.add_column(header, justify="left" if key in _TEXTS else "right", no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(*(_marked(row, key) for key, _, _ in columns))
    return table


def _console() -> Console:
    """Wider than any table: what is measured is not what fits."""
    from rich.console import Console

    return Console(file=io.StringIO(), width=400, force_terminal=sys.stdout.isatty(), highlight=False)


def _rendered(table: Table) -> str:
    """As text; with bold heads where a terminal reads it."""
    console = _console()
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _marked(row: Row, key: str) -> str:
    """A cell; of a bound it says on which side of it the truth lies."""
    text = cell(row[key])
    side = "≤" if key.endswith("tokens_per_s") else "≥" if key in _AT_LEAST else ""
    return f"{side}{text}" if row.get("is_bound") and row[key] is not None else text


def cell(value: object) -> str:
    if value is None:
        return "–"
    return figure(value) if isinstance(value, (int, float)) else str(value)


def figure(value: float) -> str:
    """Three digits, or all of an integer's."""
    if value >= 1e6 and not isinstance(value, int):
        return f"{value / 1e6:.3g}M"
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.3g}"


def goal_text(goal: str, row: Row) -> str:
    devices = f"{row['num_devices']} × " if row["num_devices"] > 1 else ""
    requests = f"{row['batch']:,} at once" if row["batch"] > 1 else "a request alone"
    figures = {
        "latency": f"{figure(row['tpot_ms'])} ms a token",
        "throughput": f"{figure(row['tokens_per_s'] / row['num_devices'])} tokens/s a device",
        "cost": f"{figure(row['eur_per_million_tokens'])} EUR a million tokens" if goal == "cost" else "",
    }
    pace = "" if goal == "latency" else f", {figure(row['tpot_ms'])} ms a token"
    return f"{devices}{row['profile']}, {row['format']}: {figures[goal]} ({requests}{pace})"


def _reasons(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(formats, reason), those with one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if not row["fits"]:
            reason = row["reason"].replace(f"no {row['format']} ", "no such ").replace(row["profile"], "")
            found.setdefault((row["profile"], reason.strip()), []).append(row["format"])
    merged: dict[tuple[str, str], list[str]] = {}
    for (profile, reason), formats in found.items():
        merged.setdefault((", ".join(formats), reason), []).append(profile)
    return [(formats, f"{', '.join(profiles)}: {reason}") for (formats, reason), profiles in merged.items()]


def _legend(question: Question) -> str:
    return (
        f"TTFT, TPOT and tokens/s with {question.concurrency:,} requests at once, TTFT of an empty queue; costs per "
        "million generated tokens, at the quoted price and at full power"
    )


def _sources(rows: Sequence[Row]) -> list[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        profiles = found.setdefault(row["efficiency_source"], [])
        if row["profile"] not in profiles:
            profiles.append(row["profile"])
    return [("shares of peaks" if at == 0 else "", f"{source} ({', '.join(profiles)})")
            for at, (source, profiles) in enumerate(found.items())]  # fmt: skip
