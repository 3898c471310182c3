"""Captured steps that read prompts, alone or among decoding requests, padded to a ladder of tokens.

Called one by one, the kernels of such a step cost the host more than a device's work on a thousand tokens takes. A
graph holds a number of tokens and of spans; what of a step is missing to both is padding: tokens that store nothing
(slot -1) and whose rows are not looked at, spans without a token. Who has how many tokens is read on the device, so one
graph serves every mix of prompts and decoding requests that fits. Longer steps are called: there the device takes
longer than the host.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...backends.contract import Backend
from ...ops.state import Attending
from ..batch import Batch
from ..step import Step
from .slots import SlotTable

_MAX_TOKENS = 1024
_FEW_SPANS = 16
_STEPS = ((64, 16), (256, 32), (512, 64), (_MAX_TOKENS, 128))
"""Up to so many tokens, sizes lie so far apart."""

Forward = Callable[[Batch], torch.Tensor]


def prompt_ladder(max_tokens: int) -> tuple[int, ...]:
    """Numbers of tokens worth a graph, up to `max_tokens` and 1,024: of a step of more than 32 at most a third is
    computed in vain."""
    sizes: list[int] = []
    for bound, step in _STEPS:
        sizes += range((sizes[-1] if sizes else 0) + step, bound + 1, step)
    return tuple(size for size in sizes if size <= max_tokens)


class PromptSizes(NamedTuple):
    """What there are graphs for. tokens: of each, ascending. max_spans: of a step that is served; few spans have graphs
    of their own."""

    tokens: tuple[int, ...] = ()
    max_spans: int = 0

    def serving(self, num_tokens: int, num_spans: int) -> tuple[int, int] | None:
        """Tokens and spans, a row of logits each, of the smallest graph that holds such a step; None: it is called."""
        place = bisect_left(self.tokens, num_tokens)
        if place == len(self.tokens) or num_spans > self.max_spans:
            return None
        size, few = self.tokens[place], min(_FEW_SPANS, self.max_spans)
        return size, few if num_spans <= few else min(size, self.max_spans)

    @property
    def graphs(self) -> list[tuple[int, int]]:
        """All, the largest first."""
        held = ((size, spans) for size in self.tokens for spans in (1, min(size, self.max_spans)))
        return sorted({found for each in held if (found := self.serving(*each))}, reverse=True)


class _Captured(NamedTuple):
    inputs: torch.Tensor  # see `_packed`
    logits: torch.Tensor
    replay: Callable[[], None]


class PromptGraphs:
    """keep: puts a graph's logits where they stay."""

    def __init__(
        self,
        sizes: PromptSizes,
        backend: Backend,
        slots: SlotTable,
        page_sizes: dict[str, int],
        forward: Forward,
        keep: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self._sizes, self._backend, self._slots, self._page_sizes = sizes, backend, slots, page_sizes
        self._forward, self._keep = forward, keep
        self._captured: dict[tuple[int, int], _Captured] = {}
        self.refusal: str | None = None
        """Why nothing is captured, once that is known."""

    @property
    def replays(self) -> list[Callable[[], None]]:
        return [graph.replay for graph in self._captured.values()]

    def capture_all(self) -> None:
        """The largest first: the smaller ones then find its memory."""
        for key in self._sizes.graphs:
            self._at(key)

    def run(self, step: Step) -> torch.Tensor | None:
        """Logits [L, V] of a step; None where no graph serves."""
        if step.ancestors is not None or step.adapter_slots is not None or step.embeddings:
            return None
        if len(step.logits) > len(step.spans):
            return None
        key = self._sizes.serving(step.num_tokens, len(step.spans))
        graph = self._at(key) if key else None
        if key is None or graph is None:
            return None
        graph.inputs.copy_(torch.from_numpy(_packed(step, *key)), non_blocking=True)
        graph.replay()
        return graph.logits[: len(step.logits)]

    def _at(self, key: tuple[int, int]) -> _Captured | None:
        if key not in self._captured and self.refusal is None:
            self._capture(key)
        return self._captured.get(key)

    def _capture(self, key: tuple[int, int]) -> None:
        nothing = torch.from_numpy(_packed(Step(), *key))
        inputs = torch.empty(nothing.shape, dtype=torch.int64, device=self._slots.device).copy_(nothing)
        logits: list[torch.Tensor] = []

        def step() -> None:
            logits[:] = [self._keep(self._forward(self.batch(inputs, *key)))]

        replay = self._backend.capture(step)
        if replay is None or isinstance(replay, str):
            self.refusal = replay or f"backend {self._backend.name} records nothing"
        else:
            self._captured[key] = _Captured(inputs, logits[0], replay)

    def batch(self, inputs: torch.Tensor, num_tokens: int, num_spans: int) -> Batch:
        """The batch of a step, gathered on the device from its packed numbers."""
        slots, first, span_slots, lengths, logit_rows, starts = inputs.split(
            [num_tokens, num_tokens, num_spans, num_spans, num_spans, num_spans + 1]
        )
        positions, is_empty = first.clamp(min=0), first < 0
        stored, attending = {}, {}
        for group, table in self._slots.page_tables.items():
            size = self._page_sizes[group]
            pages = table[slots, positions // size].long()
            stored[group] = torch.add(positions % size, pages, alpha=size).masked_fill_(is_empty, -1)
            tables = table.index_select(0, span_slots)
            attending[group] = Attending(starts.int(), lengths.int(), tables, num_tokens)
        return Batch(
            ids=self._slots.tokens[slots, positions],
            positions=positions[None, :],
            slots=stored,
            attending=attending,
            logit_rows=logit_rows,
        )


def _packed(step: Step, num_tokens: int, num_spans: int) -> NDArray[np.int64]:
    """A step's numbers in one row, one copy to the device: of each token its slot and position (-1: padding), of each
    span its slot and the keys that it sees, the rows that yield logits, and where each span's tokens begin."""
    slot, first, count = step.spans.T
    starts = np.full(num_spans + 1, step.num_tokens)
    starts[0], starts[1 : len(count)] = 0, count[:-1].cumsum()
    rows = np.zeros((2, num_tokens), dtype=np.int64)
    rows[1] = -1
    offsets = np.arange(step.num_tokens) - starts[: len(count)].repeat(count)
    rows[:, : step.num_tokens] = slot.repeat(count), first.repeat(count) + offsets
    spans = np.zeros((3, num_spans), dtype=np.int64)
    spans[:2, : len(count)] = slot, first + count
    spans[2, : len(step.logits)] = starts[step.logits[:, 0]] + step.logits[:, 1]
    return np.concatenate([rows.ravel(), spans.ravel(), starts])
