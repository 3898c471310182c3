"""The calls of one forward pass and the sampler, noted with their operands, to be made again by kind of work.

All calls of a kind are made in a row, over all layers, recorded where the backend records: so each weight is read once
in a pass, and no cache holds it when it comes again. Attention's pages are changed from pass to pass to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from ..backends.contract import Backend
from ..ops import discovery
from ..ops.state import Attending
from ..ops.types import ONE_DEVICE
from ..planning.efficiency import Kind
from ..planning.step_time import kinds
from ..runtime.batch import Batch
from ..runtime.execute.graphs import Graphs
from ..runtime.execute.worker import Worker
from ..runtime.start import Decisions
from ..runtime.step import Integers, Step
from .operands import changed

Noted = dict[Kind, list["partial[Any]"]]
_MAX_TABLES = 32
_MAX_SAMPLES = 60


class _Noting:
    """Stands where a binding's ops stand, calls them, and keeps each call under its site's kind."""

    def __init__(self, ops: Any, kinds_of: Mapping[str, Kind]) -> None:
        self._ops, self._kinds, self._labels = ops, kinds_of, discovery.ops()
        self.calls: Noted = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        bound, label = getattr(self._ops, name), self._labels[name].label

        def call(*args: Any, **params: Any) -> Any:
            kind = self._kinds[f"{name}@{label(*args, **params)}"]
            self.calls.setdefault(kind, []).append(partial(bound, *args, **params))
            return bound(*args, **params)

        return call


class Calls:
    """Of a model whose worker, pages and slots stand ready."""

    def __init__(self, decided: Decisions, worker: Worker) -> None:
        self.sites = tuple(bound.site for bound in decided.binding.sites)
        self._decided, self._worker, self._kinds = decided, worker, kinds(self.sites)
        self._backend: Backend = decided.backend

    @torch.inference_mode()
    def noted(self, first: Integers, count: Integers) -> Noted:
        """Of one step; request i computes count[i] tokens behind first[i]: all of them one, or none."""
        requests = len(first)
        tables = self._give_pages(requests, int((first + count).max()))
        spans = np.stack([np.arange(requests), first, count], axis=1)
        step = Step(spans=spans, logits=np.stack([np.arange(requests), count - 1], axis=1))
        noting = _Noting(self._worker.ops, self._kinds)
        batch = self._decode_batch(first) if step.is_plain_decode else self._worker.batch(step)
        logits = self._worker.model.forward(batch, None, self._worker.state, noting, ONE_DEVICE)
        slots = self._worker.slots
        noting.sample(logits, slots.sampling(slots.to_device(spans[:, 0]), step))
        attending = noting.calls.pop("decode_attention")
        kind: Kind = "decode_attention" if step.is_plain_decode else "prompt_attention"
        return {**noting.calls, kind: [_on(each, table) for table in tables for each in attending]}

    @torch.inference_mode()
    def seconds(self, calls: Sequence[Callable[[], Any]], budget_s: float) -> float:
        """Of all the calls in a row, the median of passes."""
        replay = self._backend.capture(partial(_all, calls))  # which runs them once
        once = partial(_all, calls) if isinstance(replay, str) else replay
        taken = [self._backend.elapsed_s(once, self._decided.device)]
        while sum(taken) < budget_s and len(taken) < _MAX_SAMPLES:
            taken.append(self._backend.elapsed_s(once, self._decided.device))
        return median(taken[1:] or taken)

    def _give_pages(self, requests: int, length: int) -> list[dict[str, torch.Tensor]]:
        """Gives the requests' slots pages in no order; page tables of other pages for further passes, as many as there
        are."""
        draw, sets = np.random.default_rng(0), _MAX_TABLES
        drawn: dict[str, np.ndarray] = {}
        for group, size in self._decided.page_sizes.items():
            pages, count = self._decided.num_pages[group], -(-length // size)
            sets = min(sets, max(pages // (requests * count), 1))
            drawn[group] = draw.permutation(pages)[: sets * requests * count].reshape(-1, requests, count)
        tables = [{group: torch.from_numpy(found[number]) for group, found in drawn.items()} for number in range(sets)]
        for group, table in tables[0].items():
            self._worker.slots.page_tables[group][:requests, : table.shape[1]] = table.to(self._decided.device).int()
        return tables

    def _decode_batch(self, first: Integers) -> Batch:
        """As a captured step has it: the page tables as wide as the slots'."""
        device, count = self._decided.device, len(first)
        graphs = Graphs((count,), self._backend, self._worker.slots, self._decided.page_sizes, lambda _: torch.empty(0))
        inputs = torch.from_numpy(np.stack([np.arange(count), first])).to(device)
        return graphs.batch(inputs, torch.arange(count + 1, dtype=torch.int32, device=device))


def _on(call: partial[Any], tables: Mapping[str, torch.Tensor]) -> partial[Any]:
    """The attention on other pages: the tables of its group, which its pages name."""
    group = next(each.group.name for each in call.args if hasattr(each, "group"))

    def change(operand: Any) -> Any:
        if not isinstance(operand, Attending):
            return operand
        table = operand.page_tables.clone()
        table[:, : tables[group].shape[1]] = tables[group].to(table.device).int()
        return replace(operand, page_tables=table)

    return partial(call.func, *(changed(each, change) for each in call.args), **call.keywords)


def _all(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()
