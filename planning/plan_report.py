"""A plan as a report: the rows as a table, the plots, the ledgers. `report.page` makes the file of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from .charts import Axis, Chart, Series
from .deployment import Deployment
from .precision import FORMATS
from .question import Question
from .report import Section
from .roofs import roofline_chart
from .rows import Row
from .subject import Subject

_HEADER = ("profile", "format", "devices", "longest context", "most at once", "TTFT ms", "TPOT ms", "tokens/s",
           "most tokens/s", "EUR / M tokens", "kJ / M tokens", "load s", "limit")  # fmt: skip
_LEDGER = ("weights", "kv_cache", "requests", "workspace", "graphs", "communication", "unused")


def sections(
    subject: Subject, question: Question, rows: Sequence[Row], goals: Mapping[str, str], shown: Deployment | None
) -> list[Section]:
    """goals: the best for each, in words. shown: the deployment whose roofline is drawn; None: no device runs it."""
    fitting = [row for row in rows if row["fits"]]
    found = [_question(subject, question, goals), _table(fitting, question), *_sweeps(fitting)]
    if shown is not None:
        batch = min(question.concurrency, shown.max_num_seqs)
        context = question.load.input_len + question.load.output_len // 2
        prompt = min(question.load.input_len, shown.token_budget)
        found.append(_roofline(roofline_chart(shown, batch, context, prompt)))
    return [*found, _ledgers(fitting), *_refused(rows)]


def _question(subject: Subject, question: Question, goals: Mapping[str, str]) -> Section:
    load = question.load
    facts = [
        ("model", f"{subject.name}, {subject.num_parameters / 1e9:,.3g} billion parameters, "
                  f"{subject.config.num_layers} layers, {subject.config.max_positions:,} positions"),
        ("requests", f"prompts of {load.input_len:,} tokens, answers of {load.output_len:,}; {question.concurrency:,} "
                     f"of {question.longest:,} tokens held at once"),
        ("KV cache", question.kv_format),
        ("weights from", f"{question.load_gb_per_s:g} GB/s"),
        *((f"best for {goal}", text) for goal, text in goals.items()),
    ]  # fmt: skip
    return Section("What was asked, and the best", facts=facts)


def _table(rows: Sequence[Row], question: Question) -> Section:
    note = (
        f"TTFT, TPOT, tokens/s and costs with {question.concurrency:,} requests at once, TTFT of an empty queue; costs "
        "at the quoted price and at full power. ≤ and ≥: a bound, no forecast."
    )
    return Section("What fits", header=_HEADER, rows=[_cells(row) for row in rows], note=note)


def _cells(row: Row) -> list[str]:
    most = row["batches"][-1]["tokens_per_s"]
    up, down = ("≥", "≤") if row["is_bound"] else ("", "")
    return [
        row["profile"], row["format"], number(row["num_devices"]), number(row["max_context_tokens"]),
        number(row["max_concurrency"]), number(row["ttft_ms"], up), number(row["tpot_ms"], up),
        number(row["tokens_per_s"], down), number(most, down), number(row["eur_per_million_tokens"]),
        number(row["kj_per_million_tokens"], up), number(row["load_s"]), row["limit"],
    ]  # fmt: skip


def number(value: float | None, side: str = "") -> str:
    """Three digits, or all of an integer's; a dash for what is not known. side: of a bound, ≤ or ≥."""
    if value is None:
        return "–"
    return side + (f"{value:,.0f}" if abs(value) >= 100 or isinstance(value, int) else f"{value:.3g}")


def _sweeps(rows: Sequence[Row]) -> list[Section]:
    """Of each format the batches of all profiles, in the smallest degree that fits."""
    kept = [row for row in rows if not row["is_bound"]]
    latency = _charts(kept, "TPOT, ms", lambda point: point["tpot_ms"])
    cost = _charts(kept, "EUR / million tokens", lambda point: point["eur_per_million_tokens"])
    text = "A point is a number of requests at once, from one to as many as have room."
    found = [
        Section("Throughput against latency", text, charts=latency),
        Section("Cost against throughput", text, charts=cost),
    ]
    return [section for section in found if section.charts]


def _charts(rows: Sequence[Row], label: str, of: Callable[[Row], float | None]) -> list[Chart]:
    names = list(dict.fromkeys(row["profile"] for row in rows))
    charts = []
    for format_name in FORMATS:
        series = [_sweep(row, names.index(row["profile"]), of) for row in rows if row["format"] == format_name]
        series = [each for each in series if each.points]
        if series:
            axes = Axis("tokens/s of a device", is_log=True), Axis(label, is_log=True)
            charts.append(Chart(f"{format_name}: {label} over tokens/s of a device", *axes, series))
    return charts


def _sweep(row: Row, colour: int, of: Callable[[Row], float | None]) -> Series:
    devices = f"{row['num_devices']} × " if row["num_devices"] > 1 else ""
    points = [(each["tokens_per_s"] / row["num_devices"], of(each)) for each in row["batches"]]
    return Series(f"{devices}{row['profile']}", [(x, y) for x, y in points if y is not None], colour=colour)


def _roofline(chart: Chart) -> Section:
    text = (
        "Each point is an op's calls over all layers, at the operations a second that the plan expects of it; how far "
        "it lies below the line is the share of the peak that is not reached."
    )
    return Section("Roofline", text, charts=[chart])


def _ledgers(rows: Iterable[Row]) -> Section:
    header = [
        "profile",
        "format",
        "devices",
        "budget",
        *(each.replace("_", " ") for each in _LEDGER),
        "KV bytes / token",
    ]
    lines = [
        [row["profile"], row["format"], number(row["num_devices"]), _gib(row["ledger"]["budget"]),
         *(_gib(row["ledger"].get(each)) for each in _LEDGER), number(row["ledger"]["kv_bytes_per_token"])]
        for row in rows
    ]  # fmt: skip
    note = "Of one device; of machines whose memory is SRAM of all of them."
    return Section("Memory, in GiB", header=header, rows=lines, note=note)


def _gib(num_bytes: int | None) -> str:
    return "–" if num_bytes is None else f"{num_bytes / 2**30:,.2f}"


def _refused(rows: Iterable[Row]) -> list[Section]:
    lines = [(row["profile"], row["format"], row["reason"]) for row in rows if not row["fits"]]
    return [Section("What does not fit, and why", header=("profile", "format", "reason"), rows=lines)] if lines else []
