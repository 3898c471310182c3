"""Like steps in one call leave the scheduler as one by one they would."""

from __future__ import annotations

from typing import Any

import numpy as np
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.schedule.pages import PagePool
from ambidex.runtime.schedule.repeat import num_alike, repeat
from ambidex.runtime.schedule.request import Scheduled
from ambidex.runtime.schedule.scheduler import Scheduler
from hypothesis import given, settings
from hypothesis import strategies as st

TOKEN, LONGEST = 5, 64
Arrival = tuple[int, int, int, int, bool]  # step, prompt, answer, beginning, whether the token stops it
arrivals = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(1, 24), st.integers(0, 2), st.booleans()),
    min_size=1, max_size=12,
)  # fmt: skip


def scheduler(num_tokens: int, page_sizes: dict[str, int], budget: int) -> Scheduler:
    pools = {group: PagePool(num_tokens // size) for group, size in page_sizes.items()}
    return Scheduler(pools, page_sizes, num_slots=5, max_length=LONGEST, token_budget=budget)


def request(number: int, arrival: Arrival, min_tokens: int = 0) -> Scheduled:
    step, prompt, answer, beginning, stops = arrival
    tokens = np.full(prompt, 10 + beginning, dtype=np.int32)
    params = SamplingParams(max_tokens=answer, min_tokens=min_tokens)
    return Scheduled(number, tokens, prompt, params, 0, prompt + answer, (float(step), number),
                     stop_ids=(TOKEN,) if stops else ())  # fmt: skip


def one(chosen: Scheduler) -> None:
    planned = chosen.schedule()
    rows = len(planned.slots)
    chosen.commit(planned, np.full(rows, TOKEN), np.zeros(rows, dtype=np.bool_))


def state(chosen: Scheduler) -> Any:
    """All that a decision could depend on; slots that a worker has not been told of are none of it."""
    running, order = chosen.running, chosen.running.order
    columns = [running.ticket, running.number, running.computed, running.known, running.committed]
    pools = [
        (list(pool._free), list(pool._idle), list(pool._holders), list(pool._keys), dict(pool._by_key))
        for pool in chosen.pools.values()
    ]
    tokens = [running.tokens[slot, : running.committed[slot]].tolist() for slot in order.tolist()]
    pages = [running.at(slot).pages for slot in order.tolist()]
    counts = [counts[order].tolist() for counts in running.num_pages.values()]
    return (order.tolist(), [each[order].tolist() for each in columns], tokens, pages, counts, pools, chosen._margin,
            chosen.num_preemptions, len(chosen.waiting), len(chosen))  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(
    arrivals, st.sampled_from([72, 96, 480]), st.sampled_from([{"a": 4}, {"a": 4, "b": 6}, {"a": 16}]),
    st.sampled_from([8, 64]), st.integers(1, 20),
)  # fmt: skip
def test_the_scheduler_is_left_as_by_single_steps(
    due: list[Arrival], num_tokens: int, page_sizes: dict[str, int], budget: int, most: int
) -> None:
    singly, together = (scheduler(num_tokens, page_sizes, budget) for _ in range(2))
    at = 0
    while at <= 60 or singly or together:
        assert at < 5000
        for number, arrival in enumerate(due):
            if arrival[0] == at:
                for each in (singly, together):
                    each.add(request(number, arrival))
        following = min((arrival[0] for arrival in due if arrival[0] > at), default=at + most)
        count = num_alike(together, min(most, following - at), TOKEN)
        if count:
            before = len(together), together.num_preemptions
            repeat(together, count, TOKEN)
            assert before == (len(together), together.num_preemptions)
        else:
            one(together)
        for _ in range(max(count, 1)):
            one(singly)
        assert state(singly) == state(together)
        at += max(count, 1)


def decoding(*, stops: bool = False) -> Scheduler:
    """One request of 7 tokens that has the first of 20."""
    found = scheduler(480, {"a": 4}, 64)
    found.add(request(0, (0, 7, 20, 0, stops), min_tokens=3))
    one(found)
    return found


def test_as_many_as_end_nobody() -> None:
    found = decoding()
    assert num_alike(found, 100, TOKEN) == 18
    assert num_alike(found, 7, TOKEN) == 7
    repeat(found, 18, TOKEN)
    assert num_alike(found, 100, TOKEN) == 0
    one(found)
    assert not len(found)


def test_none_where_a_step_has_to_be_planned() -> None:
    waiting, reading, stopping = decoding(), scheduler(480, {"a": 4}, 4), decoding(stops=True)
    waiting.add(request(1, (1, 5, 5, 1, False)))
    reading.add(request(0, (0, 30, 5, 0, False)))
    one(reading)
    empty = scheduler(480, {"a": 4}, 64)
    assert [num_alike(each, 100, TOKEN) for each in (waiting, reading, stopping, empty)] == [0] * 4
    assert num_alike(stopping, 100, TOKEN + 1) == 18


def test_none_where_pages_run_short() -> None:
    """Two of 7 tokens have two pages of 4 each, and 4 are left, then 3: enough for each of them, or not."""
    found = scheduler(32, {"a": 4}, 64)
    for number in range(2):
        found.add(request(number, (0, 7, 20, number, False)))
    one(found)
    assert [len(found.running), num_alike(found, 100, TOKEN)] == [2, 8]
    repeat(found, 1, TOKEN)
    assert num_alike(found, 100, TOKEN) == 8
    repeat(found, 1, TOKEN)
    assert num_alike(found, 100, TOKEN) == 4
    found.pools["a"].take(1)
    assert num_alike(found, 100, TOKEN) == 0
