"""The ladder of captured graphs: the decode step at some batch sizes, recorded once and replayed by one call.

A step of B requests replays the smallest graph of at least B rows; the rows beyond B compute on and are not looked at:
they store nothing (slot -1) and read one token of the first row's first page. A graph takes in the slots and positions
of its rows and gathers the rest from the slot table itself, so two small copies are all that the host brings. On
devices that work by themselves the sampler is a graph of its own behind it (`sampling.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from ...backends.contract import Backend
from ...ops.state import Attending
from ..batch import Batch
from ..step import Integers, Step
from .prompts import PromptGraphs, PromptSizes
from .sampling import SamplingGraphs
from .slots import SlotTable

Forward = Callable[[Batch], torch.Tensor]


def ladder(max_rows: int, step: int) -> tuple[int, ...]:
    """Batch sizes worth a graph: 1, 2, 4, then every multiple of `step`, so that what is computed in vain is at most
    `step` - 1 rows."""
    sizes = {1, 2, 4, *range(step, max_rows + 1, step), max_rows}
    return tuple(sorted(size for size in sizes if size <= max_rows))


@dataclass
class _Captured:
    inputs: torch.Tensor  # [2, rows] int64: slots, positions (-1: an empty row)
    starts: torch.Tensor  # [rows + 1] int32, held for the graph
    logits: torch.Tensor
    replay: Callable[[], None]


class Graphs:
    """sizes: rows of each graph, ascending. Captured when a step first asks for its size, or all by `capture_all`.
    sampling: the graphs behind them, or None where the sampler is called. prompts: those of steps that read prompts, or
    None where such steps are called."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        backend: Backend,
        slots: SlotTable,
        page_sizes: dict[str, int],
        forward: Forward,
        sampling: SamplingGraphs | None = None,
    ) -> None:
        self.sizes, self._backend, self._slots, self._forward = sizes, backend, slots, forward
        self._page_sizes, self.sampling = page_sizes, sampling
        self._captured: dict[int, _Captured] = {}
        self._logits: torch.Tensor | None = None
        self.prompts: PromptGraphs | None = None
        self.seconds = 0.0
        self.refusal: str | None = None
        """Why nothing is captured, once that is known."""

    @property
    def num_captured(self) -> int:
        return len(self._captured)

    @property
    def num_bytes(self) -> int | None:
        """Memory of what was captured; None where the backend does not say."""
        replays = [graph.replay for graph in self._captured.values()]
        replays += self.sampling.replays if self.sampling else []
        replays += self.prompts.replays if self.prompts else []
        sizes: list[int | None] = [getattr(replay, "num_bytes", None) for replay in replays]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def with_prompts(self, sizes: tuple[int, ...]) -> Graphs:
        """Itself, with graphs for steps that read prompts: of so many tokens each, with at most as many spans as the
        largest graph has rows."""
        self.prompts = PromptGraphs(
            PromptSizes(sizes, self.sizes[-1]), self._backend, self._slots, self._page_sizes, self._forward, self._kept
        )
        return self

    @property
    def refusals(self) -> list[str]:
        """What is called instead of replayed, and why, a line each."""
        parts = {"decode steps": self, "the sampler": self.sampling, "steps that read prompts": self.prompts}
        return [f"{name}: {part.refusal}" for name, part in parts.items() if part and part.refusal]

    def capture_all(self) -> None:
        """The largest first: the smaller ones then find its memory."""
        if self.prompts:
            self.prompts.capture_all()
        for size in reversed(self.sizes):
            graph = self._at(size)
            if graph is not None and self.sampling:
                self.sampling.capture_usual(graph.logits, graph.inputs)

    def run(self, slots: Integers, first: Integers) -> torch.Tensor | None:
        """Logits [B, V] of one token at position first[i] of each slots[i]; None where no graph serves."""
        graph = self._serving(len(slots))
        if graph is None:
            return None
        rows = np.full((2, graph.inputs.shape[1]), -1, dtype=np.int64)
        rows[0] = slots[0]
        rows[:, : len(slots)] = slots, first
        graph.inputs.copy_(torch.from_numpy(rows), non_blocking=True)
        graph.replay()
        return graph.logits[: len(slots)]

    def sampled(self, step: Step) -> tuple[torch.Tensor, ...] | None:
        """What the sampler yields from the logits of the `run` just before, its ids appended to the slot table; None
        where no graph serves."""
        graph = self._serving(len(step.spans)) if self.sampling else None
        if graph is None or self.sampling is None:
            return None
        return self.sampling.run(step, graph.logits, graph.inputs)

    def _serving(self, num_rows: int) -> _Captured | None:
        """The smallest graph of so many rows."""
        place = bisect_left(self.sizes, num_rows)
        return self._at(self.sizes[place]) if place < len(self.sizes) else None

    def _at(self, size: int) -> _Captured | None:
        if size not in self._captured and self.refusal is None:
            begun = perf_counter()
            self._capture(size)
            self.seconds += perf_counter() - begun
        return self._captured.get(size)

    def _capture(self, size: int) -> None:
        inputs = torch.zeros((2, size), dtype=torch.int64, device=self._slots.device)
        inputs[1] = -1
        starts = torch.arange(size + 1, dtype=torch.int32, device=self._slots.device)  # one token a request, always
        logits: list[torch.Tensor] = []

        def step() -> None:
            logits[:] = [self._kept(self._forward(self.batch(inputs, starts)))]

        replay = self._backend.capture(step)
        if replay is None or isinstance(replay, str):
            self.refusal = replay or f"backend {self._backend.name} records nothing"
        else:
            self._captured[size] = _Captured(inputs, starts, logits[0], replay)

    def _kept(self, logits: torch.Tensor) -> torch.Tensor:
        """Where graphs share one pool of memory, so do their results: kept apart, those of a ladder up to 512 would
        take more than the weights."""
        if not self._backend.is_asynchronous:
            return logits
        if self._logits is None:
            self._logits = logits.new_empty((self.sizes[-1], logits.shape[1]))
        return self._logits[: len(logits)].copy_(logits)

    def batch(self, inputs: torch.Tensor, starts: torch.Tensor) -> Batch:
        """The batch of a decode step, gathered on the device. starts: where each row's queries begin."""
        slots, first = inputs
        positions, is_empty = first.clamp(min=0), first < 0
        tables = {group: table.index_select(0, slots) for group, table in self._slots.page_tables.items()}
        stored = {}
        for group, table in tables.items():
            size = self._page_sizes[group]
            pages = table.gather(1, (positions // size)[:, None])[:, 0]
            stored[group] = torch.add(positions % size, pages, alpha=size).masked_fill_(is_empty, -1)
        lengths = (positions + 1).int()
        return Batch(
            ids=self._slots.tokens[slots, positions],
            positions=positions[None, :],
            slots=stored,
            attending={group: Attending(starts, lengths, table, 1) for group, table in tables.items()},
            logit_rows=None,
        )
