"""`ambidex bench prefix`: what is found again, and the floor."""

import json
from pathlib import Path

import pytest
from ambidex.bench.prefix import Plan
from ambidex.cli import run


def test_a_warm_prompt_finds_what_it_shares(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    small = ["--input-len=512", "--num-iters=2", "--hit-rate=0", "--hit-rate=0.75"]
    assert run(["bench", "prefix", "--shape", "tiny", *small, "--output-json", str(path)]) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    nothing, most = result["measurements"]
    assert [row["cold_cached_tokens"] for row in (nothing, most)] == [0, 0]
    assert nothing["warm_cached_tokens"] == 0
    assert most["warm_cached_tokens"] == most["shared_tokens"] == 384
    assert nothing["floor"] == 1
    assert 0 < most["floor"] < 0.6
    assert most["ratio"] < nothing["ratio"] * 1.1
    assert result["manifest"]["sites"]
    assert len(most["cold_s"]["all"]) == 2


def test_a_prompt_keeps_a_token_of_its_own() -> None:
    plan = Plan(input_len=100, hit_rates=(0.0, 0.5, 1.0))
    assert [plan.shared(rate) for rate in plan.hit_rates] == [0, 50, 99]
    steps = plan.engine_options()["roofline_steps"]
    assert steps == {"cold": [(0, 100)], "0.0": [(0, 100)], "0.5": [(50, 50)], "1.0": [(99, 1)]}


@pytest.mark.parametrize("rate", ["-0.1", "1.5", "half"])
def test_a_rate_that_is_none(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "prefix", "--shape", "tiny", f"--hit-rate={rate}"]) == 2
    assert "--hit-rate" in capsys.readouterr().err
