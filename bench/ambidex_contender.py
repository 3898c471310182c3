"""Ambidex as a contender: its engine, stepped by hand so that every step is timed."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from ..ops.types import dtype_name
from ..planning.step_cost import step_cost
from ..runtime.llm import LLM
from ..runtime.request import SamplingParams
from ..runtime.start import resolve_model


class AmbidexContender:
    """options: the arguments of `LLM`, and `roofline_steps`: name -> spans whose cost `loaded` is to tell."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        arguments = dict(options)
        self._steps: Mapping[str, list[tuple[int, int]]] = arguments.pop("roofline_steps")
        self._folder = resolve_model(arguments.pop("model"))
        begun = perf_counter()
        self._llm = LLM(str(self._folder), progress=False, **arguments)
        self._seconds_to_load = perf_counter() - begun
        self._num_runs = 0

    def loaded(self) -> dict[str, Any]:
        decided = self._llm.decided
        sites = [bound.site for bound in decided.binding.sites]
        spans = {name: [(first, count) for first, count in step] for name, step in self._steps.items()}
        costs = {name: step_cost(sites, step) for name, step in spans.items()}
        return {
            "folder": str(self._folder),
            "vocabulary_size": decided.config.vocabulary_size,
            "dtype": dtype_name(decided.dtype),
            "device": decided.report.name,
            "profile": decided.profile.name,
            "fingerprint": self._llm.fingerprint,
            "reference_sites": self._llm.reference_sites,
            "load_s": self._seconds_to_load,
            "weight_bytes": decided.weight_bytes,
            "kv_cache_bytes": decided.kv_cache_bytes,
            "kv_cache_tokens": decided.kv_cache_tokens,
            "costs": {name: [cost.num_bytes, cost.num_operations] for name, cost in costs.items()},
        }

    def generate(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """One batch, all prompts added before the first step; steps that give every prompt its token are timed."""
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        engine = self._llm.engine
        self._num_runs += 1
        begun = perf_counter()
        for index, ids in enumerate(prompts):
            engine.add(f"bench-{self._num_runs}-{index}", ids, params)
        step_s: list[float] = []
        first_s = 0.0
        while engine.has_work:
            before = perf_counter()
            outputs = engine.step()
            after = perf_counter()
            if first_s:
                step_s.append(after - before)
            elif len(outputs) == len(prompts):
                first_s = after - begun
        return {"total_s": perf_counter() - begun, "first_s": first_s, "step_s": step_s}

    def bandwidth_gb_per_s(self) -> float:
        return self._llm.decided.backend.read_bandwidth_gb_per_s(self._llm.decided.device)
