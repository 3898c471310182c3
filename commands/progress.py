"""A progress bar for what takes minutes; nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Tick(Protocol):
    """Moves a bar on."""

    def __call__(self, steps: float = 1.0, /) -> None: ...


@contextmanager
def ticking(what: str, total: float) -> Iterator[Tick]:
    """A bar on standard error that each call moves on, by one of `total` or as many as it says; none where that is no
    terminal."""
    if not sys.stderr.isatty():
        yield lambda steps=1.0, /: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda steps=1.0, /: progress.advance(task, steps)
