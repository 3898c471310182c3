"""What a plan answers: the smallest degree that holds what is asked, what is short of it in bytes, and the best."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ambidex.hwprofiles.reader import load
from ambidex.planning.answer import Answer, answer, missing_bytes
from ambidex.planning.calibration import read
from ambidex.planning.efficiency import KINDS, efficiency
from ambidex.planning.goals import best
from ambidex.planning.plan import deployed, plan, plan_row
from ambidex.planning.point import Load
from ambidex.planning.precision import precision
from ambidex.planning.question import Question
from ambidex.planning.shards import shard
from ambidex.planning.subject import Subject, sized_subject
from ambidex.runtime.errors import ConfigError

SUBJECT = sized_subject("8B")
ISSUE_KEYS = {
    "profile", "format", "fits", "min_tensor_parallel", "max_context_tokens", "max_concurrency", "ttft_ms", "tpot_ms",
    "tokens_per_s", "eur_per_million_tokens", "limit", "efficiency_source",
}  # fmt: skip


def asked(
    question: Question, profile: str = "nvidia-h100-sxm", subject: Subject = SUBJECT, form: str = "bf16"
) -> Answer:
    numbers = load(profile)
    stored = precision(form, numbers, question.kv_format)
    assert not isinstance(stored, str)
    return answer(subject, numbers, stored, question)


@pytest.mark.parametrize("concurrency", [1, 32, 200, 400])
def test_the_smallest_degree_that_holds_it(concurrency: int) -> None:
    found = asked(Question(context=8192, concurrency=concurrency))
    fits = [each.fits for each in found.degrees]
    assert fits == sorted(fits), "more devices hold no less"
    assert [each.tensor_parallel for each in found.degrees] == [1, 2, 4, 8]
    assert found.chosen is next(each for each in found.degrees if each.fits)
    for each in found.degrees:
        assert each.deployment is not None
        whole = concurrency * 8192
        assert each.fits == (each.deployment.kv_cache_tokens >= whole)
        assert each.held_share == pytest.approx(min(each.deployment.kv_cache_tokens / whole, 1))
    for less, more in pairwise(found.degrees):
        assert more.missing_bytes < less.missing_bytes


def test_what_is_missing_is_what_would_cure_it() -> None:
    """A device with exactly so many bytes more holds it, one with a page less does not."""
    question, profile = Question(context=16_384, concurrency=64), load("nvidia-h100-sxm")
    stored = precision("bf16", profile)
    assert not isinstance(stored, str)
    part, reached = shard(SUBJECT.config), efficiency(profile)
    missing = missing_bytes(part, profile, stored, question, reached)
    assert missing > 0
    usable = profile.memory.usable_gib or 0
    for more_gib, is_enough in ((missing / 0.92 / 2**30, True), (missing / 0.92 / 2**30 - 0.01, False)):
        larger = profile.on_device(usable_gib=usable + more_gib + 1e-6)
        assert (missing_bytes(part, larger, stored, question, reached) <= 0) == is_enough


def test_nothing_fits_and_says_by_how_much() -> None:
    found = asked(Question(context=131_072, concurrency=1024))
    assert found.chosen is None
    assert found.reason is not None
    assert (
        "GiB are missing on each of 8 × nvidia-h100-sxm for 1,024 requests of 131,072 tokens (it holds" in found.reason
    )


def test_the_longest_context_is_the_engines() -> None:
    assert asked(Question()).max_context_tokens == 131_072
    small = asked(Question(concurrency=1), subject=sized_subject("70B"), form="int4")
    assert small.chosen is not None
    assert small.max_context_tokens is not None
    assert small.chosen.tensor_parallel == 1
    assert 64_000 < small.max_context_tokens < 131_072


def test_only_the_degree_that_was_asked_for() -> None:
    found = asked(Question(tensor_parallel=2))
    assert [each.tensor_parallel for each in found.degrees] == [2]
    none = asked(Question(tensor_parallel=16))
    assert (none.chosen, none.reason) == (None, "16 devices asked for, its links join 8")
    assert asked(Question(tensor_parallel=16), "nvidia-gb200").chosen is not None
    with pytest.raises(ConfigError, match="3 ranks do not divide"):
        asked(Question(tensor_parallel=3))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"concurrency": 0}, "--concurrency is 0"),
        ({"context": -1}, "--context is -1"),
        ({"tensor_parallel": 0}, "--tensor-parallel is 0"),
        ({"max_num_seqs": 0}, "--max-num-seqs is 0"),
        ({"token_budget": 0}, "--token-budget is 0"),
        ({"load": Load(0, 5)}, "--input-len is 0"),
        ({"load": Load(5, -3)}, "--output-len is -3"),
        ({"load_gb_per_s": 1e-310}, "--load-gb-per-s is 1e-310"),
        ({"load_gb_per_s": 0.0}, "--load-gb-per-s is 0"),
        ({"load_gb_per_s": float("nan")}, "--load-gb-per-s is nan"),
        ({"load_gb_per_s": float("inf")}, "--load-gb-per-s is inf"),
        ({"context": 100}, "--context is 100, but requests grow to 1,200"),
        ({"concurrency": 9, "max_num_seqs": 8}, "--concurrency is 9, but --max-num-seqs lets 8"),
    ],
)
def test_a_senseless_question(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Question(**fields)


def test_a_step_gives_no_more_requests_a_token_than_it_has() -> None:
    degree = asked(Question(token_budget=16, concurrency=64, tensor_parallel=2)).degrees[0]
    assert degree.at is not None
    assert [each.batch for each in degree.points] == [1, 8, 16]
    assert degree.at.batch == 16
    assert "memory" not in {degree.at.limit, degree.points[-1].limit}


def test_requests_longer_than_the_model() -> None:
    with pytest.raises(ConfigError, match="llama 8B has 131,072 positions"):
        plan(SUBJECT, [load("nvidia-h100-sxm")], ["bf16"], Question(context=200_000))


def test_a_row_has_every_key_and_its_parts_agree() -> None:
    row = plan_row(SUBJECT, load("nvidia-h200-sxm"), "bf16", Question(load_gb_per_s=2.0))
    assert row.keys() >= ISSUE_KEYS
    ledger, points = row["ledger"], row["batches"]
    parts = ("weights", "kv_cache", "requests", "workspace", "graphs", "communication", "unused")
    assert ledger["budget"] == int(0.92 * int((load("nvidia-h200-sxm").memory.usable_gib or 0) * 2**30))
    assert sum(ledger[part] for part in parts) == ledger["budget"]
    assert row["load_s"] == pytest.approx(2 * SUBJECT.num_parameters / 2e9, rel=1e-3)
    assert [each["batch"] for each in points] == [1, 8, 32, 128, 512]
    at = next(each for each in points if each["batch"] == row["concurrency"])
    assert {key: row[key] for key in at if key in ISSUE_KEYS} == {key: at[key] for key in at if key in ISSUE_KEYS}
    assert row["max_concurrency"] * -(-1200 // 64) * 64 <= ledger["kv_cache_tokens"]


def test_a_checkpoint_of_known_size_is_what_is_loaded() -> None:
    known = replace(SUBJECT, checkpoint_bytes=5 * 10**9)
    loads = {form: plan_row(known, load("nvidia-h200-sxm"), form, Question())["load_s"] for form in ("bf16", "fp8")}
    assert loads["bf16"] == 5 / 1.25
    assert loads["fp8"] > 8 / 1.25


@pytest.mark.parametrize("form", ["bf16", "fp4"])
def test_what_cannot_be_is_a_row_with_its_reason(form: str) -> None:
    for name in ("cpu-avx512", "nvidia-h100-sxm" if form == "fp4" else "cpu-arm"):
        row = plan_row(SUBJECT, load(name), form, Question())
        assert row.keys() >= ISSUE_KEYS
        assert (row["fits"], row["tokens_per_s"]) == (False, None)
        assert name in row["reason"]
        assert deployed(SUBJECT, load(name), form, Question()) is None


def test_the_best_for_each_goal_is_the_best_of_all_rows() -> None:
    names = ["nvidia-h100-sxm", "amd-mi300x", "intel-gaudi3"]
    rows = plan(SUBJECT, map(load, names), ["bf16", "fp8"], Question())
    runnable = names[:2]
    found = best(rows, runnable)
    kept = [(row, degree) for row in rows if row["profile"] in runnable for degree in row["degrees"] if degree["fits"]]
    first, last = ([(row, each, each["batches"][at]) for row, each in kept] for at in (0, -1))
    assert found["latency"]["tpot_ms"] == min(point["tpot_ms"] for _, _, point in first)
    assert found["cost"]["eur_per_million_tokens"] == min(point["eur_per_million_tokens"] for _, _, point in last)
    rate = found["throughput"]["tokens_per_s"] / found["throughput"]["num_devices"]
    assert rate == max(point["tokens_per_s"] / each["tensor_parallel"] for _, each, point in last)
    assert {row["profile"] for row in found.values()} <= set(runnable)
    assert best(rows, []) == {}


def test_a_calibrated_machine_is_planned_by_what_was_measured(tmp_path: Path) -> None:
    flat = {"axis": [1.0], "shares": [0.5]}
    overlay = {
        "profile": "cpu-avx512", "device": "a host", "date": "2026-01-02", "usable_gib": 60.0,
        "bandwidth_gb_per_s": 50.0, "matrix_tflops": {"bf16": 1.0}, "launch_us": dict.fromkeys(KINDS, 1.0),
        "step_us": 0.0, "host_us": 100.0, "host_us_per_request": 1.0, "eager_us": 0.0, "beside_reading": 0.5,
        "read_share": 0.5,
        "curves": dict.fromkeys(KINDS, flat),
    }  # fmt: skip
    path = tmp_path / "overlay.yaml"
    path.write_text(json.dumps(overlay), encoding="utf-8")
    found = read(path)
    row = plan_row(SUBJECT, load("cpu-avx512"), "bf16", Question(concurrency=4), found)
    assert (row["fits"], row["efficiency_source"]) == (True, "calibrated (a host, 2026-01-02)")
    assert [degree["tensor_parallel"] for degree in row["degrees"]] == [1]
    assert row["batches"][0]["tpot_ms"] > 2 * 8.03e9 / 25e9 * 1e3 - 50
    rows = plan(SUBJECT, [load("cpu-avx512"), load("cpu-avx2")], ["bf16", "fp8"], Question(concurrency=4),
                {"cpu-avx512": found})  # fmt: skip
    assert [row["fits"] for row in rows] == [True, False, False, False]
    assert rows[1]["reason"].startswith("cpu-avx512 multiplies no fp8")


def test_of_one_degree_that_is_asked_for_nobody_knows_whether_it_is_the_smallest() -> None:
    row = plan_row(SUBJECT, load("nvidia-h100-sxm"), "bf16", Question(concurrency=1, tensor_parallel=8))
    assert (row["fits"], row["num_devices"], row["min_tensor_parallel"]) == (True, 8, None)


def test_a_step_is_as_long_as_the_engines_where_nothing_is_asked() -> None:
    host, device = load("cpu-avx512"), load("nvidia-h100-sxm")
    assert [Question().on(each).token_budget for each in (host, device)] == [512, 2048]
    assert Question(token_budget=64).on(host).demand.token_budget == 64
