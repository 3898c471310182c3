"""The whole plan: a row for every profile and format, and the best of them for each goal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..hwprofiles.schema import Profile
from ..runtime.errors import ConfigError
from .answer import Answer, answer, check_context
from .calibration import Calibration
from .chain import Chain, chain
from .deployment import Deployment
from .precision import check_formats, precision
from .question import Question
from .rows import Row, answer_row, chain_row, empty_row
from .shards import shard
from .subject import Subject


def plan(
    subject: Subject,
    profiles: Iterable[Profile],
    formats: Sequence[str],
    question: Question,
    calibrations: Mapping[str, Calibration] | None = None,
) -> list[Row]:
    """A row each. calibrations: by the name of their profile. ConfigError: what holds whatever the device: an
    impossible degree, longer requests than positions, a format that nobody knows."""
    check_context(subject, question)
    if question.tensor_parallel is not None:
        shard(subject.config, question.tensor_parallel)
    check_formats(formats, question.kv_format)
    overlays = calibrations or {}
    return [plan_row(subject, profile, each, question, overlays.get(profile.name))
            for profile in profiles for each in formats]  # fmt: skip


def plan_row(
    subject: Subject, profile: Profile, format_name: str, question: Question, calibration: Calibration | None = None
) -> Row:
    """The row of one profile and format; what cannot be is a row with the reason."""
    try:
        found = _answered(subject, profile, format_name, question, calibration)
    except ConfigError as reason:  # a number that the profile does not know
        return empty_row(profile.name, format_name, question, str(reason))
    if isinstance(found, str):
        return empty_row(profile.name, format_name, question, found)
    return chain_row(found, question) if isinstance(found, Chain) else answer_row(found)


def deployed(
    subject: Subject, profile: Profile, format_name: str, question: Question, calibration: Calibration | None = None
) -> Deployment | None:
    """The deployment behind a row; None: it fits nowhere, or is no deployment but a chain."""
    found = _answered(subject, profile, format_name, question, calibration)
    return found.chosen.deployment if isinstance(found, Answer) and found.chosen else None


def _answered(
    subject: Subject, profile: Profile, format_name: str, question: Question, calibration: Calibration | None
) -> Answer | Chain | str:
    """By the profile as it was calibrated, where it was; else as it is specified; or why it cannot be."""
    numbers = calibration.on(profile) if calibration else profile
    if numbers.memory.usable_gib is None:
        return f"{profile.name} {_HOST}"
    stored = precision(format_name, numbers, question.kv_format)
    if isinstance(stored, str):
        return stored
    if numbers.memory.kind == "sram" and question.tensor_parallel is not None:
        return f"{profile.name} holds a model by a chain of devices: a degree of tensor parallelism says nothing of it"
    if numbers.memory.kind == "sram":
        return chain(subject, numbers, stored, question)
    return answer(subject, numbers, stored, question.on(numbers), calibration.efficiency() if calibration else None)


_HOST = "has the memory and rates of its host: unknown before `ambidex calibrate` has run on such a machine"
