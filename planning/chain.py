"""Machines whose memory is SRAM: weights and keys lie in it, over as many devices as that takes, one behind another.

A step passes through the chain: its time t is that of all bytes at one device's bandwidth, or of all operations at one
device's rate (`hwprofiles.roofline`). Each of N devices works on another group of requests, of g = B / N or of one, so

    time per token >= max(t, (B / g t + B c / n) / N),    time to the first token >= max(t, c / N)

with answers of n tokens and c the operations of a prompt at one device's rate: its tokens follow one another through
the chain. This is a bound, not a forecast: what a hop between devices takes is in no profile, nor the share of the
peaks that such a machine reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..hwprofiles.roofline import Roofline, roofline
from ..hwprofiles.schema import Profile
from ..runtime.budget import GIB
from .memory import kv_token_bytes, weight_bytes
from .point import Load
from .precision import Precision
from .question import Question
from .shards import Shard, shard
from .step_time import attention_load, window_of
from .subject import Subject
from .work import planned_coefficients

SOURCE = "bound: bytes and operations at the specified peaks, no hop between devices"


@dataclass(frozen=True)
class ChainPoint:
    """batch requests on the way at once. ttft_s: None where no rate is published to tell it by."""

    batch: int
    ttft_s: float | None
    tpot_s: float
    tokens_per_s: float
    limit: str


@dataclass(frozen=True)
class Chain:
    """A model over devices of SRAM. max_concurrency: requests of the asked length whose keys the devices hold;
    max_context_tokens: of a single one, at most what the model was made for."""

    profile: Profile
    precision: Precision
    num_devices: int
    weight_bytes: int
    kv_token_bytes: int
    max_concurrency: int
    max_context_tokens: int
    at: ChainPoint
    points: tuple[ChainPoint, ...]

    @property
    def watts(self) -> float | None:
        return self.num_devices * self.profile.tdp_w if self.profile.tdp_w else None


def chain(subject: Subject, profile: Profile, precision: Precision, question: Question) -> Chain:
    """The fewest devices that hold the weights and the keys of all that was asked for, and what they then do."""
    part = shard(subject.config)
    weights, token = weight_bytes(part, precision), kv_token_bytes(part, precision)
    request = question.longest * token
    num_devices = profile.devices_to_hold(weights + question.concurrency * request)
    room = num_devices * (profile.memory.usable_gib or 0.0) * GIB - weights
    held = max(int(room // request), question.concurrency)
    longest = min(max(int(room // token), question.longest), subject.config.max_positions)
    batches = sorted({*(each for each in (1, 8, 32, 128) if each < held), held})
    points = tuple(_point(part, profile, precision, question.load, num_devices, each) for each in batches)
    asked = _point(part, profile, precision, question.load, num_devices, question.concurrency)
    return Chain(profile, precision, num_devices, weights, token, held, longest, asked, points)


def _point(part: Shard, profile: Profile, precision: Precision, load: Load, num_devices: int, batch: int) -> ChainPoint:
    group, context = -(-batch // num_devices), load.input_len + load.output_len // 2
    step = _pass(part, profile, precision, np.full(group, context - 1), np.ones(group, dtype=np.int64))
    alone = _pass(part, profile, precision, np.array([load.input_len - 1]), np.ones(1, dtype=np.int64))
    prompt = _pass(part, profile, precision, np.zeros(1, dtype=np.int64), np.array([load.input_len]))
    reading_s = prompt.compute_seconds
    busy_s = (-(-batch // group) * step.seconds + batch * (reading_s or 0.0) / load.output_len) / num_devices
    ttft_s = None if reading_s is None else max(alone.seconds, reading_s / num_devices)
    tpot_s = max(step.seconds, busy_s)
    return ChainPoint(batch, ttft_s, tpot_s, batch / tpot_s, step.limit)


def _pass(part: Shard, profile: Profile, precision: Precision, first: np.ndarray, count: np.ndarray) -> Roofline:
    """One group's pass through the whole chain."""
    num_bytes, operations = planned_coefficients(part.sites, precision)
    loads = np.array([attention_load(first, count, window_of(site))[0] for site in part.sites], dtype=np.float64)
    loads[:, 5] = len(count)
    resident = weight_bytes(part, precision)
    return roofline(profile, float((num_bytes * loads).sum()), float((operations * loads).sum()),
                    precision.rate, resident_bytes=resident)  # fmt: skip
