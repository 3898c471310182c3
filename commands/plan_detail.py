"""One profile in one format, in full: where its memory goes, how fast it is at each batch, what other degrees do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .plan_text import POINT_COLUMNS, Column, cell, grid
from .table import fields, table

if TYPE_CHECKING:
    from ..planning.question import Question

Row = Mapping[str, Any]
LEDGER = (("weights", "weights"), ("kv_cache", "KV cache"), ("requests", "requests"), ("workspace", "workspace"),
          ("graphs", "graphs"), ("communication", "communication"), ("unused", "unused"))  # fmt: skip
_DEGREES: tuple[Column, ...] = (
    ("tensor_parallel", "devices", 0), ("missing", "missing of\neach, GiB", 0),
    ("kv_cache_tokens", "KV cache\ntokens", 0), ("held", "of what\nis asked", 0),
    ("tpot_ms", "TPOT ms\nalone", 0), ("tokens_per_s", "most\ntokens/s", 0), ("eur_per_million_tokens", "EUR\n/ M", 0),
)  # fmt: skip


def detail(row: Row, question: Question) -> str:
    parts = [f"{row['reason']}" if not row["fits"] else _facts(row, question)]
    if row["ledger"]:
        parts.append(_ledger(row["ledger"], row["num_devices"]))
    if row["batches"]:
        parts.append(grid(POINT_COLUMNS, row["batches"]))
    if row["degrees"]:
        parts.append("degrees of tensor parallelism\n\n" + grid(_DEGREES, [_degree(each) for each in row["degrees"]]))
    return "\n\n".join(parts)


def _facts(row: Row, question: Question) -> str:
    many = row["num_devices"] > 1
    devices = f"{row['num_devices']:,} × {row['profile']}" if many else row["profile"]
    return fields(
        [
            ("fits", f"{devices}, {row['format']}"),
            ("longest context", f"{row['max_context_tokens']:,} tokens"),
            ("most at once", f"{row['max_concurrency']:,} requests of {question.longest:,} tokens"),
            ("load", f"{figure_s(row['load_s'])} at {question.load_gb_per_s:g} GB/s"),
            ("shares of peaks", row["efficiency_source"]),
        ]
    )


def figure_s(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} minutes"


def _ledger(ledger: Row, num_devices: int) -> str:
    from ..runtime.budget import shown_bytes

    is_chain = "budget_source" not in ledger
    each = "of all devices" if is_chain else "of each device" if num_devices > 1 else "of the device"
    source = "" if is_chain else f", {ledger['budget_source']}"
    rows = [(f"memory {each}", shown_bytes(ledger["budget"]) + source, "")]
    rows += [(f"  {name}", shown_bytes(ledger[key]), f"{ledger[key]:,} bytes") for key, name in LEDGER if key in ledger]
    token = f"{ledger['kv_bytes_per_token']:,} bytes"
    lines = table(rows[1:], numbers=(1, 2))
    tail = [("KV cache", f"{token} a token{_pages(ledger)}")]
    return f"{rows[0][0]}: {rows[0][1]}\n{lines}\n{fields(tail, indent=2)}"


def _pages(ledger: Row) -> str:
    if "page_size" not in ledger:
        return ""
    return f", {ledger['kv_cache_tokens']:,} tokens in pages of {ledger['page_size']}"


def _degree(degree: Row) -> Row:
    points: Sequence[Row] = degree["batches"]
    first, last = (points[0], points[-1]) if points else ({}, {})
    return {
        "tensor_parallel": degree["tensor_parallel"],
        "missing": f"{degree['missing_bytes'] / 2**30:,.2f}" if degree["missing_bytes"] else "none",
        "kv_cache_tokens": degree["kv_cache_tokens"],
        "held": f"{degree['held_share']:.0%}",
        "tpot_ms": cell(first.get("tpot_ms")),
        "tokens_per_s": last.get("tokens_per_s"),
        "eur_per_million_tokens": last.get("eur_per_million_tokens"),
    }
