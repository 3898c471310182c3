"""From a submission to completions: lengths, ranks, seeds, masks, and what the cache can never hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ambidex.runtime.errors import RequestError
from ambidex.runtime.intake import Intake
from ambidex.runtime.messages import Limits, Submission
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.schedule.request import Scheduled

VOCABULARY = 70


def intake(seed: int = 0, model: str = "m", longest: int = 100) -> Intake:
    limits = Limits(50, VOCABULARY, frozenset({2}), longest, 10)
    return Intake(limits, model=model, seed=seed, ageing_s=10.0, longest={"kv": 100, "kv_window": longest})


def take(owner: Intake, now_s: float = 0.0, prompt: int = 3, **params: Any) -> list[Scheduled]:
    more = {name: params.pop(name) for name in ("salt", "priority") if name in params}
    submission = Submission(number=8, prompt_ids=np.arange(prompt) + 5, params=SamplingParams(**params), **more)
    return owner.take(submission, now_s)


def allowed(words: np.ndarray | None) -> set[int]:
    assert words is not None
    assert (words.dtype, len(words)) == (np.int32, 3)
    return {token for token in range(VOCABULARY) if int(words[token // 32]) >> token % 32 & 1}


def test_completions_are_numbered_and_the_first_leads() -> None:
    first, *others = take(intake(), n=3)
    assert [each.number for each in (first, *others)] == [8, 9, 10]
    assert (first.leader, [each.leader for each in others]) == (None, [first, first])


def test_the_context_bounds_the_length() -> None:
    assert take(intake(), prompt=3, max_tokens=9)[0].max_length == 12
    assert take(intake(), prompt=45, max_tokens=9)[0].max_length == 50


def test_a_step_of_priority_is_worth_so_many_seconds() -> None:
    owner = intake()
    ranks = [
        take(owner, now_s, priority=priority)[0].rank for now_s, priority in ((0.0, 1), (9.0, 0), (11.0, 0), (25.0, -2))
    ]
    assert sorted(range(4), key=lambda index: ranks[index]) == [3, 1, 0, 2]


def test_a_request_with_a_seed_draws_the_same_again_and_each_completion_its_own() -> None:
    owner = intake()
    seeds = [[each.seed for each in take(owner, n=3, seed=4)] for _ in range(2)]
    assert seeds[0] == seeds[1] == [each.seed for each in take(intake(seed=9), n=3, seed=4)]
    assert len(set(seeds[0])) == 3
    assert take(owner, seed=5)[0].seed not in seeds[0]
    assert all(-(1 << 63) <= seed < 1 << 63 for seed in seeds[0])


def test_without_a_seed_arrival_and_the_engine_decide() -> None:
    one, other = intake(), intake()
    drawn = [take(one)[0].seed for _ in range(3)]
    assert drawn == [take(other)[0].seed for _ in range(3)]
    assert len({*drawn, take(intake(seed=1))[0].seed}) == 4


def test_prefixes_are_shared_within_model_and_salt() -> None:
    assert take(intake())[0].root == take(intake())[0].root
    roots = {take(intake())[0].root, take(intake(model="n"))[0].root, take(intake(), salt="tenant")[0].root}
    assert len(roots) == 3


def test_masks_hold_the_allowed_tokens_and_no_stop_ids_before_min_tokens() -> None:
    (plain,) = take(intake())
    assert (plain.allowed, plain.allowed_early, plain.is_masked) == (None, None, False)
    (chosen,) = take(intake(), allowed_token_ids=[0, 2, 31, 32, 69])
    assert allowed(chosen.mask(0)) == {0, 2, 31, 32, 69}
    (early,) = take(intake(), min_tokens=2, stop_token_ids=[63, 64])
    assert allowed(early.mask(1)) == set(range(VOCABULARY)) - {2, 63, 64}
    assert early.mask(2) is None
    (both,) = take(intake(), allowed_token_ids=[2, 31, 64], min_tokens=1, stop_token_ids=[64], ignore_eos=True)
    assert (allowed(both.mask(0)), allowed(both.mask(1))) == ({2, 31}, {2, 31, 64})
    assert (early.stop_ids, both.stop_ids) == ((2, 63, 64), (64,))


def test_what_the_smallest_group_can_never_hold_is_refused() -> None:
    assert take(intake(longest=12), prompt=3, max_tokens=9)[0].max_length == 12
    with pytest.raises(RequestError, match="may grow to 12 tokens, the KV cache holds 11: lower max_tokens"):
        take(intake(longest=11), prompt=3, max_tokens=9)


@pytest.mark.parametrize("priority", [(1 << 31) + 1, -(1 << 31) - 1, 10**400])
def test_a_priority_without_measure_is_refused(priority: int) -> None:
    with pytest.raises(RequestError, match="priority must be a whole number"):
        take(intake(), priority=priority)
