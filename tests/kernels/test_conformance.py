"""Every kernel that this machine can run, on every case's twin, against the op's reference in float64."""

from collections.abc import Callable


def test_conformance(conformance: Callable[[], None]) -> None:
    conformance()
