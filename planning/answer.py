"""What a plan answers for one model on one kind of device in one format: where it fits, and what it then does.

A degree of tensor parallelism fits if beside weights, workspace and graphs the pages hold the keys of all requests that
were asked for, each at its full length. Below that a deployment may still run, with fewer requests: it is answered too,
with the share of the wish that it holds. What is short is told in bytes of one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..hwprofiles.schema import Profile
from ..runtime.errors import ConfigError
from .deployment import Deployment, deploy
from .efficiency import Efficiency, efficiency
from .links import collectives
from .memory import ledger, needs, usable_budget
from .point import Point, capacity, point
from .precision import Precision
from .question import Question
from .shards import Shard, refusal, shard
from .subject import Subject

DEGREES = (1, 2, 4, 8)
BATCHES = (1, 8, 32, 128)


@dataclass(frozen=True)
class Degree:
    """One number of devices. missing_bytes: of one device's memory for all that was asked (below 0: left over).
    held_share: of the tokens asked for, those whose keys have room. deployment: None where not even one request fits.
    at: the point at the concurrency that was asked for, or at what fits of it; points: at BATCHES and the largest."""

    tensor_parallel: int
    missing_bytes: int
    held_share: float
    deployment: Deployment | None = None
    at: Point | None = None
    points: tuple[Point, ...] = ()

    @property
    def fits(self) -> bool:
        return self.missing_bytes <= 0


@dataclass(frozen=True)
class Answer:
    """reason: why nothing fits. degrees: those that are possible, the smallest first."""

    profile: Profile
    format: str
    question: Question
    precision: Precision | None = None
    degrees: tuple[Degree, ...] = ()
    reason: str | None = None
    max_context_tokens: int | None = None

    @property
    def chosen(self) -> Degree | None:
        """The smallest that fits."""
        return next((each for each in self.degrees if each.fits), None)


def answer(
    subject: Subject, profile: Profile, precision: Precision, question: Question, reached: Efficiency | None = None
) -> Answer:
    """The answer. ConfigError: a number that the profile does not know, or a degree that cannot be."""
    expected = reached or efficiency(profile)
    wanted = possible_degrees(subject, profile, question)
    if isinstance(wanted, str):
        return Answer(profile, precision.name, question, precision, reason=wanted)
    degrees = tuple(_degree(subject, profile, precision, question, each, expected) for each in wanted)
    found = Answer(profile, precision.name, question, precision, degrees)
    if found.chosen is None:
        return replace(found, reason=_shortage(degrees[-1], profile, question))
    part = shard(subject.config, found.chosen.tensor_parallel)
    return replace(found, max_context_tokens=_longest_context(part, profile, precision, question, expected))


def possible_degrees(subject: Subject, profile: Profile, question: Question) -> Sequence[int] | str:
    """The degrees to consider; or why there is none."""
    joined = _joined(profile)
    if question.tensor_parallel is not None:
        shard(subject.config, question.tensor_parallel)  # says what is wrong with it
        if question.tensor_parallel > joined:
            return f"{question.tensor_parallel} devices asked for, its links join {joined}"
        return [question.tensor_parallel]
    return [each for each in DEGREES if each <= joined and refusal(subject.config, each) is None]


def _joined(profile: Profile) -> int:
    """Devices that one replica may take: a host is one; without known peers it is the most that are considered."""
    if profile.memory.kind == "dram":
        return 1
    return profile.link.peers + 1 if profile.link and profile.link.peers else DEGREES[-1]


def _degree(
    subject: Subject, profile: Profile, precision: Precision, question: Question, ranks: int, reached: Efficiency
) -> Degree:
    found = deploy(subject, profile, precision, ranks, question.demand, reached)
    missing = missing_bytes(shard(subject.config, ranks), profile, precision, question, reached)
    if not isinstance(found, Deployment):
        return Degree(ranks, missing, 0.0)
    wish = question.concurrency * _paged(question.longest, found.page_size)
    largest = capacity(found, question.load)
    batches = sorted({min(each, largest) for each in (*BATCHES, largest)})
    most = min(found.max_num_seqs, found.token_budget)  # at once if memory had no end
    points = tuple(point(found, each, question.load, most if each == largest else None) for each in batches)
    asked = min(question.concurrency, largest)
    return Degree(ranks, missing, min(found.kv_cache_tokens / wish, 1.0), found,
                  point(found, asked, question.load, min(question.concurrency, most)), points)  # fmt: skip


def missing_bytes(part: Shard, profile: Profile, precision: Precision, question: Question, reached: Efficiency) -> int:
    """Of one device, for all requests that were asked for at their full length; below 0 it is left over."""
    demand = question.demand
    wanted = needs(part, profile, precision, demand)
    tokens = question.concurrency * _paged(question.longest, wanted.page_unit)
    between = collectives(part, profile, reached)
    return wanted.total_bytes(question.longest, tokens) - usable_budget(profile, demand, between).num_bytes


def _paged(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size) * page_size


def _longest_context(
    part: Shard, profile: Profile, precision: Precision, question: Question, reached: Efficiency
) -> int:
    """Of a single request, at most what the model was made for."""
    demand = replace(question.demand, context=None)
    found = ledger(part, profile, precision, demand, collectives(part, profile, reached))
    return question.longest if isinstance(found, Exception) else found.max_model_len


def _shortage(degree: Degree, profile: Profile, question: Question) -> str:
    devices = f"{degree.tensor_parallel} × {profile.name}" if degree.tensor_parallel > 1 else profile.name
    each = " on each of" if degree.tensor_parallel > 1 else " on"
    asked = f"{question.concurrency:,} requests of {question.longest:,} tokens"
    runs = f" (it holds {degree.held_share:.0%} of those tokens)" if degree.deployment else ""
    return f"{degree.missing_bytes / 2**30:,.1f} GiB are missing{each} {devices} for {asked}{runs}"


def check_context(subject: Subject, question: Question) -> None:
    """ConfigError: requests longer than the model's positions."""
    if question.longest > subject.config.max_positions:
        raise ConfigError(
            f"requests of {question.longest:,} tokens are asked for, {subject.name} has "
            f"{subject.config.max_positions:,} positions: ask for a shorter --context"
        )
