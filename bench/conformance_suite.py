"""The conformance suite as a test module: `pytest --pyargs ambidex.bench.conformance_suite` (see `conformance`)."""

from __future__ import annotations

from collections.abc import Callable


def test_conformance(conformance: Callable[[], None]) -> None:
    conformance()
