"""KV that goes from prompts to answers, and workers that go meanwhile: who waits for whom, and who holds what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ambidex.planning.fleet.journal import DONE


def split(kit: Any, prefill: int, decode: int, **link: float) -> dict[str, Any]:
    kinds = [
        {"profile": "x", "role": "prefill", "workers": prefill},
        {"profile": "x", "role": "decode", "workers": decode},
    ]
    return {**kit.SPLIT, "workers": kinds, "link": {"gb_per_s": 1000.0, **link}}


def alike(requests: int, rate_per_s: float, output_tokens: int = 40) -> dict[str, Any]:
    """Prompts of 200 tokens, of which 12 pages of 16 move."""
    tokens = {
        "input_tokens": {"kind": "constant", "tokens": 200},
        "output_tokens": {"kind": "constant", "tokens": output_tokens},
    }
    return {"requests": requests, "traffic": {"arrivals": {"kind": "poisson", "rate_per_s": rate_per_s}, **tokens}}


def until(simulation: Any, is_so: Callable[[], bool]) -> float:
    """The time at which it is so first."""
    simulation.agenda.at(1000.0, lambda now_s: pytest.fail("it never was"))
    arrivals = enumerate(simulation.workload.arrival_s.tolist())
    for number, time_s in arrivals:
        simulation.agenda.at(time_s, lambda now_s, number=number: simulation.fleets[0].arrive(now_s, number))
    while not is_so():
        assert simulation.agenda.next()
    now_s: float = simulation.agenda.now_s
    return now_s


def test_a_worker_sends_one_after_another_whoever_takes(kit: Any) -> None:
    outcome, report = kit.run(kit.scenario(fleets=[split(kit, 1, 3, gb_per_s=0.001)]))
    assert outcome.lasted_s > report["fleets"][0]["moved_bytes"] / 1e6, "one link out of it carries all"


def test_a_link_takes_its_latency(kit: Any) -> None:
    journal = kit.run(kit.scenario(fleets=[split(kit, 2, 2, latency_ms=700)], **alike(10, 5)))[0].journal
    assert ((journal.ended_s - journal.first_s) > 0.7).all()


def test_whoever_answers_is_expected_to_compute_what_did_not_move(kit: Any) -> None:
    simulation = kit.simulation(kit.scenario(fleets=[split(kit, 1, 1, latency_ms=700)], **alike(1, 5)))
    stage = simulation.fleets[0].stages[1]
    until(simulation, lambda: stage.num_requests == 1)
    assert stage.loads.tokens.tolist() == [8.0]


def test_a_worker_in_a_dead_ones_place_is_known_to_know_nothing(kit: Any) -> None:
    spec = {"name": "a", "params": "8B", "routing": "prefix_aware", "workers": [{"profile": "x", "workers": 1}]}
    asked = alike(2, 1.0)
    asked["traffic"]["prefixes"] = {"groups": 1, "tokens": 160}
    simulation = kit.simulation(kit.scenario(fleets=[spec], **asked))
    (fleet,) = simulation.fleets
    (stage,) = fleet.stages
    fleet.arrive(0.0, 0)
    fleet.fail(0.0, stage, stage.workers[0])
    fleet.backlog.clear()
    stage.rent(0, 0.0, 1.0)
    while stage.workers[0] is None:
        assert simulation.agenda.next()
    fleet.arrive(simulation.agenda.now_s, 1)
    assert stage.loads.tokens.tolist() == [200.0]


def test_what_waits_at_its_target_begins_again_when_its_source_dies(kit: Any) -> None:
    """Two requests fit into whoever answers: others have come and are not let in."""
    simulation = kit.simulation(
        kit.scenario(fleets=[split(kit, 2, 1)], **alike(30, 100)), kit.Round(kv_cache_tokens=512)
    )
    (fleet,) = simulation.fleets
    prefill, decode = fleet.stages
    target, source = decode.workers[0], prefill.workers[0]
    now_s = until(simulation, lambda: len(target.incoming) > 1 and source.num_lent > 0)
    fleet.fail(now_s, prefill, source)
    while simulation.journal.remaining:
        assert simulation.agenda.next()
    assert simulation.journal.num(DONE) == 30
    assert not target.incoming


def test_a_drained_worker_that_sends_goes_when_its_pages_have_been_read(kit: Any) -> None:
    simulation = kit.simulation(kit.scenario(fleets=[split(kit, 2, 1, latency_ms=500)], **alike(10, 20)))
    prefill, _ = simulation.fleets[0].stages
    source = prefill.workers[0]
    (pool,) = source.scheduler.pools.values()
    now_s = until(simulation, lambda: source.num_lent == 2 and not source.held)
    prefill.drain(source, now_s)
    assert source.is_alive, "its pages are under way"
    while source.is_alive:
        assert simulation.agenda.next()
    assert pool.num_free == pool.num_pages


def test_a_drained_worker_goes_when_what_was_under_way_to_it_does_not_come(kit: Any) -> None:
    simulation = kit.simulation(kit.scenario(fleets=[split(kit, 1, 2, latency_ms=500)], **alike(1, 20)))
    (fleet,) = simulation.fleets
    prefill, decode = fleet.stages
    now_s = until(simulation, lambda: decode.num_requests == 1)
    place = int(decode.loads.requests.argmax())
    target = decode.workers[place]
    decode.drain(target, now_s)
    assert target.is_alive, "pages are under way to it"
    fleet.fail(now_s, prefill, prefill.workers[0])
    assert not target.is_alive


def test_more_devices_to_one_that_dies_are_fewer_deaths(kit: Any) -> None:
    found = []
    for devices in (1, 8):
        failures = {"days": 1e-5, "devices": devices}
        chosen = kit.scenario(failures=failures, loading={"gb_per_s": 1e3, "start_s": 0.01}, **alike(400, 40))
        outcome, report = kit.run(chosen)
        found.append(report["failures"] / outcome.lasted_s)
    assert found[0] == pytest.approx(2 / 0.864, rel=0.3), "two workers, each of one device"
    assert 4 < found[0] / found[1] < 16
