"""Completions' numbers: each client counts for itself, the engine counts for all.

A number in the engine is the client's serial number above `NUMBER_BITS` bits of the client's own number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import msgspec
import numpy as np

from ..messages import Ended, Progress, Started

NUMBER_BITS = 40
_Event = TypeVar("_Event", Started, Ended)


def engine_number(serial: int, number: int) -> int:
    return serial << NUMBER_BITS | number


def serial_of(number: int) -> int:
    return number >> NUMBER_BITS


def by_client(progress: Progress) -> Iterator[tuple[int, Progress]]:
    """What of a step each client is to know, under its own numbers."""
    serials = progress.numbers >> NUMBER_BITS
    told = {*np.unique(serials).tolist(), *(serial_of(each.number) for each in progress.started)}
    told.update(serial_of(each.number) for each in progress.ended)
    for serial in sorted(told):
        rows = serials == serial
        yield serial, Progress(
            progress.time_s, progress.numbers[rows] & ((1 << NUMBER_BITS) - 1), progress.ids[rows],
            progress.logprobs[rows], progress.top_ids[rows], progress.top_logprobs[rows],
            _of(serial, progress.started), _of(serial, progress.ended),
        )  # fmt: skip


def _of(serial: int, events: tuple[_Event, ...]) -> tuple[_Event, ...]:
    low = (1 << NUMBER_BITS) - 1
    return tuple(
        msgspec.structs.replace(each, number=each.number & low) for each in events if serial_of(each.number) == serial
    )
