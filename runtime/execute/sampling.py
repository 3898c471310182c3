"""The second graph of a decode step: from its logits to ids, which it appends to the slot table itself.

It is launched right behind the forward graph. What a grammar allows is written between the two, into a buffer of masks
that stays where it is. Parameters, seeds and lengths are gathered from the slot table by the rows' slots. There is a
graph for each size of the ladder and each way of drawing: greedy, random, behind filters, each masked or not. Penalties
and top log-probabilities change the work too much and too seldom: those steps call the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...backends.contract import Backend
from ...ops.sample import Sampling
from ..step import Step
from .slots import SlotTable

Sample = Callable[[torch.Tensor, Sampling], tuple[torch.Tensor, ...]]


class _Way(NamedTuple):
    """How the rows of a step are drawn."""

    random: bool
    filtered: bool
    masked: bool


_USUAL = (_Way(True, True, False), _Way(True, False, False), _Way(False, False, False))


class _Captured(NamedTuple):
    sampled: tuple[torch.Tensor, ...]
    replay: Callable[[], None]


class SamplingGraphs:
    """max_rows: of the largest graph."""

    def __init__(self, max_rows: int, backend: Backend, slots: SlotTable, sample: Sample) -> None:
        self._backend, self._slots, self._sample = backend, slots, sample
        self._masks = _Masks(max_rows, slots)
        self._captured: dict[tuple[int, _Way], _Captured] = {}
        self.refusal: str | None = None
        """Why nothing is captured, once that is known."""

    @property
    def replays(self) -> list[Callable[[], None]]:
        return [graph.replay for graph in self._captured.values()]

    def capture_usual(self, logits: torch.Tensor, inputs: torch.Tensor) -> None:
        """What steps without masks need. No request may be running."""
        for way in _USUAL:
            self._at(way, logits, inputs)

    def run(self, step: Step, logits: torch.Tensor, inputs: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """What the sampler yields for a step's rows; None where none of these graphs serves.

        logits: [rows, V] of the forward graph; inputs: its slots and positions, -1 in a row that is empty.
        """
        if step.penalized or step.num_logprobs:
            return None
        way = _Way(step.random, step.random and step.filtered, bool(step.masks))
        graph = self._at(way, logits, inputs)
        if graph is None:
            return None
        if step.masks:
            self._masks.write(step.masks)
        graph.replay()
        return tuple(tensor[: len(step.spans)] for tensor in graph.sampled)

    def _at(self, way: _Way, logits: torch.Tensor, inputs: torch.Tensor) -> _Captured | None:
        key = (len(logits), way)
        if key not in self._captured and self.refusal is None:
            self._capture(key, logits, inputs)
        return self._captured.get(key)

    def _capture(self, key: tuple[int, _Way], logits: torch.Tensor, inputs: torch.Tensor) -> None:
        sampled: list[torch.Tensor] = []
        asked = Step(random=key[1].random, filtered=key[1].filtered)
        mask = self._masks.rows(len(logits)) if key[1].masked else None

        def step() -> None:
            slots, first = inputs
            sampled[:] = self._sample(logits, self._slots.sampling(slots, asked, mask))
            # An empty row has the first one's slot: it writes the same id once more.
            self._slots.append(slots, torch.where(first < 0, sampled[0][:1], sampled[0]))

        lengths = self._slots.lengths.clone()  # a capture runs the step: what it appends does not count
        replay = self._backend.capture(step)
        self._slots.lengths.copy_(lengths)
        if replay is None or isinstance(replay, str):
            self.refusal = replay or f"backend {self._backend.name} records nothing"
        else:
            self._captured[key] = _Captured(tuple(sampled), replay)


class _Masks:
    """The buffer between the two graphs, [rows, ceil(V / 32)] int32 by the row of the step: bit v % 32 of word v // 32
    allows token v. Taken when a mask is first asked for; only rows that have a mask, or had one last, are written."""

    def __init__(self, max_rows: int, slots: SlotTable) -> None:
        self._shape, self._slots = (max_rows, -(-slots.vocabulary_size // 32)), slots
        self._buffer: torch.Tensor | None = None
        self._written: frozenset[int] = frozenset()

    def rows(self, count: int) -> torch.Tensor:
        if self._buffer is None:
            self._buffer = torch.full(self._shape, -1, dtype=torch.int32, device=self._slots.device)
        return self._buffer[:count]

    def write(self, masks: Mapping[int, NDArray[np.int32]]) -> None:
        changed = np.array(sorted(self._written | set(masks)))
        words = np.full((len(changed), self._shape[1]), -1, dtype=np.int32)
        for place, row in enumerate(changed.tolist()):
            words[place] = masks.get(row, -1)
        self.rows(self._shape[0])[self._slots.to_device(changed)] = self._slots.to_device(words)
        self._written = frozenset(masks)
