"""The one message from planning to execution: plain values, deltas only. No torch on this side.

A worker keeps a slot table; a `Step` says what changed in it and what to compute. Integer arrays are int64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def no_rows(width: int) -> Integers:
    return np.empty((0, width), dtype=np.int64)


@dataclass(frozen=True)
class SlotAdded:
    """A request takes a slot: its tokens so far (the prompt first) and how it is sampled."""

    slot: int
    tokens: Integers
    prompt_length: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition: float
    presence: float
    frequency: float
    seed: int


@dataclass(frozen=True)
class Step:
    """Deltas of the slot table, then the work.

    added: slots taken. moved: [n, 2] (from, to). freed: [n] slots given back.
    copies: by state group, [n, 2] (from, to) pages: all are read before one is written, before anything is computed.
    pages: by state group, [n, 3] (slot, index in its table, page).
    spans: [B, 3] (slot, first position, count): tokens to compute, in batch order.
    logits: [L, 2] (span, position in the span): which rows yield logits, and so a sampled token.
    num_logprobs, random, filtered, penalized: what any running request asks for; each row's own stand in its slot.
    masks: by index into `logits`, the allowed-token words [ceil(V/32)] of a row that has a host mask.
    ancestors: [T, W] of a tree of draft tokens, or None for the causal rule.
    adapter_slots: [B] adapter of each span, or None. embeddings: (row, values) given in place of ids.
    """

    added: tuple[SlotAdded, ...] = ()
    moved: Integers = field(default_factory=lambda: no_rows(2))
    freed: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    copies: Mapping[str, Integers] = field(default_factory=dict[str, Integers])
    pages: Mapping[str, Integers] = field(default_factory=dict[str, Integers])
    spans: Integers = field(default_factory=lambda: no_rows(3))
    logits: Integers = field(default_factory=lambda: no_rows(2))
    num_logprobs: int = 0
    random: bool = False
    filtered: bool = False
    penalized: bool = False
    masks: Mapping[int, NDArray[np.int32]] = field(default_factory=dict[int, NDArray[np.int32]])
    ancestors: NDArray[np.bool_] | None = None
    adapter_slots: Integers | None = None
    embeddings: tuple[tuple[int, NDArray[np.float32]], ...] = ()

    @property
    def num_tokens(self) -> int:
        return int(self.spans[:, 2].sum())

    @property
    def is_plain_decode(self) -> bool:
        """Every span is one token that yields logits, seen by the causal rule: the step that graphs are made for."""
        one_each = len(self.logits) == len(self.spans) and bool((self.spans[:, 2] == 1).all())
        return one_each and self.ancestors is None and self.adapter_slots is None and not self.embeddings
