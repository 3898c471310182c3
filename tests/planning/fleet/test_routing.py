"""Who gets a request: each policy on loads that can be read."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from ambidex.planning.fleet.routing import POLICIES, Loads, Policy, PrefixAware, policy
from ambidex.runtime.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st


def loads(requests: list[float], tokens: list[float], speed: list[float] | None = None, closed: int = -1) -> Loads:
    found = Loads(len(requests))
    for place in range(len(requests)):
        found.open(place, speed[place] if speed else 1.0)
    found.requests[:], found.tokens[:] = requests, tokens
    if closed >= 0:
        found.close(closed)
    return found


def chosen(name: str, known: Loads, prefix: int = -1, prefix_tokens: int = 0) -> int:
    return policy(name).choose(known, prefix, prefix_tokens).place


@given(
    name=st.sampled_from(sorted(POLICIES)), closed=st.sets(st.integers(0, 7), max_size=7),
    tokens=st.lists(st.integers(0, 10**6), min_size=8, max_size=8), prefix=st.integers(-1, 2),
)  # fmt: skip
def test_a_closed_place_is_never_chosen(name: str, closed: set[int], tokens: list[float], prefix: int) -> None:
    known, router = loads([0] * 8, tokens), policy(name)
    for place in closed:
        known.close(place)
    assert all(router.choose(known, prefix, 100).place not in closed for _ in range(20))


def test_round_robin_takes_turns_and_passes_over_who_is_closed() -> None:
    known, router = loads([9, 0, 0, 0], [9, 0, 0, 0], closed=2), policy("round_robin")
    assert [router.choose(known, -1, 0).place for _ in range(7)] == [0, 1, 3, 0, 1, 3, 0]


def test_the_least_of_each_is_chosen() -> None:
    known = loads([1, 5, 3], [900, 50, 200])
    assert chosen("least_requests", known) == 0
    assert chosen("least_pending_tokens", known) == 1
    known.close(1)
    assert chosen("least_pending_tokens", known) == 2


@pytest.mark.parametrize("name", ["least_requests", "least_pending_tokens", "prefix_aware"])
def test_a_worker_of_twice_the_speed_gets_about_twice_as_much(name: str) -> None:
    known, router = loads([0, 0], [0, 0], speed=[0.5, 1.0]), policy(name)
    given_to: Counter[int] = Counter()
    for _ in range(300):
        place = router.choose(known, -1, 0).place
        given_to[place] += 1
        known.requests[place] += 1
        known.tokens[place] += 100
    assert given_to[1] == pytest.approx(2 * given_to[0], rel=0.05)


def test_a_prefix_is_sought_where_it_was_unless_too_much_waits_there() -> None:
    known, router = loads([0, 0, 0], [10, 0, 20]), policy("prefix_aware")
    assert router.choose(known, 7, 100).place == 1
    known.tokens[1] = 100
    assert router.choose(known, 7, 100).place == 1, "10 are fewer than 100, by less than the prefix saves"
    known.tokens[1] = 120
    assert router.choose(known, 7, 100).place == 0
    known.tokens[:] = [120, 115, 0]
    assert router.choose(known, 7, 100).place == 2
    known.tokens[:] = [50, 120, 51]
    assert router.choose(known, 7, 100).place == 0, "three have it now"


def test_a_new_worker_remembers_nothing() -> None:
    known, router = loads([0, 0], [0, 10]), policy("prefix_aware")
    assert router.choose(known, 1, 100).place == 0
    known.tokens[0] = 50
    router.forget(0)
    assert router.choose(known, 1, 100).place == 1


def test_what_a_worker_knows_of_a_prompt_is_not_counted_again() -> None:
    known, router = loads([0, 0], [0, 10]), policy("prefix_aware")
    assert [router.choose(known, 1, 100) for _ in range(2)] == [(0, 0), (0, 100)]
    assert router.choose(known, -1, 0) == (0, 0)


def test_of_many_prefixes_those_used_last_are_remembered() -> None:
    known, router = loads([0, 0], [0, 10]), PrefixAware(most_prefixes=3)
    for prefix in (1, 2, 3, 1, 4):
        router.choose(known, prefix, 100)
    assert router.num_remembered == 3
    assert [router.choose(known, prefix, 100).num_known for prefix in (1, 3, 4)] == [100, 100, 100]
    assert router.choose(known, 2, 100).num_known == 0


@pytest.mark.parametrize("name", POLICIES)
def test_a_thousand_workers_cost_microseconds(name: str) -> None:
    from time import perf_counter

    known, router = loads([0] * 1000, list(np.arange(1000.0))), policy(name)
    best_s = min(_seconds(router, known, perf_counter) for _ in range(20))
    assert best_s < 200e-6


def _seconds(router: Policy, known: Loads, clock: object) -> float:
    assert callable(clock)
    begun = clock()
    router.choose(known, 3, 100)
    return float(clock() - begun)


def test_an_unknown_policy_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown routing policy 'least-pending': did you mean least_pending_tokens"):
        policy("least-pending")
    with pytest.raises(ConfigError, match="known are round_robin, least_requests"):
        policy("zzz")
