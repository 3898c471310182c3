"""A step while it is planned: what was given to whom, and what is left of the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..step import Integers, SlotAdded, Step, no_rows
from .admission import Placed
from .pace import Load, Pace
from .request import Scheduled
from .running import Running


class Deltas:
    """started: (number, cached tokens) of those let in for the first time. prefilled: (request, ticket, tokens computed
    after this step) of each prompt that was worked on."""

    def __init__(self, token_budget: int, pace: Pace | None) -> None:
        self.started: list[tuple[int, int]] = []
        self.prefilled: list[tuple[Scheduled, int, int]] = []
        self.num_prompt_tokens = 0
        self._left, self._pace, self._load = token_budget, pace, Load()
        self._is_full = False
        self._added: list[SlotAdded] = []
        self._pages: dict[str, list[Integers]] = {}
        self._copies: dict[str, list[tuple[int, int]]] = {}
        self._decodes: Integers = no_rows(3)
        self._chunks: list[tuple[int, int, int]] = []
        self._sampled_chunks: list[tuple[int, int, int]] = []  # slot, span, row in the span

    @property
    def has_room(self) -> bool:
        return self._left > 0 and not self._is_full

    @property
    def nominal_s(self) -> float:
        return self._pace.nominal_s(self._load) if self._pace and self._load.rows else 0.0

    def add_pages(self, group: str, slots: Integers | int, index: Integers, pages: Sequence[int]) -> None:
        rows = np.empty((len(pages), 3), dtype=np.int64)
        rows[:, 0], rows[:, 1], rows[:, 2] = slots, index, pages
        self._pages.setdefault(group, []).append(rows)

    def add_slot(self, request: Scheduled, placed: Placed, *, is_first: bool) -> None:
        self._added.append(_slot_added(request))
        for group, pages in request.pages.items():
            self.add_pages(group, request.slot, np.arange(len(pages)), pages)
        for group, copy in placed.copies.items():
            self._copies.setdefault(group, []).append(copy)
        if is_first:
            self.started.append((request.number, placed.num_computed))
            self.num_prompt_tokens += request.prompt_length

    def add_decodes(self, slots: Integers, first: Integers) -> None:
        """One token of each of these, each yielding the next one."""
        self._decodes = np.ones((len(slots), 3), dtype=np.int64)
        self._decodes[:, 0], self._decodes[:, 1] = slots, first
        self._left -= len(slots)
        if self._pace:
            context = int(first.sum()) + len(slots)
            self._load = Load(len(slots), len(slots), context, context, len(slots))

    def fitting(self, first: int, pending: int) -> int:
        """How many of `pending` tokens behind `first` stored ones the budgets allow."""
        most = min(pending, self._left)
        if not self.has_room or self._pace is None:
            return most if self.has_room else 0
        count = self._pace.chunk(self._load, first, most)
        self._is_full = self._pace.seconds(self._load.and_chunk(first, count)) >= self._pace.budget_s or count < most
        return count

    def add_chunk(self, request: Scheduled, first: int, count: int, *, is_sampled: bool) -> None:
        span = len(self._decodes) + len(self._chunks)
        self._chunks.append((request.slot, first, count))
        if is_sampled:
            self._sampled_chunks.append((request.slot, span, count - 1))
        self.prefilled.append((request, request.ticket, first + count))
        self._left -= count
        if self._pace:
            self._load = self._load.and_chunk(first, count)

    def step(self, running: Running, freed: Integers) -> tuple[Step, Integers]:
        """The step, and the slot of each row of its logits."""
        spans, slots = self._decodes, self._decodes[:, 0]
        if self._chunks:
            spans = np.concatenate([spans, np.array(self._chunks)])
        sampled = np.array(self._sampled_chunks, dtype=np.int64).reshape(-1, 3)
        if len(sampled):
            slots = np.concatenate([slots, sampled[:, 0]])
        logits = np.zeros((len(slots), 2), dtype=np.int64)
        logits[:, 0] = np.arange(len(slots))
        logits[len(self._decodes) :] = sampled[:, 1:]
        step = Step(
            added=tuple(self._added),
            freed=freed,
            copies={group: np.array(pairs, dtype=np.int64) for group, pairs in self._copies.items()},
            pages={group: rows[0] if len(rows) == 1 else np.concatenate(rows) for group, rows in self._pages.items()},
            spans=spans,
            logits=logits,
            num_logprobs=running.num_logprobs,
            random=running.asked["random"] > 0,
            filtered=running.asked["filtered"] > 0,
            penalized=running.asked["penalized"] > 0,
            masks=_masks(running, slots) if running.asked["masked"] else {},
        )
        return step, slots


def _masks(running: Running, slots: Integers) -> Mapping[int, NDArray[np.int32]]:
    masks: dict[int, NDArray[np.int32]] = {}
    for row, slot in enumerate(slots.tolist()):
        # `known` counts the token that this very row yields.
        mask = running.at(slot).mask(int(running.known[slot] - 1 - running.prompt_length[slot]))
        if mask is not None:
            masks[row] = mask
    return masks


def _slot_added(request: Scheduled) -> SlotAdded:
    params = request.params
    return SlotAdded(
        slot=request.slot,
        tokens=request.tokens.astype(np.int64),
        prompt_length=request.prompt_length,
        temperature=params.temperature,
        top_k=max(params.top_k, 0),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=params.repetition_penalty,
        presence=params.presence_penalty,
        frequency=params.frequency_penalty,
        seed=request.seed,
    )
