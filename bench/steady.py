"""Whole steps of the real engine, whose requests stand at a context that nobody has computed.

Engine, scheduler, worker and sampler run as for a user; only what leads up to the context is left out: a step that is
not the wanted one changes the slot table and computes nothing, so that 32 requests of 4,096 tokens take no prompt of
131,072. Pages hold normal values. Timed is `Engine.step`; prompts are computed from their first token on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count as counting
from time import perf_counter

import numpy as np
import torch

from ..ops.layouts import ROW_MAJOR
from ..ops.types import Layout, Weight
from ..runtime.arena import Arena
from ..runtime.build import Built, build_measured
from ..runtime.execute.sampled import Sampled
from ..runtime.execute.worker import Worker
from ..runtime.messages import Submission
from ..runtime.model import Model, Parameter
from ..runtime.request import SamplingParams
from ..runtime.start import Decisions
from ..runtime.step import Step

WARM_UP = 2
_MAX_STEPS = 40
SPARE_TOKENS = WARM_UP + _MAX_STEPS + 4
"""Of context that a measured request needs beyond the one that was asked for."""
_DEVIATION = 0.02
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Taken:
    """Seconds of each measured step, at `context` tokens of each request on average."""

    seconds: tuple[float, ...]
    context: float


class _Skipping:
    """The worker behind steps that are wanted: those of `batch` requests that decode, or all where it is None."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.num_computed = worker, 0
        self.batch: int | None = 0

    def launch(self, step: Step) -> Callable[[], Sampled]:
        if self.batch is None or (step.is_plain_decode and len(step.spans) == self.batch):
            self.num_computed += 1
            return self.worker.launch(step)
        return self._skipped(step)

    @torch.inference_mode()
    def _skipped(self, step: Step) -> Callable[[], Sampled]:
        slots, rows = self.worker.slots, len(step.logits)
        slots.apply(step)
        if rows:
            taken = slots.to_device(step.spans[step.logits[:, 0], 0])
            slots.append(taken, torch.zeros(rows, dtype=torch.int64, device=slots.device))
        none = np.empty((rows, 0))
        sampled = Sampled(
            np.zeros(rows, np.int64), np.zeros(rows, np.float32), none.astype(np.int64), none.astype(np.float32)
        )
        return lambda: sampled


class Steady:
    """A built engine, whose worker computes what is wanted of it. It must keep no prefixes: all prompts are alike."""

    def __init__(self, built: Built) -> None:
        assert isinstance(built.engine.worker, Worker)
        self.built, self.engine, self.worker = built, built.engine, built.engine.worker
        self._skipping, self._numbers = _Skipping(self.worker), counting()
        self.engine.worker = self._skipping
        fill_pages(self.worker)

    def decode(self, batch: int, context: int, budget_s: float = 0.3, min_steps: int = 5) -> Taken:
        """Steps that give each of `batch` requests at `context` tokens its next one."""
        skipping, numbers = self._skipping, self._submit([max(context - WARM_UP, 1)] * batch)
        skipping.batch, skipping.num_computed = batch, 0
        with self._whole_prompts():
            while skipping.num_computed < WARM_UP:
                self.engine.step()
        seconds = list(self._timed_steps(budget_s, min_steps))
        self.engine.abort(numbers)
        self._drain()
        return Taken(tuple(seconds), context + (len(seconds) - 1) / 2)

    def prompt(self, length: int, budget_s: float = 0.3, min_prompts: int = 2) -> Taken:
        """Whole prompts, from their arrival to their first token."""
        self._skipping.batch = None
        seconds: list[float] = []
        while len(seconds) < min_prompts or (sum(seconds) < budget_s and len(seconds) < _MAX_STEPS):
            self._submit([length], max_tokens=1)
            begun = perf_counter()
            self._drain()
            seconds.append(perf_counter() - begun)
        return Taken(tuple(seconds), length)

    @contextmanager
    def computing_all(self) -> Iterator[None]:
        """Inside it the engine leaves out nothing."""
        before, self._skipping.batch = self._skipping.batch, None
        yield
        self._skipping.batch = before

    @contextmanager
    def _whole_prompts(self) -> Iterator[None]:
        """All in one step, since none is computed: no request gets ahead of the others."""
        scheduler = self.engine.scheduler
        before, scheduler.token_budget = scheduler.token_budget, 1 << 40
        yield
        scheduler.token_budget = before

    def _timed_steps(self, budget_s: float, min_steps: int) -> Iterator[float]:
        spent = 0.0
        for number in range(_MAX_STEPS):
            if number >= min_steps and spent >= budget_s:
                return
            begun = perf_counter()
            self.engine.step()
            taken = perf_counter() - begun
            spent += taken
            yield taken

    def _submit(self, lengths: list[int], max_tokens: int = SPARE_TOKENS) -> list[int]:
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0)
        numbers = [next(self._numbers) for _ in lengths]
        for number, length in zip(numbers, lengths, strict=True):
            prompt = np.zeros(length, dtype=np.int64)
            self.engine.submit(Submission(number=number, prompt_ids=prompt, params=params))
        return numbers

    def _drain(self) -> None:
        while self.engine.has_work:
            self.engine.step()


def built_at_random(decided: Decisions) -> Built:
    """An engine of the decided model with weights from a normal distribution; norms are ones."""

    def load(arena: Arena) -> Model:
        layouts = decided.binding.weight_layouts
        weights = {each.name: _drawn(each, layouts, decided.dtype, arena) for each in decided.parameters}
        return decided.model_class(decided.config, weights, decided.device)

    return build_measured(decided, load=load)


def fill_pages(worker: Worker) -> None:
    """Every page of every layer, with normal values."""
    for layers in worker.state.values():
        for pages in layers:
            for plane in pages.planes.values():
                fill(plane, 1.0)


def fill(tensor: torch.Tensor, deviation: float) -> None:
    """With one block of normal values after another: drawing each would take a host a minute."""
    flat = tensor.view(-1)
    block = torch.empty(min(_BLOCK, flat.numel()), dtype=torch.float32, device=flat.device).normal_(0.0, deviation)
    values = block.to(flat.dtype)
    for piece in flat.split(_BLOCK):
        piece.copy_(values[: piece.numel()])


def _drawn(parameter: Parameter, layouts: Mapping[str, Layout], dtype: torch.dtype, arena: Arena) -> Weight:
    layout = layouts.get(parameter.role, ROW_MAJOR) if len(parameter.shape) == 2 else ROW_MAJOR
    values = arena.take(layout.storage_shape(parameter.shape, dtype), dtype)
    values.fill_(1.0) if len(parameter.shape) == 1 else fill(values, _DEVIATION)
    return Weight(parameter.role, parameter.shape, dtype, layout, {"values": values})
