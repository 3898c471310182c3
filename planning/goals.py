"""Which row is the best for which goal. Only what can be run is a choice: devices that a backend serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .rows import Row

GOALS: dict[str, tuple[str, str, Callable[[Row, Row], float | None]]] = {
    "latency": ("tpot_ms", "first", lambda point, degree: point["tpot_ms"]),
    "throughput": ("tokens_per_s", "last", lambda point, degree: -point["tokens_per_s"] / degree["tensor_parallel"]),
    "cost": ("eur_per_million_tokens", "last", lambda point, degree: point["eur_per_million_tokens"]),
}
"""Of each goal: the key of its figure, whether the smallest or the largest batch counts, what is to be small: the time
per token of a request alone, tokens a second and device, EUR per token with as many requests as fit."""


def best(rows: Sequence[Row], runnable: Sequence[str]) -> dict[str, Row]:
    """By goal the profile, format, degree and point. runnable: names of profiles that have a backend."""
    found = {}
    for goal, (key, which, badness) in GOALS.items():
        ranked = [(bad, each) for each, bad in _candidates(rows, runnable, which, badness) if bad is not None]
        if ranked:
            found[goal] = {**min(ranked, key=lambda pair: pair[0])[1], "by": key}
    return found


def _candidates(
    rows: Sequence[Row], runnable: Sequence[str], which: str, badness: Callable[[Row, Row], float | None]
) -> Iterator[tuple[Row, float | None]]:
    for row in rows:
        if row["profile"] not in runnable:
            continue
        for degree in row["degrees"]:
            if degree["fits"] and degree["batches"]:
                point = degree["batches"][0 if which == "first" else -1]
                names = {name: row[name] for name in ("profile", "format", "kv_format")}
                yield {**names, "num_devices": degree["tensor_parallel"], **point}, badness(point, degree)
