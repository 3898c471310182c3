"""The timed step: cases of a plan, the line through contexts, and a run on this machine."""

from __future__ import annotations

import json

import pytest
from ambidex.bench.shapes import SHAPES
from ambidex.bench.step import Plan, fitted, measure
from ambidex.cli import run


def test_cases_that_hold_too_many_tokens_are_left_out() -> None:
    plan = Plan(shape=SHAPES["tiny"], contexts=(10, 100), batches=(1, 8), max_tokens=100)
    assert plan.cases() == [(1, 10), (1, 100), (8, 10)]


def test_the_line_gives_back_what_it_was_made_of() -> None:
    steps = [{"batch": 1, "context": n, "ms": 3.0 + 0.001 * n} for n in (100, 1000, 5000)]
    fit = fitted([*steps, {"batch": 8, "context": 100, "ms": 99.0}], weight_s=0.0025)
    assert fit is not None
    assert (fit["constant_ms"], fit["slope_ms"], fit["overhead_ms"]) == pytest.approx((3.0, 0.001, 0.5))
    assert fitted(steps[:1], 0.0) is None


def test_a_run_measures_every_case_and_says_where() -> None:
    plan = Plan(shape=SHAPES["tiny"], device="cpu", contexts=(32, 64), batches=(1, 2), prompts=(16,))
    found = measure(plan)
    assert [(each["batch"], each["context"]) for each in found["decode"]] == plan.cases()
    assert [each["prompt"] for each in found["prefill"]] == [16]
    assert all(each["ms"] > 0 and each["of_roof"] > 0 for each in (*found["decode"], *found["prefill"]))
    assert found["read_gb_per_s"] > 0
    assert found["manifest"]["profile"] == found["profile"]


def test_the_command_prints_a_line_a_case_and_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--contexts", "32", "--batch-size", "1", "--prompts", "16", "--device", "cpu"]
    assert run(["bench", "step", "--shape", "tiny", *few, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["decode"]) == 1
    assert run(["bench", "step", "--shape", "9b"]) == 2
    assert run(["bench", "step", "--contexts", "0"]) == 2
    assert "there are" in capsys.readouterr().err
