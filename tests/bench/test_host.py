"""What the host's part of a step costs: that the real engine is measured, and that the bound of the plan holds."""

from __future__ import annotations

import pytest
from ambidex.bench import host


def test_every_request_gets_a_token_in_every_measured_step() -> None:
    engine = host._engine(5, 20, overlap=False)
    before = engine.counters()
    for _ in range(10):
        assert len(engine.step().numbers) == 5
    after = engine.counters()
    assert (after.steps - before.steps, after.sampled_tokens - before.sampled_tokens) == (10, 50)
    assert after.preemptions == 0


@pytest.mark.parametrize("overlap", [False, True])
def test_the_cost_grows_far_slower_than_the_batch(overlap: bool) -> None:
    one, many = host.growth([1, 256], 60, overlap=overlap)["measurements"]
    assert (one["num_requests"], many["num_requests"], one["overlap"]) == (1, 256, overlap)
    # A loop over the requests would cost a hundred times as much; columns cost a few times as much, on any machine.
    assert many["median_us_per_step"] < 20 * one["median_us_per_step"]
