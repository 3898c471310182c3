"""A plan as text for a terminal: a table of rows, the ledger of a single one, why others are not there, the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .table import table

if TYPE_CHECKING:
    from ..planning.question import Question
    from ..planning.subject import Subject

Row = Mapping[str, Any]
_COLUMNS = (
    ("profile", "profile"), ("format", "format"), ("num_devices", "devices"), ("max_context_tokens", "context"),
    ("max_concurrency", "requests"), ("ttft_ms", "TTFT ms"), ("tpot_ms", "TPOT ms"), ("tokens_per_s", "tok/s"),
    ("eur_per_million_tokens", "EUR/M"), ("kj_per_million_tokens", "kJ/M"), ("limit", "limit"),
)  # fmt: skip


def shown(subject: Subject, question: Question, rows: Sequence[Row], goals: Mapping[str, Row]) -> str:
    fitting = [row for row in rows if row["fits"]]
    lines = [[head for _, head in _COLUMNS], *([_cell(row[key]) for key, _ in _COLUMNS] for row in fitting)]
    return table(lines, numbers=range(2, len(_COLUMNS) - 1))


def _cell(value: object) -> str:
    return "–" if value is None else number(value) if isinstance(value, (int, float)) else str(value)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.3g}"
