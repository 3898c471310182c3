"""Ambidex as a contender: `LLM.generate`, and a clock on the steps of its engine."""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch

from ..ops.step_cost import step_cost
from ..ops.types import dtype_name
from ..runtime.llm import LLM
from ..runtime.request import RequestOutput, SamplingParams
from ..runtime.start import Decisions, resolve_model
from .contender import run, serve


class _StepClock:
    """Stands before an engine's `step` and notes when each one ended, on the device's clock."""

    def __init__(self, llm: LLM) -> None:
        self._clock, self._step = llm.decided.backend.clock, llm.engine.step
        self.ends: list[float] = []
        llm.engine.step = self  # type: ignore[method-assign]

    def __call__(self) -> Any:
        done = self._step()
        self.ends.append(self._clock())
        return done

    def between(self, begin: float, end: float) -> list[float]:
        """Seconds of the steps behind the one that brought what is dated `begin`, up to that of `end`."""
        first, last = bisect_left(self.ends, begin), bisect_left(self.ends, end)
        return [after - before for before, after in pairwise(self.ends[first : last + 1])]


class AmbidexContender:
    """options: the arguments of `LLM`; `roofline_steps`: name -> spans whose cost `loaded` is to tell; `threads`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        arguments = dict(options)
        if threads := arguments.pop("threads", None):
            torch.set_num_threads(threads)
        self._steps: Mapping[str, list[tuple[int, int]]] = arguments.pop("roofline_steps")
        self._folder = resolve_model(arguments.pop("model"))
        begun = perf_counter()
        self._llm = LLM(str(self._folder), progress=False, **arguments)
        self._seconds_to_load = perf_counter() - begun
        self._clock = _StepClock(self._llm)

    def loaded(self) -> dict[str, Any]:
        decided = self._llm.decided
        sites = [bound.site for bound in decided.binding.sites]
        spans = {name: [(first, count) for first, count in step] for name, step in self._steps.items()}
        costs = {name: step_cost(sites, step) for name, step in spans.items()}
        return {
            "folder": str(self._folder),
            "version": f"torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "vocabulary_size": decided.config.vocabulary_size,
            "model_type": decided.config.model_type,
            "num_parameters": sum(torch.Size(each.shape).numel() for each in decided.parameters),
            "dtype": dtype_name(decided.dtype),
            "place": f"{decided.backend.name}:{decided.report.index}",
            "device": str(decided.device),
            "device_name": decided.report.name,
            "profile": decided.profile.name,
            "fingerprint": self._llm.fingerprint,
            "reference_sites": self._llm.reference_sites,
            "manifest": self._llm.manifest(),
            "load_s": self._seconds_to_load,
            "weight_bytes": decided.weight_bytes,
            "kv_cache_bytes": decided.kv_cache_bytes,
            "kv_cache_tokens": decided.kv_cache_tokens,
            "costs": {name: [cost.num_bytes, cost.num_operations] for name, cost in costs.items()},
            "products": _products(decided),
            "head": [decided.config.vocabulary_size, decided.config.hidden_size],
        }

    def generate(self, prompts: list[list[int]], output_lens: list[int]) -> dict[str, Any]:
        """One batch, all prompts there before the first step; steps that give every prompt its token are timed."""
        self._clock.ends.clear()
        params = [
            SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in output_lens
        ]
        begun = perf_counter()
        outputs = self._llm.generate(prompts, params)
        total_s = perf_counter() - begun
        firsts, arrivals, ends = zip(*map(_times, outputs), strict=True)
        return {
            "total_s": total_s,
            "first_s": max(firsts) - min(arrivals),
            "step_s": self._clock.between(max(firsts), min(ends)),
            "ids": [output.outputs[0].token_ids[0] for output in outputs],
            "cached_tokens": sum(output.num_cached_tokens for output in outputs),
        }


def _times(output: RequestOutput) -> tuple[float, float, float]:
    """When the first token came, the request arrived, and it ended."""
    metrics = output.metrics
    assert metrics.first_token_time is not None
    assert metrics.finished_time is not None
    return metrics.first_token_time, metrics.arrival_time, metrics.finished_time


def _products(decided: Decisions) -> list[list[int]]:
    """[outputs, inputs, how many] of the products that every token of a prompt passes."""
    shapes = [each.shape for each in decided.parameters if each.role.startswith("layers.") and len(each.shape) == 2]
    return [[*shape, count] for shape, count in Counter(shapes).items()]


if __name__ == "__main__":
    run(lambda answers: serve(lambda: AmbidexContender(json.loads(sys.argv[1])), "ambidex", sys.stdin, answers))
