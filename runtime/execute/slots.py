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
        self._gathered: tuple[bytes, dict[str, torch.Tensor]] = (b"", {})  # of these slots; good until one is taken

    def apply(self, step: Step) -> None:
        """Takes in the deltas: moved, then added, then pages. A freed slot keeps its values until somebody takes it."""
        for source, target in step.moved.tolist():
            self._move(source, target)
        if step.added:
            self._add(step.added)
        if step.added or len(step.moved):
            self._gathered = (b"", {})
        for group, rows in step.pages.items():
            slots, indices, pages = (self.to_device(column) for column in rows.T)
            self.page_tables[group][slots, indices] = pages.int()

    def append(self, slots: torch.Tensor, lengths: torch.Tensor, ids: torch.Tensor) -> None:
        """Writes each sampled id behind its slot's tokens. lengths: how many those are."""
        self.tokens[slots, lengths] = ids
        self.lengths[slots] = lengths + 1

    def sampling(self, slots: torch.Tensor, step: Step) -> Sampling:
        """The sampler's view of the rows that yield logits. slots: theirs, in order."""
        rows = self._parameters(slots, step)
        lengths = self.lengths[slots]
        seen = self.tokens[slots] if step.penalized else self.tokens[: len(slots), :0]
        return Sampling(
            temperature=rows["temperature"],
            top_k=rows["top_k"],
            top_p=rows["top_p"],
            min_p=rows["min_p"],
            repetition=rows["repetition"],
            presence=rows["presence"],
            frequency=rows["frequency"],
            seeds=rows["seed"],
            positions=lengths,
            tokens=seen,
            prompt_lengths=rows["prompt_length"],
            lengths=lengths,
            mask=self._mask(step),
            num_logprobs=step.num_logprobs,
            random=step.random,
            filtered=step.filtered,
            penalized=step.penalized,
        )

    def _parameters(self, slots: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        """By name, of each row: the same from step to step while the same requests decode."""
        key = step.spans[step.logits[:, 0], 0].tobytes()
        if key != self._gathered[0]:
            rows = dict(zip(_REALS, self._reals[:, slots].unbind(), strict=True))
            rows |= dict(zip(_INTEGERS, self._integers[:, slots].unbind(), strict=True))
            self._gathered = key, rows
        return self._gathered[1]

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

    def _move(self, source: int, target: int) -> None:
        for table in (self.tokens, self.lengths, self._reals.T, self._integers.T, *self.page_tables.values()):
            table[target] = table[source]
