"""The worker: one device's model, state and slot table. It takes `Step`s and gives sampled tokens, nothing else.

The forward pass and the sampler are two calls in a row: a grammar's mask may be written between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ...ops.binding import BoundOps, PageDemand
from ...ops.state import Attending, Pages, StateGroup
from ...ops.types import ONE_DEVICE, Mesh
from ..arena import Arena
from ..batch import Batch, State
from ..model import Model
from ..step import Step
from .slots import SlotTable


@dataclass(frozen=True)
class Sampled:
    """Tokens of one step, still on the device. ids, logprobs: [L]; top_ids, top_logprobs: [L, num_logprobs]."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor


def state_tensors(
    groups: tuple[StateGroup, ...], demands: Mapping[str, PageDemand], num_pages: Mapping[str, int]
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every plane of every layer, in the order in which `allocate_state` takes them."""
    return [
        (demands[group.name].layout.shape(plane, num_pages[group.name], demands[group.name].page_size), plane.dtype)
        for group in groups
        for _ in range(group.num_layers)
        for plane in group.planes
    ]


def allocate_state(
    groups: tuple[StateGroup, ...], demands: Mapping[str, PageDemand], num_pages: Mapping[str, int], arena: Arena
) -> State:
    """The pages of every layer of every group, as the binding wants them laid out. Untouched pages cost no memory
    where the system commits lazily."""
    tensors = iter([arena.take(shape, dtype) for shape, dtype in state_tensors(groups, demands, num_pages)])
    state: dict[str, list[Pages]] = {}
    for group in groups:
        demand = demands[group.name]
        layers = [{plane.name: next(tensors) for plane in group.planes} for _ in range(group.num_layers)]
        state[group.name] = [Pages(group, planes, demand.layout, demand.page_size) for planes in layers]
    return state


class Worker:
    def __init__(self, model: Model, state: State, ops: BoundOps, slots: SlotTable, mesh: Mesh = ONE_DEVICE) -> None:
        self.model, self.state, self.ops, self.slots, self.mesh = model, state, ops, slots, mesh
        self._page_sizes = {name: layers[0].page_size for name, layers in state.items()}

    @torch.inference_mode()
    def run(self, step: Step) -> Sampled | None:
        """Computes a step; None if no row of it yields logits."""
        self.slots.apply(step)
        if not len(step.spans):
            return None
        logits = self.model.forward(self.batch(step), None, self.state, self.ops, self.mesh)
        if not len(step.logits):
            return None
        slots = self.slots.to_device(step.spans[step.logits[:, 0], 0])
        sampled = Sampled(*self.ops.sample(logits, self.slots.sampling(slots, step)))
        self.slots.append(slots, sampled.ids)
        return sampled

    def batch(self, step: Step) -> Batch:
        """The model's view of a step, gathered from the slot table."""
        slot, first, count = step.spans.T
        starts = np.concatenate([[0], count.cumsum()])
        row_slots = self.slots.to_device(slot.repeat(count))
        offsets = np.arange(starts[-1]) - starts[:-1].repeat(count)
        positions = self.slots.to_device(first.repeat(count) + offsets)
        span_slots = self.slots.to_device(slot)
        query_starts = self.slots.to_device(starts.astype(np.int32))
        lengths = self.slots.to_device((first + count).astype(np.int32))
        ancestors = None if step.ancestors is None else self.slots.to_device(step.ancestors)
        attending = {
            group: Attending(query_starts, lengths, self._tables(group, span_slots, step), int(count.max()), ancestors)
            for group in self.state
        }
        embedded = _embeddings(step, self.slots)
        return Batch(
            ids=self.slots.tokens[row_slots, positions],
            positions=positions[None, :],
            slots={group: self._page_slots(group, row_slots, positions) for group in self.state},
            attending=attending,
            logit_rows=self.slots.to_device(starts[step.logits[:, 0]] + step.logits[:, 1]),
            embedding_rows=embedded[0],
            embedding_values=embedded[1],
            adapter_slots=None
            if step.adapter_slots is None
            else self.slots.to_device(step.adapter_slots.repeat(count)),
        )

    def _tables(self, group: str, span_slots: torch.Tensor, step: Step) -> torch.Tensor:
        """Page tables of the spans, no wider than the longest of them needs."""
        longest = int((step.spans[:, 1] + step.spans[:, 2]).max())
        width = -(-longest // self._page_sizes[group])
        return self.slots.page_tables[group][:, :width][span_slots].contiguous()

    def _page_slots(self, group: str, row_slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        size = self._page_sizes[group]
        pages = self.slots.page_tables[group][row_slots, positions // size].long()
        return pages * size + positions % size


def _embeddings(step: Step, slots: SlotTable) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if not step.embeddings:
        return None, None
    rows = np.array([row for row, _ in step.embeddings], dtype=np.int64)
    return slots.to_device(rows), slots.to_device(np.stack([values for _, values in step.embeddings]))
