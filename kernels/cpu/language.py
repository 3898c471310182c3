"""Whether the kernels of this folder can run here: they need the compiled C library."""

from __future__ import annotations

from .library import LibraryMissing, load


def missing() -> str | None:
    """Why the language `cpu` cannot be used, in one line with the cure; None if it can."""
    try:
        load()
    except LibraryMissing as reason:
        return str(reason)
    return None


def describe() -> str:
    """What the library brings here, for people: the best instructions of this CPU, and where its threads come from."""
    library = load()
    return f"instructions up to {library.cpu_level.name}, {library.num_threads} threads ({library.threads_reason})"
