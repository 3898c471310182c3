"""A long prompt beside running requests: chunks keep to the budget, and the whole one does not."""

from __future__ import annotations

from ambidex.bench.interference import Plan, measure


def test_chunks_shorten_the_longest_gap() -> None:
    plan = Plan(input_len=900, num_requests=2, decode_input_len=8, step_budget_ms=5.0)
    result = measure(plan)
    chunked, whole = result["runs"]
    assert chunked["step_budget_ms"] == 5.0
    assert whole["step_budget_ms"] is None
    assert chunked["num_gaps"] > whole["num_gaps"]
    assert max(whole["gaps_ms"]) > max(sorted(chunked["gaps_ms"])[: -len(chunked["gaps_ms"]) // 4])
    assert result["p99_over_budget"] == chunked["p99_ms"] / 5.0
