"""The whole plan: a row for every profile and format, and the best of them for each goal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..hwprofiles.schema import Profile
from .answer import answer, check_context
from .calibration import Calibration
from .chain import chain
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
    if isinstance(stored, str):
        return empty_row(profile.name, format_name, question, stored)
    if profile.memory.kind == "sram":
        return chain_row(chain(subject, profile, stored, question), question)
    if profile.memory.usable_gib is None:
        return empty_row(profile.name, format_name, question, _HOST.format(profile.name))
    return answer_row(answer(subject, profile, stored, question, calibration.efficiency() if calibration else None))


_HOST = "{}'s memory and rates are those of a host: not known before `ambidex calibrate` has run on such a machine"
