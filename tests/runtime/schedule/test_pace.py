"""Pace: predicted times of steps, and the chunks that fit into a budget."""

from __future__ import annotations

import numpy as np
import pytest
from ambidex.runtime.schedule.pace import MIN_CHUNK, Load, Pace
from hypothesis import given
from hypothesis import strategies as st

# Two sites: a product (weights, rows) and an attention (keys read, pairs).
BYTES = np.array([[1e6, 100.0, 0, 0, 0, 0], [0, 10.0, 0, 50.0, 0, 0]])
OPERATIONS = np.array([[0, 2e6, 0, 0, 0, 0], [0, 0, 0, 0, 400.0, 0]])


def pace(budget_s: float = 1e-3, *, adapts: bool = True) -> Pace:
    return Pace(BYTES, OPERATIONS, bytes_per_s=1e10, operations_per_s=1e12, budget_s=budget_s, adapts=adapts)


def test_a_load_grows_by_chunks_as_counting_says() -> None:
    load = Load(3, 3, 40, 40, 3).and_chunk(5, 4)
    assert load == Load(rows=7, requests=4, context=49, pairs=40 + (6 + 7 + 8 + 9), logits=4)
    assert load.vector().tolist() == [1, 7, 4, 49, 70, 4]


def test_seconds_are_the_slower_of_moving_and_computing_site_by_site() -> None:
    first = pace()
    ratio = first.seconds(Load()) / 1e-4  # nothing but the weights to be read
    moved = (1e6 + 100 + 10 + 50 * 10_000) / 1e10  # one row far behind: everything is bytes
    assert first.seconds(Load(1, 1, 10_000, 10_000, 1)) == pytest.approx(ratio * moved)
    computed = 2e6 * 5000 / 1e12 + 400 * 5000 * 2500 / 1e12  # a long prompt: both sites compute
    assert first.seconds(Load(5000, 1, 5000, 5000 * 2500, 1)) == pytest.approx(ratio * computed)


LOADS = st.builds(
    Load, rows=st.integers(0, 64), requests=st.integers(0, 64), context=st.integers(0, 9999),
    pairs=st.integers(0, 99999), logits=st.integers(0, 64),
)  # fmt: skip


@given(LOADS, st.integers(0, 4000), st.integers(1, 4000), st.floats(1e-6, 1e-1))
def test_a_chunk_is_the_longest_that_fits_and_never_less_than_the_least(
    load: Load, first: int, most: int, budget_s: float
) -> None:
    paced = pace(budget_s)
    count = paced.chunk(load, first, most)
    assert min(most, MIN_CHUNK) <= count <= most
    assert count == most or count % MIN_CHUNK == 0
    if count > MIN_CHUNK:
        assert paced.seconds(load.and_chunk(first, count)) <= budget_s
    if count < most:
        longer = min(count + MIN_CHUNK, most)
        assert paced.seconds(load.and_chunk(first, longer)) > budget_s


@given(LOADS, st.integers(0, 4000), st.integers(1, 4000), st.floats(1e-6, 1e-1), st.floats(1.0, 3.0))
def test_more_time_or_less_company_never_shortens_a_chunk(
    load: Load, first: int, most: int, budget_s: float, more: float
) -> None:
    count = pace(budget_s).chunk(load, first, most)
    assert pace(budget_s * more).chunk(load, first, most) >= count
    assert pace(budget_s).chunk(Load(), first, most) >= count
    assert pace(budget_s).chunk(load, first // 2, most) >= count


def test_predictions_follow_what_steps_take_where_that_is_wanted() -> None:
    load, adapting, fixed = Load(100, 1, 100, 5050, 1), pace(), pace(adapts=False)
    before = adapting.seconds(load)
    for _ in range(20):
        adapting.observe(adapting.nominal_s(load), 7 * before)
        fixed.observe(fixed.nominal_s(load), 7 * before)
    assert adapting.seconds(load) == pytest.approx(7 * before, rel=1e-3)
    assert fixed.seconds(load) == before


@given(st.lists(st.sampled_from([Load(8, 8, 800, 800, 8), Load(100, 1, 100, 5050, 1)]), min_size=12, max_size=30))
def test_what_is_learned_late_does_not_swing(loads: list[Load]) -> None:
    """With overlap a step is planned before the one before it has been seen: the ratio still goes straight to a device
    that is steadily three times slower, past nothing."""
    paced, late, ratios = pace(), None, []
    for load in loads:
        planned = paced.nominal_s(load)
        if late is not None:
            paced.observe(late, 3 * late)
        late = planned
        ratios.append(paced.seconds(load) / planned)
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(3, rel=1e-2)


@pytest.mark.parametrize("seen", [(0.0, 1.0), (1.0, 0.0), (1.0, -1.0)])
def test_a_step_without_a_prediction_or_a_duration_teaches_nothing(seen: tuple[float, float]) -> None:
    paced = pace()
    before = paced.seconds(Load(5, 1, 5, 15, 1))
    paced.observe(*seen)
    assert paced.seconds(Load(5, 1, 5, 15, 1)) == before
