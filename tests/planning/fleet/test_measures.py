"""The report: percentiles, goodput, cost and use are what the journal says; the simulation agrees with the plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ambidex.hwprofiles.reader import load
from ambidex.planning.deployment import Deployment, deploy
from ambidex.planning.fleet.measures import over_time, percentiles
from ambidex.planning.fleet.sections import facts, sections
from ambidex.planning.memory import Demand
from ambidex.planning.point import Load, point
from ambidex.planning.precision import Precision, precision
from ambidex.planning.report import page
from ambidex.planning.subject import sized_subject


def test_figures_are_the_journals(kit: Any) -> None:
    outcome, report = kit.run(kit.scenario())
    journal, workload = outcome.journal, outcome.workload
    ttft_ms = 1e3 * (journal.first_s - workload.arrival_s)
    assert report["ttft_ms"]["p90"] == pytest.approx(np.percentile(ttft_ms, 90))
    longer = workload.output_tokens > 1
    tpot_ms = 1e3 * (journal.ended_s - journal.first_s)[longer] / (workload.output_tokens[longer] - 1)
    assert report["tpot_ms"]["mean"] == pytest.approx(tpot_ms.mean())
    assert report["output_tokens_per_s"] == pytest.approx(workload.output_tokens.sum() / outcome.lasted_s)
    assert report["eur"] == pytest.approx(2 * outcome.lasted_s / 3600 * 3.6)
    assert report["eur_per_million_tokens"] == pytest.approx(1e6 * report["eur"] / workload.output_tokens.sum())
    (workers,) = report["fleets"][0]["workers"]
    assert sum(workers["over_time"]["workers"]) * workers["over_time"]["stretch_s"] == pytest.approx(
        workers["rented_s"]
    )
    assert 0 < workers["utilisation"] <= 1
    assert report["mean_batch"] > 1


def test_goodput_counts_who_keeps_both_limits(kit: Any) -> None:
    _, strict = kit.run(kit.scenario(slo={"ttft_ms": 30, "tpot_ms": 16}))
    outcome, report = kit.run(kit.scenario(slo={"ttft_ms": 1e9, "tpot_ms": 1e9}))
    assert report["goodput"]["share"] == 1.0
    assert 0 < strict["goodput"]["share"] < 1
    medians = {name: report[name]["p50"] for name in ("ttft_ms", "tpot_ms")}
    limits = (medians, {**medians, "ttft_ms": 1e9}, {**medians, "tpot_ms": 1e9})
    found = [kit.run(kit.scenario(slo=each))[1]["goodput"]["share"] for each in limits]
    assert 0 < found[0] < min(found[1:]) <= max(found[1:]) < 1
    assert report["goodput"]["requests_per_s"] == pytest.approx(40 / outcome.lasted_s)


def test_percentiles_of_nothing_are_unknown() -> None:
    assert percentiles(np.empty(0)) == {"mean": None, "p50": None, "p90": None, "p99": None}


def test_intervals_are_laid_over_stretches() -> None:
    found = over_time([(0.0, 4.0), (1.5, 2.5)], 1.0, 4.0)
    assert found.tolist() == [1.0, 1.5, 1.5, 1.0, 0.0]


def test_no_price_no_cost(kit: Any) -> None:
    _, report = kit.run(kit.scenario(), kit.Round(eur_per_hour=None))
    assert report["eur"] is None
    assert ("cost", "unknown EUR, unknown a million new tokens") in facts(report)


def test_the_page_says_what_the_report_does(kit: Any) -> None:
    _, report = kit.run(kit.scenario(fleets=[{**kit.SPLIT, "name": "<b>"}], failures={"at": [{"time_s": 0.5}]}))
    text = page("a test", sections(report))
    assert text.count("<svg") == 4
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert "GB of KV over the links" in text
    assert "1 workers died" in text


def test_a_full_worker_makes_the_tokens_of_the_plan(kit: Any) -> None:
    """Sixteen places that are never empty: the closed form of `planning.point`, within a tenth."""
    profile = load("nvidia-h100-sxm")
    form = precision("bf16", profile)
    assert isinstance(form, Precision)
    found = deploy(sized_subject("8B"), profile, form, 1, Demand(context=1024, max_num_seqs=16))
    assert isinstance(found, Deployment)
    chosen = kit.scenario(
        requests=300,
        traffic={
            "arrivals": {"kind": "poisson", "rate_per_s": 10_000},
            "input_tokens": {"kind": "constant", "tokens": 400},
            "output_tokens": {"kind": "constant", "tokens": 100},
        },
        fleets=[{"name": "a", "params": "8B", "workers": [{"profile": "x", "workers": 1}]}],
    )  # fmt: skip
    _, report = kit.run(chosen, found)
    planned = point(found, 16, Load(400, 100))
    assert report["output_tokens_per_s"] == pytest.approx(planned.tokens_per_s, rel=0.1)


def test_the_highest_rate_is_kept_and_a_higher_one_is_not(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    from ambidex.planning.fleet import capacity

    monkeypatch.setattr(capacity, "plan_replicas", lambda scenario: [[kit.Round()]])
    chosen = kit.scenario(requests=150, slo={"ttft_ms": 200, "tpot_ms": 40})
    found = capacity.capacity(chosen, Path(), 0.9)
    assert found is not None
    assert found["goodput"]["share"] >= 0.9
    factor = found["arrivals_per_s"] / kit.run(chosen)[1]["arrivals_per_s"]
    assert kit.run(capacity.hurried(chosen, factor))[1]["goodput"]["share"] >= 0.9
    assert kit.run(capacity.hurried(chosen, 1.1 * factor))[1]["goodput"]["share"] < 0.9
    assert capacity.capacity(kit.scenario(slo={"ttft_ms": 1, "tpot_ms": 1}), Path(), 0.9) is None


def test_a_report_of_all_at_once_is_no_longer_than_others(kit: Any) -> None:
    """What arrives within a microsecond is served for seconds."""
    traffic = {**kit.scenario().traffic.model_dump(), "arrivals": {"kind": "poisson", "rate_per_s": 1e9}}
    outcome, report = kit.run(kit.scenario(traffic=traffic))
    (workers,) = report["fleets"][0]["workers"]
    over_time = workers["over_time"]
    assert 60 <= len(over_time["utilisation"]) <= 242
    assert max(over_time["utilisation"]) <= 1 + 1e-9, "a step that is longer than a stretch lies in several"
    assert over_time["stretch_s"] * len(over_time["utilisation"]) >= outcome.lasted_s
    seconds = sum(a * b for a, b in zip(over_time["utilisation"], over_time["workers"], strict=True))
    total = workers["utilisation"] * workers["rented_s"]
    assert seconds * over_time["stretch_s"] == pytest.approx(total)
