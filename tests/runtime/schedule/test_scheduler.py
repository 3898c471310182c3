"""The rules of scheduling one by one; how they act together is in test_properties.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ambidex.runtime.errors import QueueFull
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.schedule.pace import MIN_CHUNK, Pace
from ambidex.runtime.schedule.pages import PagePool
from ambidex.runtime.schedule.planned import Committed, Planned
from ambidex.runtime.schedule.request import Scheduled
from ambidex.runtime.schedule.scheduler import Scheduler

SIZE = 4


def completion(
    number: int, prompt: int | list[int], outputs: int = 4, *, priority: int = 0, stop_ids: tuple[int, ...] = (),
    leader: Scheduled | None = None, **params: Any,
) -> Scheduled:  # fmt: skip
    """Ranked by number; a prompt that is given as a length shares no page with any other."""
    tokens = [number + 1] * prompt if isinstance(prompt, int) else prompt
    return Scheduled(
        number=number, tokens=np.array(tokens, np.int32), prompt_length=len(tokens),
        params=SamplingParams(**{"max_tokens": outputs, "temperature": 0.0, **params}), seed=0,
        max_length=len(tokens) + outputs, rank=(float(number), number), priority=priority, stop_ids=stop_ids,
        leader=leader,
    )  # fmt: skip


def scheduler(pages: int = 12, *, slots: int = 3, budget: int = 8, **more: Any) -> Scheduler:
    pools = {"kv": PagePool(pages)}
    return Scheduler(pools, {"kv": SIZE}, num_slots=slots, max_length=64, token_budget=budget, **more)


def commit(owner: Scheduler, planned: Planned, token: int = 99, failed: tuple[int, ...] = ()) -> Committed:
    """Every row yields this token; those of the numbers in `failed` are not a number."""
    ids = np.full(len(planned.numbers), token, dtype=np.int64)
    return owner.commit(planned, ids, np.isin(planned.numbers, failed))


def step(owner: Scheduler, **more: Any) -> Planned:
    planned = owner.schedule()
    commit(owner, planned, **more)
    return planned


def spans(planned: Planned) -> list[tuple[int, int, int]]:
    return [(slot, first, count) for slot, first, count in planned.step.spans.tolist()]


def running(owner: Scheduler) -> list[int]:
    return [owner.running.at(slot).number for slot in owner.running.order.tolist()]


def free(owner: Scheduler) -> int:
    return owner.pools["kv"].num_free


def test_a_long_prompt_comes_in_chunks_of_the_budget() -> None:
    owner = scheduler()
    owner.add(completion(0, 20, 2))
    assert [spans(step(owner)) for _ in range(5)] == [[(0, 0, 8)], [(0, 8, 8)], [(0, 16, 4)], [(0, 20, 1)], []]
    assert not len(owner)


def test_decoding_goes_before_prompts_and_they_share_what_is_left_of_the_budget() -> None:
    owner = scheduler(budget=6)
    owner.add(completion(0, 2, 4))
    owner.add(completion(1, 9, 2))
    assert [spans(step(owner)) for _ in range(4)] == [
        [(0, 0, 2), (1, 0, 4)], [(0, 2, 1), (1, 4, 5)], [(0, 3, 1), (1, 9, 1)], [(0, 4, 1)],
    ]  # fmt: skip


def test_no_more_run_than_the_budget_has_tokens() -> None:
    owner = scheduler(budget=2)
    for number in range(3):
        owner.add(completion(number, 1, 9))
    planned = [step(owner) for _ in range(4)]
    assert [each.numbers.tolist() for each in planned] == [[0, 1], [0, 1], [0, 1], [0, 1]]
    owner.drop(0)
    assert step(owner).numbers.tolist() == [1, 2]


def test_the_first_that_does_not_fit_lets_nobody_past() -> None:
    owner = scheduler()
    owner.add(completion(0, 12, 12))
    owner.add(completion(1, 40, 8))
    owner.add(completion(2, 1, 1))
    for _ in range(3):
        step(owner)
    assert running(owner) == [0]
    assert len(owner.waiting) == 2


def test_admission_leaves_a_page_for_each_that_runs() -> None:
    owner = scheduler(pages=6, budget=64)
    owner.add(completion(0, 8))
    owner.add(completion(1, 13))
    step(owner)
    assert running(owner) == [0], "2 + 4 pages are there, a third for growth is not"
    owner = scheduler(pages=7, budget=64)
    owner.add(completion(0, 8))
    owner.add(completion(1, 13))
    step(owner)
    assert running(owner) == [0, 1]


def test_a_full_queue_refuses_newcomers_and_nobody_else() -> None:
    owner = scheduler(pages=6, slots=2, max_queued=1)
    owner.add(completion(0, 3, 20))
    step(owner)
    owner.add(completion(1, 3, 20))
    step(owner)
    owner.add(completion(2, 1))
    with pytest.raises(QueueFull, match="1 requests are waiting, max_queued is 1"):
        owner.add(completion(3, 1))
    while not owner.num_preemptions:
        step(owner)
    assert running(owner) == [0]
    assert len(owner.waiting) == 2, "who was preempted comes back into a full queue"
    assert not owner.drop(3)


def test_a_request_is_one_entry_in_the_queue_however_many_completions_wait() -> None:
    owner = scheduler(pages=12, slots=1, budget=64, max_queued=2)
    leader = completion(0, 3, 9, n=3)
    followers = [completion(number, 3, 9, n=3, leader=leader) for number in (1, 2)]
    for each in (leader, *followers):
        owner.add(each)
    assert owner.waiting.num_requests == 1
    step(owner)
    assert (len(owner.waiting), owner.waiting.num_requests) == (2, 1), "its followers wait for the only slot"
    owner.add(completion(3, 3))
    with pytest.raises(QueueFull, match="2 requests are waiting, max_queued is 2"):
        owner.add(completion(4, 3))
    owner.drop(1)
    with pytest.raises(QueueFull):
        owner.add(completion(4, 3))
    owner.drop(2)
    owner.add(completion(4, 3))
    assert (len(owner.waiting), owner.waiting.num_requests) == (2, 2)


def test_completions_that_lose_their_leader_still_are_one_request() -> None:
    owner = scheduler(slots=1, max_queued=2)
    owner.add(completion(9, 3, 20))
    step(owner)
    leader = completion(10, 3)
    for each in (leader, *(completion(number, 3, leader=leader) for number in (11, 12))):
        owner.add(each)
    owner.drop(10)
    assert (len(owner.waiting), owner.waiting.num_requests) == (2, 1)
    owner.add(completion(13, 3))


def test_without_pages_the_last_ranked_gives_way_and_continues_later() -> None:
    owner = scheduler(pages=5, budget=64, prefix_caching=False)
    owner.add(completion(0, 4, 12))
    owner.add(completion(1, 4, 12))
    planned = [step(owner) for _ in range(6)]
    assert running(owner) == [0]
    assert planned[-1].step.freed.tolist() == [1]
    while 0 in running(owner):
        planned.append(step(owner))
    again = step(owner)
    assert spans(again) == [(0, 0, 9)], "the prompt and the tokens that it had"
    assert again.step.added[0].tokens.tolist() == [2] * 4 + [99] * 5
    assert (again.started, again.num_prompt_tokens) == ((), 0), "it started before"


def test_a_running_one_gives_way_to_a_better_priority_only_if_that_helps() -> None:
    for needed, gone in ((20, True), (45, False)):
        owner = scheduler(budget=64, prefix_caching=False)
        owner.add(completion(1, 4, 40))
        owner.add(completion(2, 20, 20, priority=1))
        step(owner)
        assert running(owner) == [1, 2]
        owner.add(completion(0, needed, 1))
        step(owner)
        assert running(owner) == [1, 2], "what a step has planned is done first"
        step(owner)
        assert running(owner) == ([1] if gone else [1, 2])


def test_way_is_made_for_what_those_that_stay_may_grow_into_too() -> None:
    owner = scheduler(pages=10, budget=64, prefix_caching=False)
    owner.add(completion(0, 5, 20))
    owner.add(completion(2, 9, 8, priority=1))
    step(owner)
    owner.add(completion(1, 16, 4))
    step(owner)
    assert (free(owner), running(owner)) == (5, [0, 2]), "its 4 pages are there, one more for each of the others is not"
    step(owner)
    step(owner)
    assert running(owner) == [0, 1]


@pytest.mark.parametrize(("needed", "gone"), [(32, 2), (33, 0)])
def test_pages_that_those_who_give_way_share_among_themselves_count_once(needed: int, gone: int) -> None:
    owner = scheduler(pages=13, slots=4, budget=64, prefix_caching=False)
    owner.add(completion(0, 13, 20))
    leader = completion(2, 20, 9, priority=1)
    owner.add(leader)
    owner.add(completion(3, leader.tokens.tolist(), 9, priority=1, leader=leader))
    step(owner)
    step(owner)
    owner.add(completion(1, needed, 1))
    step(owner)
    assert (free(owner), running(owner)) == (1, [0, 2, 3]), "4 pages of one, 4 shared by two that have 2 each besides"
    step(owner)
    assert owner.num_preemptions == gone


@pytest.mark.parametrize(("needed", "gone"), [(20, 1), (24, 0)])
def test_pages_shared_with_one_that_stays_are_not_freed_by_giving_way(needed: int, gone: int) -> None:
    owner = scheduler(pages=11, budget=64)
    beginning = [9] * 16
    owner.add(completion(0, [*beginning, 1], 9))
    step(owner)
    owner.add(completion(2, [*beginning, 2], 9, priority=1))
    step(owner)
    assert (free(owner), running(owner)) == (5, [0, 2]), "5 pages of one, 4 of them shared by one that has 1 besides"
    owner.add(completion(1, needed, 1))
    step(owner)
    step(owner)
    assert owner.num_preemptions == gone


def test_who_makes_way_for_one_that_is_dropped_meanwhile_stays() -> None:
    owner = scheduler(budget=64, prefix_caching=False)
    owner.add(completion(2, 20, 20, priority=1))
    step(owner)
    owner.add(completion(0, 40, 1))
    step(owner)
    owner.drop(0)
    step(owner)
    assert (running(owner), owner.num_preemptions) == ([2], 0)


def test_no_slot_is_a_reason_to_make_way_too() -> None:
    owner = scheduler(slots=1)
    owner.add(completion(1, 2, 20, priority=1))
    step(owner)
    owner.add(completion(0, 2, 1))
    numbers = [step(owner).numbers.tolist() for _ in range(4)]
    assert numbers == [[1], [], [0], [1]]


def followed(prompt: int, n: int = 3, **more: Any) -> tuple[Scheduler, list[Scheduled]]:
    """n completions of one prompt, and the scheduler after the step that computed it."""
    owner = scheduler(budget=64, **more)
    leader = completion(0, prompt)
    group = [leader, *(completion(number, prompt, leader=leader) for number in range(1, n))]
    for each in group[1:]:
        each.tokens = leader.tokens
    for each in group:
        owner.add(each)
    assert spans(step(owner)) == [(0, 0, prompt)]
    return owner, group


@pytest.mark.parametrize("caching", [True, False])
def test_completions_of_one_prompt_share_its_pages_and_copy_the_last_one(caching: bool) -> None:
    owner, (leader, *followers) = followed(10, prefix_caching=caching)
    planned = step(owner)
    assert sorted(spans(planned)) == [(0, 10, 1), (1, 9, 1), (2, 9, 1)]
    shared, last = leader.pages["kv"][:2], leader.pages["kv"][2]
    assert [each.pages["kv"][:2] for each in followers] == [shared, shared]
    assert [owner.pools["kv"].holders(page) for page in shared] == [3, 3]
    assert planned.step.copies["kv"].tolist() == [[last, each.pages["kv"][2]] for each in followers]
    assert len({last, *(each.pages["kv"][2] for each in followers)}) == 3
    assert planned.started == ((1, 9), (2, 9))


def test_nothing_is_copied_where_the_first_token_of_ones_own_begins_a_page() -> None:
    owner, (leader, *_) = followed(9, n=2)
    planned = step(owner)
    assert planned.step.copies == {}
    assert sorted(spans(planned)) == [(0, 9, 1), (1, 8, 1)]
    assert owner.pools["kv"].holders(leader.pages["kv"][2]) == 1


def test_followers_of_a_dropped_leader_go_their_own_way() -> None:
    owner = scheduler(budget=6)
    leader = completion(0, 10)
    follower = completion(1, 10, leader=leader)
    owner.add(leader)
    owner.add(follower)
    assert running(owner) == []
    step(owner)
    owner.drop(0)
    assert spans(step(owner)) == [(0, 0, 6)]
    assert running(owner) == [1]


def test_a_follower_that_is_dropped_before_its_turn_never_runs() -> None:
    owner = scheduler(budget=6)
    leader = completion(0, 10, 2)
    owner.add(leader)
    owner.add(completion(1, 10, leader=leader))
    step(owner)
    assert owner.drop(1)
    assert not owner.drop(1)
    while len(owner):
        assert 1 not in step(owner).numbers
    assert free(owner) == 12


def test_a_prompt_that_is_cached_whole_copies_one_page_and_computes_one_token() -> None:
    owner = scheduler(budget=64)
    prompt = list(range(12))
    owner.add(completion(0, prompt, 1))
    step(owner)
    assert not len(owner)
    owner.add(completion(1, prompt, 4))
    planned = step(owner)
    (slot, first, count) = spans(planned)[0]
    assert (first, count) == (11, 1)
    ((source, target),) = planned.step.copies["kv"].tolist()
    assert owner.running.at(slot).pages["kv"][2] == target != source
    assert planned.started == ((1, 11),)


def test_what_a_completion_has_sampled_is_found_too_but_for_its_last_token() -> None:
    owner = scheduler(budget=64)
    owner.add(completion(0, [1, 2, 3, 4, 5], 8))
    while len(owner):
        step(owner)
    owner.add(completion(1, [1, 2, 3, 4, 5] + [99] * 8, 1))
    assert spans(owner.schedule()) == [(0, 12, 1)]


@pytest.mark.parametrize("changed", [{"root": b"salt"}, {}])
def test_a_hit_is_whole_pages_of_the_same_root(changed: dict[str, Any]) -> None:
    owner = scheduler(budget=64)
    owner.add(completion(0, list(range(12)), 1))
    step(owner)
    other = completion(1, [*range(10), 77, 78], 1)
    for name, value in changed.items():
        setattr(other, name, value)
    owner.add(other)
    first = 0 if changed else 8
    assert spans(owner.schedule()) == [(0, first, 12 - first)]


def test_nothing_is_kept_without_prefix_caching() -> None:
    owner = scheduler(budget=64, prefix_caching=False)
    owner.add(completion(0, list(range(12)), 1))
    step(owner)
    assert owner.page_counts() == (12, 0, 12)


def test_a_prompt_is_shared_from_its_commit_on_not_before() -> None:
    owner = scheduler(budget=64)
    owner.add(completion(0, list(range(12)), 9))
    planned = owner.schedule()
    assert owner.page_counts()[1] == 0
    commit(owner, planned)
    assert owner.page_counts()[1] == 3


def test_what_failed_is_not_found() -> None:
    owner = scheduler(budget=8)
    owner.add(completion(0, list(range(12)), 9))
    step(owner)
    assert owner.page_counts()[1] == 2, "nobody knows yet: the first chunk yields nothing"
    ended = commit(owner, owner.schedule(), failed=(0,)).ended
    assert ended == ((0, "error", None),)
    assert owner.page_counts() == (12, 0, 12)


def test_a_token_in_flight_reaches_one_that_was_preempted_meanwhile() -> None:
    for failed in (False, True):
        owner = scheduler(slots=1, budget=64)
        owner.add(completion(1, list(range(8)), 20, priority=1))
        step(owner)
        in_flight = owner.schedule()
        owner.add(completion(0, 2, 9))
        later = owner.schedule()
        commit(owner, in_flight)
        preempting = owner.schedule()
        assert (running(owner), preempting.is_idle) == ([], True)
        committed = commit(owner, later, token=55, failed=(1,) if failed else ())
        assert committed.rows.tolist() == [0]
        assert [each[:2] for each in committed.ended] == ([(1, "error")] if failed else [])
        assert owner.page_counts()[1] == (0 if failed else 2)
        owner.drop(0)
        added = owner.schedule().step.added
        assert [each.tokens.tolist() for each in added] == ([] if failed else [[*range(8), 99, 99, 55]])


def test_a_token_in_flight_for_one_that_was_preempted_and_dropped_is_dropped() -> None:
    owner = scheduler(slots=1, budget=64)
    owner.add(completion(1, 8, 20, priority=1))
    step(owner)
    in_flight = owner.schedule()
    owner.add(completion(0, 2, 9))
    later = owner.schedule()
    commit(owner, in_flight)
    owner.schedule()
    assert owner.drop(1)
    assert commit(owner, later).rows.tolist() == []


def test_an_end_in_a_token_that_was_in_flight_at_preemption_counts() -> None:
    for outputs, stop_ids, end in ((3, (), (1, "length", None)), (20, (55,), (1, "stop", 55))):
        owner = scheduler(slots=1, budget=64)
        owner.add(completion(1, 8, outputs, priority=1, stop_ids=stop_ids))
        step(owner)
        in_flight = owner.schedule()
        owner.add(completion(0, 2, 9))
        later = owner.schedule()
        commit(owner, in_flight)
        owner.schedule()
        assert running(owner) == []
        assert commit(owner, later, token=55).ended == (end,)
        owner.drop(0)
        assert not len(owner)


def test_a_row_that_comes_back_for_a_slot_with_another_tenant_is_dropped() -> None:
    owner = scheduler(slots=1, budget=64)
    owner.add(completion(0, 4, 9, stop_ids=(7,)))
    owner.add(completion(1, 4, 9))
    first = owner.schedule()
    second = owner.schedule()
    assert second.numbers.tolist() == [0], "a token follows one that the host has not seen"
    assert commit(owner, first, token=7).ended == ((0, "stop", 7),)
    third = owner.schedule()
    assert (third.numbers.tolist(), third.step.freed.tolist()) == ([1], [0])
    assert commit(owner, second, token=50).rows.tolist() == []
    assert commit(owner, third, token=51).rows.tolist() == [0]
    assert owner.running.tokens[0, :6].tolist() == [2, 2, 2, 2, 51, 0]


def test_nothing_follows_the_last_token_by_length() -> None:
    owner = scheduler(budget=64)
    owner.add(completion(0, 4, 2))
    planned = [owner.schedule() for _ in range(4)]
    assert [spans(each) for each in planned] == [[(0, 0, 4)], [(0, 4, 1)], [], []]
    assert commit(owner, planned[0]).ended == ()
    assert commit(owner, planned[1]).ended == ((0, "length", None),)


def test_a_freed_slot_is_said_with_the_next_step_that_goes_out() -> None:
    owner = scheduler()
    owner.add(completion(0, 4, 1))
    step(owner)
    idle = owner.schedule()
    assert idle.is_idle
    owner.add(completion(1, 4, 1))
    assert owner.schedule().step.freed.tolist() == [0]


def test_stop_ids_end_after_min_tokens_and_the_widest_set_is_no_others() -> None:
    owner = scheduler()
    owner.add(completion(0, 1, 9, stop_ids=(5,), min_tokens=2))
    owner.add(completion(1, 1, 9, stop_ids=(5, 6, 7)))
    owner.add(completion(2, 1, 9))
    assert commit(owner, owner.schedule(), token=7).ended == ((1, "stop", 7),)
    assert commit(owner, owner.schedule(), token=5).ended == ((0, "stop", 5),)
    assert commit(owner, owner.schedule(), token=5).ended == ()


def test_masks_are_by_row_and_change_with_min_tokens() -> None:
    owner = scheduler()
    late = completion(1, 2, 9, min_tokens=2)
    late.allowed, late.allowed_early = np.array([1], np.int32), np.array([2], np.int32)
    only_early = completion(2, 2, 9, min_tokens=1)
    only_early.allowed_early = np.array([3], np.int32)
    for each in (completion(0, 2, 9), late, only_early):
        owner.add(each)
    masks = [{row: words.tolist() for row, words in step(owner).step.masks.items()} for _ in range(3)]
    assert masks == [{1: [2], 2: [3]}, {1: [2]}, {1: [1]}]


def test_a_step_says_what_those_who_run_ask_for() -> None:
    owner = scheduler(budget=3)
    owner.add(completion(0, 3, 9, logprobs=2))
    owner.add(completion(1, 4, 9, temperature=1.0, top_k=3, presence_penalty=1.0, logprobs=7))
    said = [
        (each.num_logprobs, each.random, each.filtered, each.penalized) for each in (step(owner).step for _ in range(3))
    ]
    assert said == [(2, False, False, False), (7, True, True, True), (7, True, True, True)]


def test_a_time_budget_bounds_the_prompts_of_a_step_and_lets_one_through() -> None:
    rows = np.array([[0.0, 1, 0, 0, 0, 0]])
    pace = Pace(rows, rows, bytes_per_s=1.0, operations_per_s=1.0, budget_s=24.0, adapts=False)
    owner = scheduler(pages=99, slots=8, budget=512, pace=pace)
    for number in range(6):
        owner.add(completion(number, MIN_CHUNK, 9))
    counts = [[count for _, _, count in spans(step(owner))] for _ in range(3)]
    assert counts == [[16], [1, 16], [1, 1, 16]]
