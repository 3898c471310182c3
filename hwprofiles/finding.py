"""One thing that `check` found, and what its rules share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .facts import Architecture, facts
from .schema import Profile


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Literal["error", "flag"]
    field: str
    cause: str
    cure: str

    def __str__(self) -> str:
        return f"{self.field}: {self.cause}; {self.cure}"


def error(field: str, cause: str, cure: str) -> Finding:
    return Finding("error", field, cause, cure)


def flag(field: str, cause: str, cure: str) -> Finding:
    return Finding("flag", field, cause, cure)


def off(value: float, expected: float) -> float:
    return abs(value / expected - 1)


def architecture(profile: Profile) -> Architecture | None:
    return facts().architectures.get(profile.arch)
