"""Workers that come and go: a new one serves when it has loaded, history brings it earlier, an idle one goes."""

from __future__ import annotations

from typing import Any

import pytest

_WAVES = {"kind": "waves", "rate_per_s": 12, "swing": 0.9, "period_s": 60}


def scaled(kit: Any, **scaling: Any) -> Any:
    """Two and a half periods of a load that one worker holds at its low and not at its high; loading takes 10 s."""
    fields = {"requests_per_worker": 4, "every_s": 2, "calm_s": 6, **scaling}
    return kit.scenario(
        requests=1800,
        traffic={
            "arrivals": _WAVES,
            "input_tokens": {"kind": "constant", "tokens": 100},
            "output_tokens": {"kind": "constant", "tokens": 40},
        },
        fleets=[
            {
                "name": "a",
                "params": "8B",
                "workers": [{"profile": "x", "workers": 1, "max_workers": 6}],
                "scaling": fields,
            }
        ],
        loading={"gb_per_s": 0.125, "start_s": 2},
    )


def workers(report: dict[str, Any]) -> list[float]:
    found: list[float] = report["fleets"][0]["workers"][0]["over_time"]["workers"]
    return found


def test_workers_follow_the_load_within_their_places(kit: Any) -> None:
    _, report = kit.run(scaled(kit))
    rented = workers(report)
    assert report["requests"]["done"] == 1800
    assert max(rented) <= 6 + 1e-9
    assert max(rented) > 2
    assert min(rented[20:-5]) < max(rented) - 1, "and it goes again"
    cost = report["eur"]
    assert cost == pytest.approx(report["fleets"][0]["workers"][0]["rented_s"] / 3600 * 3.6)
    assert cost < 6 * report["lasted_s"] / 3600 * 3.6, "fewer than all all the time"


def test_history_brings_workers_before_they_are_needed(kit: Any) -> None:
    _, reacting = kit.run(scaled(kit))
    _, foreseeing = kit.run(scaled(kit, prewarm_period_s=60))
    assert foreseeing["ttft_ms"]["p99"] < 0.8 * reacting["ttft_ms"]["p99"]
    assert foreseeing["goodput"]["share"] > reacting["goodput"]["share"]


def test_a_replacement_serves_only_after_its_load(kit: Any) -> None:
    """1 GB over 0.125 GB/s and 2 s of start: for 10 s one of the two places is empty, and rented."""
    chosen = kit.scenario(requests=400, loading={"gb_per_s": 0.125, "start_s": 2}, failures={"at": [{"time_s": 3.0}]})
    simulation = kit.simulation(chosen)
    (stage,) = simulation.fleets[0].stages
    came: list[float] = []
    stage.came.append(lambda now_s, worker: came.append(now_s))
    simulation.run()
    assert came == [13.0]


def test_a_drained_worker_ends_what_it_has(kit: Any) -> None:
    simulation = kit.simulation(kit.scenario(requests=200))
    (stage,) = simulation.fleets[0].stages
    leaving = stage.workers[0]
    simulation.agenda.at(2.0, lambda now_s: stage.drain(leaving, now_s))
    held: list[int] = []
    simulation.agenda.at(2.0, lambda now_s: held.append(len(leaving.held)))
    outcome = simulation.run()
    assert held[0] > 0
    assert not leaving.held
    assert not leaving.is_alive
    assert outcome.journal.done.all()
    assert (outcome.journal.attempts == 1).all()
