"""The worker: one device's model, state and slot table. It takes `Step`s and gives sampled tokens, nothing else.

The forward pass and the sampler are two calls in a row, or two graphs: a grammar's mask may be written between them.
A launched step may still run when `launch` returns: on a device that works by itself because it does, elsewhere in a
thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ...ops.binding import BoundOps, PageDemand
from ...ops.state import Attending, Pages, StateGroup
from ...ops.types import ONE_DEVICE, Mesh
from ..arena import Arena
from ..batch import Batch, State
from ..model import Model
from ..step import Step
from .graphs import Graphs
from .sampled import Sampled
from .slots import SlotTable


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
    """concurrent: whether `launch` returns before the step is done. Only then is there something to overlap with."""

    def __init__(
        self,
        model: Model,
        state: State,
        ops: BoundOps,
        slots: SlotTable,
        *,
        concurrent: bool = False,
        graphs: Graphs | None = None,
        mesh: Mesh = ONE_DEVICE,
    ) -> None:
        self.model, self.state, self.ops, self.slots, self.mesh = model, state, ops, slots, mesh
        self.graphs = graphs
        self._page_sizes = {name: layers[0].page_size for name, layers in state.items()}
        is_host = slots.device.type == "cpu"
        self._thread = ThreadPoolExecutor(1, "ambidex-worker") if concurrent and is_host else None

    def launch(self, step: Step) -> Callable[[], Sampled]:
        """Begins a step behind those launched before; the result waits for it."""
        if self._thread:
            future = self._thread.submit(self._run, step)
            return lambda: future.result()()
        return self._run(step)

    def close(self) -> None:
        """Ends the worker's thread, if it has one."""
        if self._thread:
            self._thread.shutdown()

    @torch.inference_mode()
    def _run(self, step: Step) -> Callable[[], Sampled]:
        self._copy_pages(step)
        self.slots.apply(step)
        if self.graphs and step.is_plain_decode:
            logits = self.graphs.run(step.spans[:, 0], step.spans[:, 1])
            if logits is not None:
                return _fetched(self.graphs.sampled(step) or self._sampled(step, logits))
        logits = self.graphs.prompts.run(step) if self.graphs and self.graphs.prompts else None
        if logits is None:
            logits = self.model.forward(self.batch(step), None, self.state, self.ops, self.mesh)
        return _fetched(self._sampled(step, logits)) if len(step.logits) else Sampled.none

    def _sampled(self, step: Step, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        slots = self.slots.to_device(step.spans[step.logits[:, 0], 0])
        sampled: tuple[torch.Tensor, ...] = self.ops.sample(logits, self.slots.sampling(slots, step))
        self.slots.append(slots, sampled[0])
        return sampled

    def _copy_pages(self, step: Step) -> None:
        for group, pairs in step.copies.items():
            sources, targets = (self.slots.to_device(column) for column in pairs.T)
            for pages in self.state[group]:
                for name in pages.planes:
                    plane = pages.canonical(name)
                    plane[targets] = plane[sources]

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


def _fetched(sampled: tuple[torch.Tensor, ...]) -> Callable[[], Sampled]:
    """The sampled rows on the host. The copies are queued now, behind this very step: asked for later, they would wait
    for the steps launched meanwhile."""
    if sampled[0].device.type == "cpu":
        arrays = Sampled(*(tensor.numpy() for tensor in sampled))
        return lambda: arrays
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in sampled]
    for copy, tensor in zip(copies, sampled, strict=True):
        copy.copy_(tensor, non_blocking=True)
    done = torch.Event(sampled[0].device)
    done.record()

    def wait() -> Sampled:
        done.synchronize()
        return Sampled(*(copy.numpy() for copy in copies))

    return wait
