"""Fleets: every request ends once, time goes on, the same seed gives the same bits, deaths and moves lose nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from ambidex.planning.fleet.agenda import Action
from ambidex.planning.fleet.journal import DONE, LOST, REFUSED, Journal
from ambidex.runtime.errors import ConfigError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_POLICIES = ("round_robin", "least_requests", "least_pending_tokens", "prefix_aware")
_DEATHS = st.lists(
    st.builds(
        lambda time_s, stage, place: {"time_s": time_s, "stage": stage, "place": place},
        st.floats(0, 4), st.integers(0, 1), st.integers(0, 1),
    ),
    max_size=4,
)  # fmt: skip


def fleet(kit: Any, is_split: bool, routing: str) -> dict[str, Any]:
    return {**(kit.SPLIT if is_split else kit.scenario().fleets[0].model_dump()), "routing": routing}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000), is_split=st.booleans(), routing=st.sampled_from(_POLICIES), deaths=_DEATHS,
    replaced=st.booleans(), rate=st.sampled_from([5, 40, 400]), kv_cache_tokens=st.sampled_from([512, 4096]),
)  # fmt: skip
def test_every_request_ends_once_and_tokens_add_up(
    kit: Any, seed: int, is_split: bool, routing: str, deaths: list[Any], replaced: bool, rate: float,
    kv_cache_tokens: int,
) -> None:  # fmt: skip
    deaths = [{**each, "stage": each["stage"] if is_split else 0} for each in deaths]
    chosen = kit.scenario(
        seed=seed, fleets=[fleet(kit, is_split, routing)], failures={"at": deaths, "replaced": replaced},
        traffic={**kit.scenario().traffic.model_dump(), "arrivals": {"kind": "poisson", "rate_per_s": rate}},
    )  # fmt: skip
    outcome, report = kit.run(chosen, kit.Round(kv_cache_tokens=kv_cache_tokens))
    journal, workload = outcome.journal, outcome.workload
    counts = report["requests"]
    assert counts["done"] + counts["refused"] + counts["lost"] == counts["total"] == 40
    assert counts["refused"] == 0
    if replaced or not deaths:
        assert counts["lost"] == 0
    done = journal.state == DONE
    assert (journal.generated[done] == workload.output_tokens[done]).all()
    assert (workload.arrival_s <= journal.started_s)[done].all()
    assert (journal.started_s <= journal.first_s)[done].all()
    assert (journal.first_s <= journal.ended_s)[done].all()
    assert [stage.num_requests for each in outcome.fleets for stage in each.stages] == [0] * (1 + is_split)


@pytest.mark.parametrize("is_split", [False, True])
def test_nothing_is_held_when_all_have_ended(kit: Any, is_split: bool) -> None:
    simulation = kit.simulation(kit.scenario(fleets=[fleet(kit, is_split, "least_requests")]))
    workers = [worker for each in simulation.fleets for stage in each.stages for worker in stage.workers]
    loads = [stage.loads for each in simulation.fleets for stage in each.stages]
    simulation.run()
    for worker in workers:
        (pool,) = worker.scheduler.pools.values()
        assert pool.num_free == pool.num_pages
        assert not worker.held
        assert not worker.incoming
        assert not len(worker.scheduler)
    assert all(np.allclose(each.requests, 0) and np.allclose(each.tokens, 0) for each in loads)


def test_the_clock_never_goes_back(kit: Any) -> None:
    simulation = kit.simulation(kit.scenario(fleets=[kit.SPLIT], failures={"at": [{"time_s": 0.5}]}))
    moments: list[float] = []
    note = simulation.agenda.at

    def watched(time_s: float, action: Action, order: int = 0) -> int:
        def act(now_s: float) -> None:
            moments.append(now_s)
            action(now_s)

        return note(time_s, act, order)

    simulation.agenda.at = watched
    simulation.run()
    assert len(moments) > 200
    assert all(before <= after for before, after in pairwise(moments))


@pytest.mark.parametrize("is_split", [False, True])
def test_the_same_seed_gives_the_same_report_and_another_does_not(kit: Any, is_split: bool) -> None:
    def report(seed: int) -> str:
        chosen = kit.scenario(
            seed=seed, fleets=[fleet(kit, is_split, "prefix_aware")], failures={"days": 0.002, "devices": 2},
            traffic={**kit.scenario().traffic.model_dump(), "prefixes": {"groups": 3, "tokens": 40, "share": 0.7}},
        )  # fmt: skip
        return json.dumps(kit.run(chosen)[1])

    assert report(1) == report(1)
    assert report(1) != report(2)


def test_what_a_dead_worker_had_begun_is_begun_again_behind_what_came(kit: Any) -> None:
    traffic = {**kit.scenario().traffic.model_dump(), "output_tokens": {"kind": "constant", "tokens": 60}}
    calm = kit.run(kit.scenario(traffic=traffic))[0].journal
    outcome, report = kit.run(kit.scenario(traffic=traffic, failures={"at": [{"time_s": 1.0}]}))
    journal = outcome.journal
    assert report["failures"] == 1
    again = journal.attempts > 1
    assert again.sum() == report["recomputed"] > 0
    begun_before = again & (journal.first_s < 1.0)
    assert begun_before.any(), "somebody had shown tokens when the worker died"
    assert np.array_equal(journal.first_s[begun_before], calm.first_s[begun_before]), "and keeps them"
    assert (journal.ended_s[begun_before] > calm.ended_s[begun_before]).all()


def test_what_the_caller_has_of_an_answer_is_not_generated_again(kit: Any) -> None:
    """60 tokens take 60 steps; that in which the worker dies is lost, and the prompt is computed twice."""
    tokens = {"input_tokens": {"kind": "constant", "tokens": 50}, "output_tokens": {"kind": "constant", "tokens": 60}}
    traffic = {"arrivals": {"kind": "poisson", "rate_per_s": 1e6}, **tokens}
    deaths = {"at": [{"time_s": 0.4}]}
    _, report = kit.run(kit.scenario(requests=1, traffic=traffic, failures=deaths))
    workers = report["fleets"][0]["workers"][0]
    assert report["recomputed"] == 1
    assert workers["computed_prompt_tokens"] > 50 + 50 + 20, "the prompt again, and the answer so far behind it"
    assert report["steps"] == 60 + 1


def test_without_a_worker_and_none_to_come_requests_are_lost_and_counted(kit: Any) -> None:
    deaths = [{"time_s": 0.5, "place": 0}, {"time_s": 0.5, "place": 1}]
    outcome, report = kit.run(kit.scenario(failures={"at": deaths, "replaced": False}))
    lost = outcome.journal.state == LOST
    assert report["requests"]["lost"] == lost.sum() > 20
    assert np.isnan(outcome.journal.ended_s[lost]).all()
    assert report["goodput"]["share"] < 0.5


def test_a_request_that_no_replica_holds_is_refused_with_the_reason(kit: Any) -> None:
    outcome, report = kit.run(kit.scenario(), kit.Round(max_model_len=100))
    too_long = outcome.workload.input_tokens >= 100
    assert np.array_equal(outcome.journal.state == REFUSED, too_long)
    assert "the context holds 100" in report["requests"]["refusal"]
    whole = np.minimum(outcome.workload.output_tokens, 100 - outcome.workload.input_tokens)
    assert np.array_equal(outcome.journal.generated[~too_long], whole[~too_long])


def test_a_split_fleet_moves_whole_pages_once_and_computes_the_rest(kit: Any) -> None:
    outcome, report = kit.run(kit.scenario(fleets=[kit.SPLIT]))
    workload = outcome.workload
    goes_on = workload.output_tokens > 1
    whole = workload.input_tokens // 16 * 16
    moved = int(whole[goes_on].sum())
    (found,) = report["fleets"]
    assert (found["moved_tokens"], found["moved_bytes"]) == (moved, 1000 * moved)
    prefill, decode = found["workers"]
    assert prefill["computed_prompt_tokens"] == workload.input_tokens.sum()
    # Behind the last full page: the rest of the prompt, and the first token, which the other side sampled.
    assert decode["computed_prompt_tokens"] == int((workload.input_tokens - whole + 1)[goes_on].sum())
    assert report["prefix_hit_share"] == 0.0


def test_the_link_sends_one_after_another(kit: Any) -> None:
    """1 MB/s and 1,000 bytes a token: a page takes 16 ms, and whoever comes second waits for the first."""
    slow = kit.scenario(fleets=[kit.SPLIT])
    fast = kit.scenario(fleets=[{**kit.SPLIT, "link": {"gb_per_s": 1000.0}}])
    (outcome, report), (_, quick) = kit.run(slow), kit.run(fast)
    seconds = report["fleets"][0]["moved_bytes"] / 1e6
    assert report["tpot_ms"]["mean"] > quick["tpot_ms"]["mean"]
    assert outcome.lasted_s > seconds / 2, "two links carry all of it"
    assert report["ttft_ms"]["p50"] == pytest.approx(quick["ttft_ms"]["p50"], rel=0.2), "the first token does not wait"


def test_a_worker_takes_one_after_another_whoever_sends(kit: Any) -> None:
    kinds = [{"profile": "x", "role": "prefill", "workers": 3}, {"profile": "x", "role": "decode", "workers": 1}]
    outcome, report = kit.run(kit.scenario(fleets=[{**kit.SPLIT, "workers": kinds}]))
    assert outcome.lasted_s > report["fleets"][0]["moved_bytes"] / 1e6, "one link into it carries all"


def test_a_mixed_fleet_gives_a_slow_worker_less(kit: Any) -> None:
    from ambidex.planning.fleet.build import assemble
    from ambidex.planning.fleet.measures import measures

    two = [{"profile": "x", "workers": 1}, {"profile": "y", "workers": 1}]
    chosen = kit.scenario(requests=200, fleets=[{"name": "a", "params": "8B", "workers": two}])
    workload = kit.simulation(chosen).workload
    replicas = [[kit.Round(), kit.Round(name="slow", step_time=kit.Linear(step_s=0.03, token_s=3e-4))]]
    report = measures(chosen, assemble(chosen, replicas, workload).run())
    fast, slow = report["fleets"][0]["workers"]
    assert fast["computed_prompt_tokens"] > 2 * slow["computed_prompt_tokens"] > 0


def test_fleets_of_several_models_get_their_share_of_the_requests(kit: Any) -> None:
    fleets = [
        {**fleet(kit, False, "round_robin"), "name": name, "share": share} for name, share in (("s", 3), ("l", 1))
    ]
    outcome, report = kit.run(kit.scenario(requests=400, fleets=fleets))
    small, large = report["fleets"]
    assert small["requests"] + large["requests"] == 400
    assert 0.65 < small["requests"] / 400 < 0.85
    assert outcome.journal.num(DONE) == 400


def test_a_request_ends_only_once() -> None:
    journal = Journal(1)
    journal.end(0, 1.0, 5)
    with pytest.raises(AssertionError, match="twice"):
        journal.lose(0)


def short_of_pages(kit: Any, kv_cache_tokens: int) -> tuple[Any, dict[str, Any]]:
    """Prompts come four times as fast as one worker, whose pages hold four requests, answers them."""
    kinds = [{"profile": "x", "role": role, "workers": many} for role, many in (("prefill", 4), ("decode", 1))]
    traffic = {
        "arrivals": {"kind": "poisson", "rate_per_s": 100},
        "input_tokens": {"kind": "constant", "tokens": 200},
        "output_tokens": {"kind": "uniform", "min_tokens": 2, "max_tokens": 40},
    }
    split = {**kit.SPLIT, "link": {"gb_per_s": 1000.0}, "workers": kinds}
    chosen = kit.scenario(requests=200, fleets=[split], traffic=traffic)
    found: tuple[Any, dict[str, Any]] = kit.run(chosen, kit.Round(kv_cache_tokens=kv_cache_tokens))
    return found


def test_what_is_brought_is_not_put_out_before_it_is_let_in(kit: Any) -> None:
    """Behind 12 full pages of 16 tokens 8 are left of a prompt, and the first token."""
    for kv_cache_tokens in (640, 1024, 4096):
        _, report = short_of_pages(kit, kv_cache_tokens)
        assert report["fleets"][0]["workers"][1]["computed_prompt_tokens"] == 200 * 9


def test_pages_stay_at_their_source_until_the_target_has_room(kit: Any) -> None:
    """So whoever answers too slowly holds up the prompts, instead of KV lying nowhere."""
    _, narrow = short_of_pages(kit, 640)
    _, wide = short_of_pages(kit, 1 << 16)
    assert narrow["requests"]["done"] == wide["requests"]["done"] == 200
    assert narrow["ttft_ms"]["p99"] > 3 * wide["ttft_ms"]["p99"]


@pytest.mark.parametrize("seed", range(3))
def test_a_worker_to_whom_pages_are_under_way_does_not_go(kit: Any, seed: int) -> None:
    """Scaling lets workers go while what they shall answer is still on a slow link."""
    kinds = [
        {"profile": "x", "role": "prefill", "workers": 1, "max_workers": 3},
        {"profile": "x", "role": "decode", "workers": 1, "max_workers": 4},
    ]
    split = {
        **kit.SPLIT, "link": {"gb_per_s": 1.0, "latency_ms": 3000}, "workers": kinds,
        "scaling": {"every_s": 0.5, "requests_per_worker": 4, "calm_s": 0.5},
    }  # fmt: skip
    traffic = {
        "arrivals": {"kind": "waves", "rate_per_s": 10, "swing": 0.95, "period_s": 10},
        "input_tokens": {"kind": "constant", "tokens": 100},
        "output_tokens": {"kind": "constant", "tokens": 20},
    }
    failures = {"at": [{"time_s": 4.0, "stage": stage, "place": 0} for stage in (0, 1)]}
    simulation = kit.simulation(
        kit.scenario(seed=seed, requests=200, fleets=[split], traffic=traffic, failures=failures)
    )
    simulation.agenda.at(1000.0, lambda now_s: pytest.fail("requests wait for ever"))
    outcome = simulation.run()
    assert outcome.journal.num(DONE) == 200


def test_no_more_is_found_than_is_asked_for(kit: Any) -> None:
    """Whoever begins again asks a cache again."""
    traffic = {
        **kit.scenario().traffic.model_dump(),
        "input_tokens": {"kind": "constant", "tokens": 200},
        "prefixes": {"groups": 1, "tokens": 192},
    }
    often = kit.scenario(
        requests=300, traffic=traffic, failures={"days": 1e-5, "devices": 1}, loading={"gb_per_s": 1e3, "start_s": 0.01}
    )
    _, report = kit.run(often)
    assert report["recomputed"] > 20
    assert 0.5 < report["prefix_hit_share"] < 1


def test_pages_of_one_precision_do_not_become_those_of_another(kit: Any) -> None:
    kinds = [{**each, "kv_precision": kv} for each, kv in zip(kit.SPLIT["workers"], ("fp8", "bf16"), strict=True)]
    with pytest.raises(ConfigError, match="one kv_precision"):
        kit.scenario(fleets=[{**kit.SPLIT, "workers": kinds}])


def test_a_router_that_knows_prefixes_expects_the_rest_only(kit: Any) -> None:
    traffic = {**kit.scenario().traffic.model_dump(), "input_tokens": {"kind": "constant", "tokens": 200},
               "prefixes": {"groups": 1, "tokens": 160}}  # fmt: skip
    workers = [{"profile": "x", "workers": 1}]
    found = {}
    for routing in ("least_pending_tokens", "prefix_aware"):
        spec = {"name": "a", "params": "8B", "workers": workers, "routing": routing}
        (tested,) = kit.simulation(kit.scenario(traffic=traffic, fleets=[spec])).fleets
        expected = tested.stages[0].loads.tokens
        tested.arrive(0.0, 0)
        tested.arrive(0.0, 1)
        found[routing] = float(expected[0])
    assert found == {"least_pending_tokens": 400.0, "prefix_aware": 240.0}
