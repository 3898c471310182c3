"""Steps that are foreseen and taken in one call: the same seed gives the same report as step by step, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ambidex.hwprofiles.reader import load
from ambidex.ops.types import Site
from ambidex.planning.deployment import Deployment, deploy
from ambidex.planning.fleet import worker
from ambidex.planning.fleet.build import assemble
from ambidex.planning.fleet.measures import measures
from ambidex.planning.memory import Demand
from ambidex.planning.precision import precision
from ambidex.planning.step_time import StepTime
from ambidex.planning.subject import sized_subject
from ambidex.runtime.engine import Engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_BEAT_S = 0.25
_POISSON = {"kind": "poisson", "rate_per_s": 10}
_BURSTS = {"kind": "bursts", "calm_per_s": 1, "burst_per_s": 60, "mean_calm_s": 2, "mean_burst_s": 0.3}
_SCALING = {"requests_per_worker": 3, "every_s": 0.5, "calm_s": 1.0}
_DEATHS = st.lists(
    st.builds(
        lambda beats, stage, place: {"time_s": beats * _BEAT_S, "stage": stage, "place": place},
        st.integers(0, 40), st.integers(0, 1), st.integers(0, 1),
    ),
    max_size=3,
)  # fmt: skip


def step_time(window: int) -> StepTime:
    """Of a model, half of whose layers see so many keys."""
    profile = load("nvidia-h200-sxm")
    stored = precision("fp8", profile)
    assert not isinstance(stored, str)
    found = deploy(sized_subject("8B"), profile, stored, 1, Demand(4096))
    assert isinstance(found, Deployment)
    sites: list[Site] = []
    for site in found.part.sites:
        half = site.num_layers // 2 if site.group else 0
        sites.append(replace(site, num_layers=site.num_layers - half))
        if site.group:
            sites.append(replace(site, num_layers=half, group=replace(site.group, window=window)))
    return StepTime(tuple(sites), profile, stored, found.efficiency)


TIMES: dict[str, Any] = {"8B": step_time(0), "windowed": step_time(100)}


def told(kit: Any, chosen: Any, replica: Any, *, in_beats: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """All that a run tells: its report, and the record of each request."""
    with monkeypatch.context() as patch:
        patch.setattr(worker, "MOST_FORESEEN", most)
        workload = kit.simulation(chosen).workload
        if in_beats:
            workload = replace(workload, arrival_s=np.round(workload.arrival_s / _BEAT_S) * _BEAT_S)
        outcome = assemble(chosen, [[replica for _ in fleet.workers] for fleet in chosen.fleets], workload).run()
    journal = outcome.journal
    columns = (journal.started_s, journal.first_s, journal.ended_s, journal.generated, journal.cached, journal.attempts)
    return json.dumps(measures(chosen, outcome)), [each.tolist() for each in np.nan_to_num(columns, nan=-1.0)]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000), is_split=st.booleans(), deaths=_DEATHS, is_replaced=st.booleans(),
    arrivals=st.sampled_from([_POISSON, _BURSTS]), pages=st.sampled_from([24, 40, 256]),
    step=st.sampled_from(["beats", "round", *TIMES]), is_scaled=st.booleans(), prefix=st.sampled_from([0, 0.7]),
    most=st.sampled_from([3, 256]), latency_ms=st.sampled_from([0.0, 1e3 * _BEAT_S]),
)  # fmt: skip
def test_the_same_report_as_step_by_step(
    kit: Any, monkeypatch: pytest.MonkeyPatch, seed: int, is_split: bool, deaths: list[Any], is_replaced: bool,
    arrivals: Any, pages: int, step: str, is_scaled: bool, prefix: float, most: int, latency_ms: float,
) -> None:  # fmt: skip
    """In beats everything happens at the same times as something else does."""
    deaths = [{**each, "stage": each["stage"] if is_split else 0} for each in deaths]
    traffic = {
        "arrivals": arrivals,
        "input_tokens": {"kind": "uniform", "min_tokens": 1, "max_tokens": 200},
        "output_tokens": {"kind": "uniform", "min_tokens": 1, "max_tokens": 150},
        "prefixes": {"groups": 2, "tokens": 40, "share": prefix},
    }
    spec = {**(kit.SPLIT if is_split else kit.scenario().fleets[0].model_dump()), "routing": "least_requests"}
    if is_scaled and not is_split:
        spec |= {"workers": [{"profile": "x", "workers": 1, "max_workers": 3}], "scaling": _SCALING}
    if is_split:
        spec |= {"link": {"gb_per_s": 1.0, "latency_ms": latency_ms}}
    chosen = kit.scenario(
        seed=seed, fleets=[spec], traffic=traffic, failures={"at": deaths, "replaced": is_replaced},
        loading={"gb_per_s": 1.0, "start_s": _BEAT_S},
    )  # fmt: skip
    times = {"beats": kit.Linear(_BEAT_S, 0.0, 0.0), "round": kit.Linear(), **TIMES}
    replica = kit.Round(step_time=times[step], kv_cache_tokens=16 * pages, kv_bytes_per_token=10**9 // 64)
    together, singly = (
        told(kit, chosen, replica, in_beats=step == "beats", most=each, monkeypatch=monkeypatch) for each in (most, 0)
    )
    assert together == singly


def test_a_long_answer_takes_few_calls(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer's steps the first reads the prompt and the last ends it; those between the other one cuts in two."""
    calls: list[int] = []
    repeat = Engine.repeat

    def noted(engine: Engine, num_steps: int, token: int) -> None:
        calls.append(num_steps)
        repeat(engine, num_steps, token)

    monkeypatch.setattr(Engine, "repeat", noted)
    traffic = {
        "arrivals": {"kind": "poisson", "rate_per_s": 0.5},
        "input_tokens": {"kind": "constant", "tokens": 50},
        "output_tokens": {"kind": "constant", "tokens": 400},
    }
    one = [{"name": "a", "params": "8B", "workers": [{"profile": "x", "workers": 1}]}]
    outcome, report = kit.run(kit.scenario(requests=2, traffic=traffic, fleets=one))
    arrived_s = outcome.workload.arrival_s
    assert arrived_s[1] < outcome.journal.ended_s[0], "the second comes while the first is answered"
    assert report["steps"] - sum(calls) == 4
    assert len(calls) == 3
    (workers,) = report["fleets"][0]["workers"]
    busy_s = workers["utilisation"] * workers["rented_s"]
    assert busy_s == pytest.approx(outcome.lasted_s - arrived_s[0]), "from the first arrival to the last token"
