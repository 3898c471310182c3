"""How long each part of a start took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter


class Phases:
    """Seconds by phase, in the order in which they first began. A phase that is entered again adds to its time."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(before or {})

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = perf_counter()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += perf_counter() - begun


def lines(seconds: Mapping[str, float]) -> list[str]:
    """A line for people: the whole, and its parts."""
    parts = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    return [f"start      {sum(seconds.values()):.2f} s: {parts}"]
