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
