"""The device's part of a step, on a model of a known shape with random weights that are drawn on the device itself.

decode   a captured step at each batch and context, replayed: milliseconds, and its share of what the bytes and
         operations of the sites allow at this run's own R and C. Over contexts at batch 1 a line is fitted,
         t = a + b · context: its overhead is a less the time that the weights take at R.
prefill  one request's prompt in one eager step.

R, bytes read a second, and C, the rate of torch's products in the model's dtype, are measured in the same run. Pages
are filled with normal values, requests have pages of their own in no order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ..ops.bound import BoundOps
from ..ops.manifest import manifest
from ..ops.step_cost import step_cost
from ..ops.types import ONE_DEVICE, Cost, Weight, dtype_name
from ..runtime.arena import Arena
from ..runtime.build import Built, build_measured
from ..runtime.execute.graphs import Graphs
from ..runtime.execute.worker import Worker
from ..runtime.model import Model, Parameter
from ..runtime.options import Options
from ..runtime.start import Decisions, decide
from ..runtime.step import Step
from .ceilings import best_product
from .results import conditions
from .shapes import Shape, write_config
from .stopwatch import Stopwatch

_DEVIATION = 0.02
_MIN_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """contexts: tokens that a decode step's requests have; batches: requests of a step; prompts: tokens of a prompt."""

    shape: Shape
    device: str | None = None
    determinism: str = "run"
    contexts: tuple[int, ...] = (256, 1024, 8192, 32768)
    batches: tuple[int, ...] = (1, 8, 32)
    prompts: tuple[int, ...] = (8192,)
    max_tokens: int = 512 * 1024
    """Cases that hold more tokens of context are left out."""
    kernels: tuple[tuple[str, str], ...] = ()

    @property
    def longest(self) -> int:
        return max(*self.contexts, *self.prompts, 1)

    def cases(self) -> list[tuple[int, int]]:
        return [(batch, context) for batch in self.batches for context in self.contexts
                if batch * context <= self.max_tokens]  # fmt: skip


def measure(plan: Plan) -> dict[str, Any]:
    """Everything of the plan as plain values. Errors: those of `runtime.start.decide`."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(plan.shape, Path(folder))
        decided = decide(_options(plan, folder))
    bench = StepBench(decided)
    limits = bench.limits()
    decode = [bench.decode(batch, context, limits) for batch, context in plan.cases()]
    prefill = [bench.prefill(count, limits) for count in plan.prompts]
    fit = fitted(decode, bench.weight_s(limits))
    return {
        **conditions(),
        **limits,
        "manifest": manifest(decided.binding),
        "decode": decode,
        "prefill": prefill,
        "fit": fit,
    }


def fitted(decode: Sequence[dict[str, Any]], weight_s: float) -> dict[str, float] | None:
    """The line through the steps of one request: ms, ms a token of context, and what is over the weights' time."""
    alone = [each for each in decode if each["batch"] == 1]
    if len(alone) < 2:
        return None
    slope, constant = np.polyfit([each["context"] for each in alone], [each["ms"] for each in alone], 1)
    return {"constant_ms": float(constant), "slope_ms": float(slope), "overhead_ms": float(constant) - 1e3 * weight_s}


def _options(plan: Plan, folder: str) -> Options:
    tokens = max([batch * (context + 128) for batch, context in plan.cases()] + [plan.longest + 128])
    return Options(
        model=folder, device=plan.device, dtype="bfloat16", max_model_len=plan.longest + 1,
        max_num_seqs=max(plan.batches), kv_cache_tokens=tokens, graphs=False, determinism=plan.determinism,
        max_num_batched_tokens=max(*plan.prompts, 1), progress=False, kernels=dict(plan.kernels),
    )  # fmt: skip


class StepBench:
    """Steps of a model whose weights are drawn at random on its device."""

    def __init__(self, decided: Decisions) -> None:
        self.decided, self._backend, self._device = decided, decided.backend, decided.device
        built: Built = build_measured(decided, load=self._drawn)
        assert isinstance(built.engine.worker, Worker)
        self._worker = built.engine.worker
        self._sites = [bound.site for bound in decided.binding.sites]
        for layers in self._worker.state.values():
            for pages in layers:
                for plane in pages.planes.values():
                    plane.normal_()

    def _drawn(self, arena: Arena) -> Model:
        """The model with weights from a normal distribution; norms are ones."""
        layouts = self.decided.binding.weight_layouts
        weights: dict[str, Weight] = {}
        for parameter in self.decided.parameters:
            weights[parameter.name] = _drawn_weight(parameter, layouts, self.decided.dtype, arena)
        return self.decided.model_class(self.decided.config, weights, self._device)

    def limits(self) -> dict[str, Any]:
        """R and C, and where they were measured."""
        watch = Stopwatch(self._backend, self._device, _MIN_S)
        operations, _, seconds = best_product(watch, self.decided.dtype)
        return {
            "device": self.decided.report.name,
            "profile": self.decided.profile.name,
            "read_gb_per_s": self._backend.read_bandwidth_gb_per_s(self._device),
            "matrix_tflops": operations / seconds / 1e12,
            "dtype": dtype_name(self.decided.dtype),
        }

    def weight_s(self, limits: dict[str, Any]) -> float:
        """What a step without context takes at R."""
        return step_cost(self._sites, [(0, 1)]).num_bytes / (limits["read_gb_per_s"] * 1e9)

    def decode(self, batch: int, context: int, limits: dict[str, Any]) -> dict[str, Any]:
        seconds = self.decode_s(batch, context, self._worker.ops)
        cost = step_cost(self._sites, [(context - 1, 1)] * batch)
        return {"batch": batch, "context": context, "ms": 1e3 * seconds, "tokens_per_s": batch / seconds,
                **_shares(cost, seconds, limits)}  # fmt: skip

    def decode_s(self, batch: int, context: int, ops: BoundOps, least_s: float = _MIN_S) -> float:
        """Seconds of a captured step of so many requests with so much context, by these ops."""
        slots, first = np.arange(batch), np.full(batch, context - 1)
        self._give_pages(batch, context)
        forward = partial(self._forward, ops=ops)
        graphs = Graphs((batch,), self._backend, self._worker.slots, self.decided.page_sizes, forward)
        assert graphs.run(slots, first) is not None, graphs.refusal
        return self._seconds(lambda: graphs.run(slots, first), least_s)

    def prefill(self, count: int, limits: dict[str, Any]) -> dict[str, Any]:
        self._give_pages(1, count)
        step = Step(spans=np.array([[0, 0, count]]), logits=np.array([[0, count - 1]]))
        batch = self._worker.batch(step)
        seconds = self._seconds(lambda: self._forward(batch, ops=self._worker.ops))
        cost = step_cost(self._sites, [(0, count)])
        return {"prompt": count, "ms": 1e3 * seconds, "tokens_per_s": count / seconds,
                **_shares(cost, seconds, limits)}  # fmt: skip

    @torch.inference_mode()
    def _forward(self, batch: Any, *, ops: BoundOps) -> torch.Tensor:
        return self._worker.model.forward(batch, None, self._worker.state, ops, ONE_DEVICE)

    def _give_pages(self, batch: int, context: int) -> None:
        generator = np.random.default_rng(0)
        for group, size in self.decided.page_sizes.items():
            count = -(-context // size)
            pages = generator.permutation(self.decided.num_pages[group])[: batch * count].reshape(batch, count)
            self._worker.slots.page_tables[group][:batch, :count] = torch.from_numpy(pages).to(self._device).int()

    @torch.inference_mode()
    def _seconds(self, call: Any, least_s: float = _MIN_S) -> float:
        """The median of calls in a row, each waited for, so many seconds of them."""
        for _ in range(3):
            call()
        self._backend.synchronize(self._device)
        taken: list[float] = []
        while len(taken) < 5 or (sum(taken) < least_s and len(taken) < 100):
            begun = perf_counter()
            call()
            self._backend.synchronize(self._device)
            taken.append(perf_counter() - begun)
        return median(taken)


def _drawn_weight(parameter: Parameter, layouts: Any, dtype: torch.dtype, arena: Arena) -> Weight:
    from ..ops.layouts import ROW_MAJOR

    layout = layouts.get(parameter.role, ROW_MAJOR) if len(parameter.shape) == 2 else ROW_MAJOR
    values = arena.take(layout.storage_shape(parameter.shape, dtype), dtype)
    values.fill_(1.0) if len(parameter.shape) == 1 else values.normal_(0.0, _DEVIATION)
    return Weight(parameter.role, parameter.shape, dtype, layout, {"values": values})


def _shares(cost: Cost, seconds: float, limits: dict[str, Any]) -> dict[str, float]:
    """Of the time that bytes at R, operations at C, and the longer of the two would take."""
    reading = cost.num_bytes / (limits["read_gb_per_s"] * 1e9)
    multiplying = cost.num_operations / (limits["matrix_tflops"] * 1e12)
    return {"of_r": reading / seconds, "of_c": multiplying / seconds, "of_roof": max(reading, multiplying) / seconds}
