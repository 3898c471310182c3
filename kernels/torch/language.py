"""The language `torch`: calls of torch's own libraries, on whatever device the operands lie."""

from __future__ import annotations


def missing() -> str | None:
    """Nothing: the package does not run without torch."""
    return None
