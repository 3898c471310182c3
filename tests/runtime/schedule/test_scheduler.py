"""The scheduler under random arrivals, lengths and aborts: pages and slots are conserved, every request ends once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.schedule.pages import PagePool
from ambidex.runtime.schedule.scheduler import Planned, Scheduled, Scheduler
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

NUM_SLOTS = 3
PAGES = {"kv": 12, "kv_window": 20}
PAGE_SIZES = {"kv": 4, "kv_window": 2}


def request(name: str, prompt: int, outputs: int) -> Scheduled:
    return Scheduled(name, list(range(prompt)), prompt, SamplingParams(max_tokens=outputs), 0, prompt + outputs)


def scheduler(token_budget: int = 8) -> Scheduler:
    pools = {group: PagePool(count) for group, count in PAGES.items()}
    return Scheduler(pools, PAGE_SIZES, NUM_SLOTS, token_budget)


def commit(owner: Scheduler, planned: Planned) -> list[Scheduled]:
    """Gives every sampled row a token, as the engine does; returns the requests that ended."""
    ended: list[Scheduled] = []
    for each in planned.sampled:
        each.tokens.append(7)
        if len(each.tokens) >= each.max_length:
            owner.finish(each)
            ended.append(each)
    return ended


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(token_budget=st.integers(1, 9))
    def start(self, token_budget: int) -> None:
        self.scheduler = scheduler(token_budget)
        self.live: list[Scheduled] = []
        self.ended: list[str] = []
        self.table: dict[str, dict[tuple[int, int], int]] = {group: {} for group in PAGES}
        self.num_added = 0

    @rule(prompt=st.integers(1, 20), outputs=st.integers(1, 12))
    def add(self, prompt: int, outputs: int) -> None:
        each = request(f"r{self.num_added}", prompt, outputs)
        self.num_added += 1
        self.live.append(each)
        self.scheduler.add(each)

    @rule()
    def step(self) -> None:
        planned = self.scheduler.schedule()
        self.check_step(planned)
        for each in commit(self.scheduler, planned):
            self.live.remove(each)
            self.ended.append(each.request_id)

    @rule(pick=st.integers(0, 50))
    def abort(self, pick: int) -> None:
        if self.live:
            each = self.live.pop(pick % len(self.live))
            self.scheduler.finish(each)
            self.ended.append(each.request_id)

    def check_step(self, planned: Planned) -> None:
        step = planned.step
        assert step.num_tokens <= self.scheduler.token_budget
        slots = step.spans[:, 0].tolist()
        assert len(set(slots)) == len(slots), "a request has one span a step"
        for group, rows in step.pages.items():
            self.table[group].update({(slot, index): page for slot, index, page in rows.tolist()})
        for slot, first, count in step.spans.tolist():
            for group, size in PAGE_SIZES.items():
                pages = next(each.pages[group] for each in self.scheduler.running if each.slot == slot)
                used = range(first // size, -(-(first + count) // size))
                assert [self.table[group][slot, index] for index in used] == [pages[index] for index in used]
        assert len(planned.sampled) == len(step.logits)

    @invariant()
    def pages_and_slots_are_conserved(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for group, count in PAGES.items():
            held = [page for each in self.scheduler.running for page in each.pages[group]]
            assert len(set(held)) == len(held), "a page belongs to one request"
            assert len(held) + self.scheduler.pools[group].num_free == count
        slots = [each.slot for each in self.scheduler.running]
        assert len(set(slots)) == len(slots)
        assert len(set(slots)) <= NUM_SLOTS
        assert len(self.ended) == len(set(self.ended)), "a request ends once"

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        servable = all(self.fits(each) for each in self.live)
        for _ in range(2_000):
            if not self.scheduler.has_work or not servable:
                break
            self.step()
        assert not (servable and self.live), "every admitted request ends"

    def fits(self, each: Scheduled) -> bool:
        return all(self.scheduler.pages_needed(group, each.max_length) <= count for group, count in PAGES.items())


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase


def run(owner: Scheduler, requests: Sequence[Scheduled], num_steps: int) -> list[list[tuple[int, int, int]]]:
    for each in requests:
        owner.add(each)
    spans: list[list[tuple[int, int, int]]] = []
    for _ in range(num_steps):
        planned = owner.schedule()
        spans.append([(slot, first, count) for slot, first, count in planned.step.spans.tolist()])
        commit(owner, planned)
    return spans


def test_a_long_prompt_comes_in_chunks_of_the_budget() -> None:
    spans = run(scheduler(token_budget=8), [request("long", 20, 2)], 4)
    assert spans == [[(0, 0, 8)], [(0, 8, 8)], [(0, 16, 4)], [(0, 20, 1)]]


def test_decoding_goes_before_a_chunk_of_prefill() -> None:
    owner = scheduler(token_budget=4)
    run(owner, [request("long", 12, 2)], 1)
    spans = run(owner, [], 2)
    assert spans == [[(0, 4, 4)], [(0, 8, 4)]]
    owner = scheduler(token_budget=6)
    spans = run(owner, [request("short", 2, 4), request("long", 15, 2)], 3)
    assert spans == [[(0, 0, 2), (1, 0, 4)], [(0, 2, 1), (1, 4, 5)], [(0, 3, 1), (1, 9, 5)]]


def test_requests_are_admitted_in_order_of_arrival() -> None:
    owner = scheduler()
    owner.add(request("large", 12, 12))
    owner.add(request("too large beside it", 16, 16))
    owner.add(request("small", 1, 1))
    planned = owner.schedule()
    assert [each.request_id for each in owner.running] == ["large"]
    assert [each.request_id for each in owner.waiting] == ["too large beside it", "small"]
    assert planned.step.num_tokens == 8


def test_a_pool_refuses_more_than_it_has_and_takes_nothing() -> None:
    pool = PagePool(3)
    held = pool.take(2)
    with pytest.raises(MemoryError, match="2 pages wanted, 1 of 3 free"):
        pool.take(2)
    assert pool.num_free == 1
    pool.give_back(held)
    assert pool.num_free == 3
