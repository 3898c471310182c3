"""What chunks of prompts follow from: at determinism `run` from nothing that another start would find otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ambidex.backends.cpu import CpuBackend
from ambidex.hwprofiles.reader import load
from ambidex.ops.types import Determinism
from ambidex.runtime.build import build
from ambidex.runtime.options import Options
from ambidex.runtime.rates import rates
from ambidex.runtime.schedule.pace import Load
from ambidex.runtime.start import decide


def never() -> float:
    raise AssertionError("measured")


def test_at_run_a_profiles_own_numbers_are_taken() -> None:
    found = rates(load("nvidia-h200-sxm"), "bfloat16", Determinism.RUN, never)
    assert found.bytes_per_s == 4300e9
    assert found.operations_per_s == pytest.approx(989.5e12, rel=1e-2)


def test_at_run_a_clock_that_was_read_does_not_count_and_the_cores_do() -> None:
    one, two, more = (load("cpu-avx512").on_device(units=units, clock_ghz=clock) for units, clock in
                      ((2, 2.1), (2, 3.7), (4, 2.1)))  # fmt: skip
    found = [rates(each, "bfloat16", Determinism.RUN, never) for each in (one, two, more)]
    assert found[0] == found[1]
    assert found[2] == (2 * found[0].bytes_per_s, 2 * found[0].operations_per_s)


@pytest.mark.parametrize("level", [Determinism.NONE, Determinism.BATCH])
def test_at_the_other_levels_the_device_is_measured(level: Determinism) -> None:
    profile = load("cpu-avx512").on_device(units=2, clock_ghz=3.0)
    found = rates(profile, "float32", level, lambda: 12.5)
    assert found.bytes_per_s == 12.5e9
    assert found.operations_per_s == pytest.approx(2 * 3.0e9 * 32)


class _Moody(CpuBackend):
    """Another bandwidth and another clock at each start."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def read_bandwidth_gb_per_s(self, device: Any) -> float:
        return 10 * self._factor

    def clock_ghz(self) -> float:
        return 2 * self._factor


@pytest.mark.parametrize(("level", "same"), [("run", True), ("batch", False)])
def test_two_starts_at_run_cut_a_prompt_alike(level: str, same: bool) -> None:
    chunks = []
    for factor in (1.0, 40.0):
        backend = _Moody(factor)
        options = Options(determinism=level, step_budget_ms=0.5, max_model_len=512, device="cpu", progress=False)
        decided = decide(options)
        profile = backend.profile(decided.report).profile
        assert profile is not None
        pace = build(replace(decided, backend=backend, profile=profile)).scheduler.pace
        assert pace is not None
        chunks.append([pace.chunk(Load(4, 4, 100, 100, 4), first, 500) for first in range(0, 4000, 400)])
    assert (chunks[0] == chunks[1]) == same
