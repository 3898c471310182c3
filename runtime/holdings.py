"""What an engine holds of a device's memory, measured: the ledger's second column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ..backends.contract import Backend
from .arena import Arena
from .budget import shown_bytes
from .engine import Engine
from .execute.graphs import Graphs
from .ledger import Ledger
from .messages import Submission
from .request import SamplingParams

_DRAWS, _PROMPT = 8, 4


class Measured(NamedTuple):
    """Bytes that were found, or None and why none can be."""

    num_bytes: int | None
    note: str = ""


class Holdings:
    """The pieces that were allocated, and the process's use of memory from then on.

    tables: what keeps the slots, on the device and on the host.
    """

    def __init__(
        self,
        ledger: Ledger,
        backend: Backend,
        device: torch.device,
        weights: Arena,
        pages: Arena,
        tables: tuple[object, ...],
        graphs: Graphs | None,
    ) -> None:
        self.ledger, self._backend, self._device = ledger, backend, device
        self._weights, self._pages, self._tables, self._graphs = weights, pages, tables, graphs
        self.start()

    def start(self, *, forget_peak: bool = False) -> None:
        """Measures the workspace from now on. forget_peak: of the whole process, which others may be looking at."""
        if forget_peak:
            self._backend.forget_peak(self._device)
        self._before, self._held = self._backend.usage(self._device), self._held_bytes()

    def measured(self) -> dict[str, Measured]:
        """Of each part of the ledger. What is committed when touched counts as far as it was."""
        cache = self._backend.committed_bytes(self._pages.storage)
        allocated = self._pages.storage.numel()
        touched = f"touched of {shown_bytes(allocated)}" if cache is not None and cache < allocated else ""
        return {
            "weights": self._found(self._backend.committed_bytes(self._weights.storage)),
            "KV cache": self._found(cache, touched),
            "requests": Measured(sum(num_bytes for table in self._tables for num_bytes in _sizes(vars(table)))),
            "workspace": self._workspace(),
            "graphs": self._graph_bytes(),
        }

    def lines(self) -> list[str]:
        """Predicted and measured, a line each."""
        predicted, measured = self.ledger.predicted, self.measured()
        rows = [(name, shown_bytes(size), *_shown(measured[name])) for name, size in predicted.items()]
        return [f"{name:<10} {size:>12} predicted, {found} {note}".rstrip() for name, size, found, note in rows]

    def _found(self, num_bytes: int | None, note: str = "") -> Measured:
        return Measured(num_bytes, note or ("" if num_bytes is not None else "this system does not say"))

    def _held_bytes(self) -> int:
        """What of the parts that grow while the engine runs takes memory now."""
        graphs = self._graph_bytes().num_bytes or 0
        return graphs + sum(self._backend.committed_bytes(each.storage) or 0 for each in (self._weights, self._pages))

    def _workspace(self) -> Measured:
        """What the process had in use at its peak beyond the start, less what the other parts grew by."""
        before, now = self._before, self._backend.usage(self._device)
        if before is None or now is None:
            return Measured(None, f"backend {self._backend.name} does not measure it")
        if now.peak_bytes <= before.peak_bytes and before.peak_bytes > before.now_bytes:
            return Measured(None, "not told from the peak before: the weights were loaded at it")
        return Measured(max(now.peak_bytes - before.now_bytes - (self._held_bytes() - self._held), 0))

    def _graph_bytes(self) -> Measured:
        if self._graphs is None:
            return Measured(0)
        prompts = self._graphs.prompts
        if self._graphs.refusal is not None and not (prompts and prompts.replays):
            return Measured(0, self._graphs.refusal)
        recorded = [f"{self._graphs.num_captured} of {len(self._graphs.sizes)} sizes recorded so far"]
        if prompts:
            recorded.append(f"{len(prompts.replays)} for prompts")
        return self._found(self._graphs.num_bytes, "; ".join([*recorded, *self._graphs.refusals]))


def _sizes(value: Any) -> Iterator[int]:
    """Bytes of every tensor and array in a value."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        yield value.nbytes
    elif isinstance(value, dict):
        for each in value.values():
            yield from _sizes(each)


def _shown(measured: Measured) -> tuple[str, str]:
    if measured.num_bytes is None:
        return "not measured:", measured.note
    return f"{shown_bytes(measured.num_bytes)} measured", f"({measured.note})" if measured.note else ""


def run_largest(engine: Engine, max_num_seqs: int, max_num_batched_tokens: int) -> None:
    """Steps of the size for which the workspace is predicted: a prompt of a step's tokens, or several that make one,
    then tokens of all requests at once, drawn in every way that there is."""
    limits = engine.limits
    params = SamplingParams(
        max_tokens=_DRAWS, ignore_eos=True, temperature=0.8, top_p=0.9, top_k=50, min_p=0.001, repetition_penalty=1.1,
        allowed_token_ids=list(range(min(limits.vocabulary_size, 1000))), logprobs=1,
    )  # fmt: skip
    longest = max(min(limits.max_model_len, limits.kv_cache_tokens) - _DRAWS, 1)
    left = max_num_batched_tokens
    for number in range(max_num_seqs):
        length = min(longest, max(left, _PROMPT))
        left -= length
        # Of another salt each, so that none finds the prefix of another.
        prompt = np.zeros(length, dtype=np.int64)
        engine.submit(
            Submission(number=number, prompt_ids=prompt, params=params, salt=f"{engine.counters().steps} {number}")
        )
    while engine.has_work:
        engine.step()


def run_and_measure(engine: Engine, holdings: Holdings) -> None:
    """Runs the largest steps, so that `measured` tells the workspace. A small one comes first: what it loads of torch
    and of the interpreter is not the engine's."""
    needs = holdings.ledger.needs
    run_largest(engine, 1, _PROMPT)
    holdings.start(forget_peak=True)
    run_largest(engine, needs.max_num_seqs, needs.max_num_batched_tokens)
