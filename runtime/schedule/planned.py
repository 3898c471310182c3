"""What passes between scheduler and engine: a step with what commit needs of it, and what commit found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..messages import EndReason
from ..step import Integers, Step
from .request import Scheduled

Ending = tuple[int, EndReason, int | None]


@dataclass(frozen=True)
class Planned:
    """A step and what commit needs of it: by row of its logits the slot, ticket and number; who was given a slot
    for the first time, with the tokens found cached and all of the prompt; whose prompt was computed up to where;
    seconds by the device's rates, or 0 where nobody asks."""

    step: Step
    slots: Integers
    tickets: Integers
    numbers: Integers
    started: tuple[tuple[int, int], ...]
    num_prompt_tokens: int
    prefilled: tuple[tuple[Scheduled, int, int], ...]
    nominal_s: float = 0.0

    @property
    def is_idle(self) -> bool:
        """Nothing is to be computed."""
        return not len(self.step.spans)


@dataclass(frozen=True)
class Committed:
    """rows: of the step's logits, those whose completion still wanted the token. ended: (number, reason, stop id)."""

    rows: NDArray[np.intp]
    ended: tuple[Ending, ...]
