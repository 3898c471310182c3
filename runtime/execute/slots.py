"""The slot table: what the device remembers of each running request, changed by a step's deltas alone.

S slots, C the longest context, P pages of a request. Tokens are written by the host when a request takes a slot and by
the sampler afterwards: a sampled id is never sent back to the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ...ops.sample import Sampling
from ..step import SlotAdded, Step

_REALS = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
_INTEGERS = ("top_k", "seed", "prompt_length")
_WIDTH_STEP = 16
"""Widths are multiples of it: compiled kernels are told apart by whether theirs are."""


class SlotTable:
    """tokens: [S, C]; page_tables: by group [S, P]; lengths: [S] known tokens; sampling parameters [·, S]."""

    def __init__(
        self, num_slots: int, max_length: int, max_pages: Mapping[str, int], vocabulary_size: int, device: torch.device
    ) -> None:
        self.device, self.vocabulary_size = device, vocabulary_size
        self.tokens = torch.zeros((num_slots, max_length), dtype=torch.int64, device=device)
        self.lengths = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.page_tables = {
            group: torch.zeros((num_slots, count), dtype=torch.int32, device=device)
            for group, count in max_pages.items()
        }
        self._reals = torch.zeros((len(_REALS), num_slots), dtype=torch.float32, device=device)
        self._integers = torch.zeros((len(_INTEGERS), num_slots), dtype=torch.int64, device=device)
        self._is_penalized = np.zeros(num_slots, dtype=np.bool_)

    def apply(self, step: Step) -> None:
        """Takes in the deltas: moved, then added, then pages. A freed slot keeps its values until somebody takes it."""
        for source, target in step.moved.tolist():
            self._move(source, target)
        if step.added:
            self._add(step.added)
        for group, rows in step.pages.items():
            slots, indices, pages = (self.to_device(column) for column in rows.T)
            self.page_tables[group][slots, indices] = pages.int()

    def append(self, slots: torch.Tensor, ids: torch.Tensor) -> None:
        """Writes each sampled id behind its slot's tokens."""
        lengths = self.lengths[slots]
        self.tokens[slots, lengths] = ids
        self.lengths[slots] = lengths + 1

    def sampling(self, slots: torch.Tensor, step: Step, mask: torch.Tensor | None = None) -> Sampling:
        """The sampler's view of the rows that yield logits. mask: in place of the step's own."""
        rows = dict(zip(_REALS, self._reals[:, slots].unbind(), strict=True))
        rows |= dict(zip(_INTEGERS, self._integers[:, slots].unbind(), strict=True))
        positions = self.lengths[slots]
        tokens, lengths = self._penalized(step, positions)
        return Sampling(
            temperature=rows["temperature"],
            top_k=rows["top_k"],
            top_p=rows["top_p"],
            min_p=rows["min_p"],
            repetition=rows["repetition"],
            presence=rows["presence"],
            frequency=rows["frequency"],
            seeds=rows["seed"],
            positions=positions,
            tokens=tokens,
            prompt_lengths=rows["prompt_length"],
            lengths=lengths,
            mask=self._mask(step) if mask is None else mask,
            num_logprobs=step.num_logprobs,
            random=step.random,
            filtered=step.filtered,
            penalized=step.penalized,
        )

    def _penalized(self, step: Step, lengths_L: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens [L, C] and lengths [L] for the penalties: a row that has none is given no tokens, and C follows the
        longest of the others, so that these alone pay for them."""
        if not step.penalized:
            return self.tokens.new_empty((len(lengths_L), 0)), lengths_L
        spans = step.spans[step.logits[:, 0]]
        rows = np.flatnonzero(self._is_penalized[spans[:, 0]])
        longest = int(spans[rows, 1:].sum(axis=1).max(initial=1))
        width = -(-longest // _WIDTH_STEP) * _WIDTH_STEP
        tokens, lengths = self.tokens.new_zeros((len(lengths_L), width)), torch.zeros_like(lengths_L)
        places, slots = self.to_device(rows), self.to_device(spans[rows, 0])
        found = self.tokens[:, :width].index_select(0, slots)
        tokens[places, : found.shape[1]] = found
        lengths[places] = lengths_L[places]
        return tokens, lengths

    def to_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, non_blocking=True)

    def _mask(self, step: Step) -> torch.Tensor | None:
        if not step.masks:
            return None
        words = np.full((len(step.logits), -(-self.vocabulary_size // 32)), -1, dtype=np.int32)
        for row, mask in step.masks.items():
            words[row] = mask
        return self.to_device(words)

    def _add(self, added: Sequence[SlotAdded]) -> None:
        for each in added:
            self.tokens[each.slot, : len(each.tokens)] = self.to_device(each.tokens)
        slots = self.to_device(np.array([each.slot for each in added]))
        self.lengths[slots] = self.to_device(np.array([len(each.tokens) for each in added]))
        for table, names, dtype in ((self._reals, _REALS, np.float32), (self._integers, _INTEGERS, np.int64)):
            values = [[getattr(each, name) for each in added] for name in names]
            table[:, slots] = self.to_device(np.array(values, dtype=dtype))
        for each in added:
            self._is_penalized[each.slot] = (each.repetition, each.presence, each.frequency) != (1.0, 0.0, 0.0)

    def _move(self, source: int, target: int) -> None:
        for table in (self.tokens, self.lengths, self._reals.T, self._integers.T, *self.page_tables.values()):
            table[target] = table[source]
        self._is_penalized[target] = self._is_penalized[source]
