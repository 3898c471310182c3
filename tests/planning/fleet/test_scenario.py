"""Scenarios: those that are shipped can be run, and what is wrong in a file is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ambidex.planning.fleet import build
from ambidex.planning.fleet.footprint import check_footprint, footprint
from ambidex.planning.fleet.scenario import names, read_scenario
from ambidex.runtime.errors import ConfigError, OutOfMemory

GOOD = """
about: a test
requests: 10
traffic:
  arrivals: {kind: poisson, rate_per_s: 5}
  input_tokens: {kind: constant, tokens: 100}
  output_tokens: {kind: constant, tokens: 10}
fleets:
  - name: one
    params: 8B
    workers:
      - {profile: nvidia-h100-sxm, precision: fp8, workers: 1}
slo: {ttft_ms: 500, tpot_ms: 50}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", names())
def test_what_is_shipped_is_planned(name: str) -> None:
    scenario, _ = read_scenario(name)
    for fleet in scenario.fleets:
        for workers in fleet.workers:
            assert build.planned(fleet, workers).kv_cache_tokens >= workers.max_model_len


def test_the_articles_phases_are_shipped() -> None:
    one, two, three = (read_scenario(f"phase-{number}")[0] for number in (1, 2, 3))
    (workers,) = one.fleets[0].workers
    assert (workers.tensor_parallel, workers.precision, workers.workers) == (2, "fp8", 1)
    (workers,) = two.fleets[0].workers
    assert (workers.workers, workers.most, two.fleets[0].routing) == (3, 5, "least_pending_tokens")
    assert two.fleets[0].scaling is not None
    assert two.fleets[0].scaling.prewarm_period_s is not None
    assert len(three.fleets) > 1
    assert any(fleet.link for fleet in three.fleets)


def test_the_million_is_what_it_says() -> None:
    scenario, _ = read_scenario("million")
    assert scenario.requests == 10**6
    (fleet,) = scenario.fleets
    assert sum(each.workers for each in fleet.workers) == 1000
    assert len({each.profile for each in fleet.workers}) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rate_per_s: 5", "rate_per_s: -5", "traffic.arrivals.rate_per_s: Input should be greater than 0, not '-5'"),
        ("rate_per_s: 5", "rate_per_s: .nan", "traffic.arrivals.rate_per_s: Input should be"),
        ("kind: poisson", "kind: poison", "traffic.arrivals: .*'poisson'"),
        ("  output_tokens: {kind: constant, tokens: 10}\n", "", "traffic needs input_tokens and output_tokens"),
        ("requests: 10", "requests: 0", "requests: Input should be greater than or equal to 1, not '0'"),
        ("requests: 10\n", "", "requests is not given: how many"),
        ("about: a test", "abuot: a test", r"about: Field required \(and 1 more\)"),
        ("workers: 1}", "workers: 1, speed: 3}", "fleets.0.workers.0.speed: Extra inputs are not permitted"),
        ("workers: 1}", "workers: 3, max_workers: 2}", "fleets.0.workers.0: max_workers 2 is below workers 3"),
        ("workers: 1}", "workers: 3, max_workers: 4}", "fleets.0: max_workers is given, and no scaling"),
        ("workers: 1}", "workers: 1, role: decode}", "fleets.0: workers are decode: all serve, or some prefill"),
        ("    params: 8B\n", "", "fleets.0: give a model"),
        ("    params: 8B", "    params: 8B\n    routing: least", "fleets.0.routing: unknown routing policy 'least'"),
        ("slo:", "failures: {at: [{time_s: 1, place: 3}]}\nslo:", "failures.at names place 3 of one, which has 1"),
        ("slo:", "failures: {at: [{time_s: 1, fleet: two}]}\nslo:", "failures.at names the fleet 'two'"),
        ("slo:", "failures: {days: -1}\nslo:", "failures.days: Input should be greater than 0"),
        (GOOD, "- a\n- b", "is no mapping of fields"),
        (GOOD, "a: [", r"mine.yaml:1: no valid YAML"),
        (GOOD, "a: !!python/object:os.system {}", "no valid YAML"),
        (GOOD, "a: " + "[" * 5000, "no valid YAML: maximum recursion"),
        (GOOD, "a: " + "1" * 5000, "no valid YAML: Exceeds the limit"),
        (GOOD, "a: 2023-99-99", "no valid YAML: month must be"),
        ("rate_per_s: 5", "rate_per_s: 1.0e-300", "traffic.arrivals.rate_per_s: Input should be 1e-09 or more"),
        ("requests: 10", f"requests: {10**30}", "requests: Input should be less than or equal to 100000000"),
        (
            "tokens: 10}",
            f"tokens: {10**30}" + "}",
            "output_tokens.tokens: Input should be less than or equal to 16777216",
        ),
        (
            "kind: poisson, rate_per_s: 5",
            "kind: bursts, calm_per_s: 1e-9, burst_per_s: 1e-9, mean_calm_s: 1, mean_burst_s: 1",
            "fewer than 0.01 requests",
        ),
        ("slo:", "    link: {gb_per_s: 1}\nslo:", "fleets.0: a link is given, and no prefill and decode"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=said) as caught:
        read_scenario(file=written(tmp_path, GOOD.replace(old, new)))
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_scenario_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown scenario 'phase1': did you mean phase-1"):
        read_scenario("phase1")
    with pytest.raises(ConfigError, match=r"cannot read the scenario .*gone\.yaml"):
        read_scenario(file=Path("gone.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        ("params: 8B", "params: 405B", OutOfMemory, "fleet one on 1 × nvidia-h100-sxm: "),
        ("precision: fp8", "precision: fp4", ConfigError, "fleet one: nvidia-h100-sxm multiplies no fp4"),
        ("precision: fp8", "precision: fp7", ConfigError, "format is 'fp7'"),
        ("nvidia-h100-sxm", "nvidia-h100", ValueError, "unknown profile 'nvidia-h100'; did you mean nvidia-h100-sxm"),
        ("precision: fp8", "precision: fp8, tensor_parallel: 3", ConfigError, "3"),
    ],
)
def test_a_fleet_that_cannot_be_is_named(tmp_path: Path, old: str, new: str, error: Any, said: str) -> None:
    scenario, folder = read_scenario(file=written(tmp_path, GOOD.replace(old, new)))
    with pytest.raises(error, match=said):
        build.build(scenario, folder)


def test_a_trace_beside_its_scenario_is_found_and_gives_the_number(tmp_path: Path) -> None:
    rows = "".join(f"2023-11-16 18:15:{second:02}.5,{90 + second},{1 + second}\n" for second in range(12))
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    text = GOOD.replace("requests: 10\n", "").replace("kind: poisson, rate_per_s: 5", "kind: trace, file: t.csv")
    for line in ("  input_tokens: {kind: constant, tokens: 100}\n", "  output_tokens: {kind: constant, tokens: 10}\n"):
        text = text.replace(line, "")
    outcome = build.build(*read_scenario(file=written(tmp_path, text))).run()
    assert outcome.journal.generated.tolist() == list(range(1, 13))
    assert outcome.workload.arrival_s.tolist() == list(range(12))


@pytest.mark.parametrize(
    ("old", "new"), [("workers: 1}", "workers: 1000000}"), ("requests: 10", "requests: 100000000")]
)
def test_what_this_machine_cannot_hold_is_refused_with_the_bytes(tmp_path: Path, old: str, new: str) -> None:
    scenario, _ = read_scenario(file=written(tmp_path, GOOD.replace(old, new)))
    replicas = build.plan_replicas(scenario)
    with pytest.raises(ConfigError, match=r"workers and [\d,]+ requests take [\d,.]+ GiB of this machine's 16.0 once"):
        check_footprint(scenario, replicas, scenario.requests or 0, limit_bytes=16 * 2**30)


def test_a_thousand_workers_are_not_refused() -> None:
    scenario, _ = read_scenario("million")
    wanted = footprint(scenario, build.plan_replicas(scenario), scenario.requests or 0)
    assert 2 * 2**30 < wanted < 4 * 2**30
    replicas, requests = build.plan_replicas(scenario), scenario.requests or 0
    check_footprint(scenario, replicas, requests, limit_bytes=int(wanted) + 1)
    with pytest.raises(ConfigError, match="simulate fewer"):
        check_footprint(scenario, replicas, requests, limit_bytes=int(wanted) - 1)


def test_workers_that_scaling_may_rent_are_counted() -> None:
    scenario, _ = read_scenario("phase-2")
    replicas = build.plan_replicas(scenario)
    (fleet,) = scenario.fleets
    few = fleet.model_copy(
        update={"workers": tuple(each.model_copy(update={"max_workers": None}) for each in fleet.workers)}
    )
    without = footprint(scenario.model_copy(update={"fleets": (few,)}), replicas, 0)
    assert footprint(scenario, replicas, 0) == pytest.approx(without * 5 / 3)


def test_a_run_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    scenario, folder = read_scenario(file=written(tmp_path, GOOD.replace("workers: 1}", "workers: 100000000}")))
    with pytest.raises(ConfigError, match="simulate fewer workers or requests"):
        build.build(scenario, folder)
