"""The whole plan: a row for every profile and format, and the best of them for each goal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..hwprofiles.schema import Profile
from .answer import answer, check_context
from .calibration import Calibration
from .chain import chain
from .deployment import Deployment
from .precision import precision
from .question import Question
from .rows import Row, answer_row, chain_row, empty_row
from .subject import Subject


def plan(
    subject: Subject,
    profiles: Iterable[Profile],
    formats: Sequence[str],
    question: Question,
    calibrations: Mapping[str, Calibration] | None = None,
) -> list[Row]:
    """A row each. calibrations: by the name of their profile. ConfigError: what holds whatever the device: an
    impossible degree, longer requests than positions."""
    check_context(subject, question)
    overlays = calibrations or {}
    return [plan_row(subject, profile, each, question, overlays.get(profile.name))
            for profile in profiles for each in formats]  # fmt: skip


def plan_row(
    subject: Subject, profile: Profile, format_name: str, question: Question, calibration: Calibration | None = None
) -> Row:
    """The row of one profile and format; what cannot be is a row with the reason."""
    profile = calibration.on(profile) if calibration else profile
    stored = precision(format_name, profile, question.kv_format)
    if profile.memory.usable_gib is None:
        return empty_row(profile.name, format_name, question, f"{profile.name} {_HOST}")
    if isinstance(stored, str):
        return empty_row(profile.name, format_name, question, stored)
    if profile.memory.kind == "sram":
        return chain_row(chain(subject, profile, stored, question), question)
    return answer_row(answer(subject, profile, stored, question, calibration.efficiency() if calibration else None))


_HOST = "has the memory and rates of its host: unknown before `ambidex calibrate` has run on such a machine"


def deployed(
    subject: Subject, profile: Profile, format_name: str, question: Question, calibration: Calibration | None = None
) -> Deployment | None:
    """The deployment behind a row; None: it fits nowhere, or is no deployment but a chain."""
    profile = calibration.on(profile) if calibration else profile
    stored = precision(format_name, profile, question.kv_format)
    if isinstance(stored, str) or profile.memory.kind == "sram" or profile.memory.usable_gib is None:
        return None
    chosen = answer(subject, profile, stored, question, calibration.efficiency() if calibration else None).chosen
    return chosen.deployment if chosen else None
