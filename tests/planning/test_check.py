"""Plan against actual on the embedded model: every line, a fault that shows, and what `generate --verbose` adds."""

import json
from pathlib import Path
from typing import Any

import pytest
from ambidex.bench import check as bench_check
from ambidex.bench.check import Plan, measure, summary
from ambidex.bench.shapes import SHAPES
from ambidex.cli import run
from ambidex.commands.plan_check import check, here, text
from ambidex.planning.calibration import Calibration
from ambidex.planning.efficiency import KINDS
from ambidex.runtime.errors import ConfigError
from ambidex.runtime.start import place

POINTS = {"axis": [1.0], "shares": [1.0]}


def overlay(gb_per_s: float = 20.0) -> Calibration:
    """Of the present CPU, with nothing in it but ceilings."""
    _, _, profile = place("cpu")
    return Calibration.model_validate_json(json.dumps({
        "profile": profile.name, "device": "this CPU", "date": "2026-11-25", "usable_gib": 4.0,
        "bandwidth_gb_per_s": gb_per_s, "matrix_tflops": {"bf16": 1e6, "fp32": 1e6},
        "launch_us": dict.fromkeys(KINDS, 0.0), "step_us": 0.0, "host_us": 0.0, "host_us_per_request": 0.0,
        "eager_us": 0.0, "beside_reading": 0.0, "read_share": 1.0, "curves": dict.fromkeys(KINDS, POINTS),
    }))  # fmt: skip


def plan(**changed: Any) -> Plan:
    few: dict[str, Any] = {"device": "cpu", "batches": (1, 2), "contexts": (32, 64), "prompts": (16,), "budget_s": 0.01}
    return Plan(**{**few, **changed})


def test_every_case_of_a_loaded_model_has_its_error() -> None:
    ticks: list[int] = []
    found = measure(plan(), overlay(), lambda: ticks.append(1))
    assert [(row.get("batch"), row.get("context", row.get("prompt"))) for row in found["rows"]] == [
        (1, 32), (1, 64), (2, 32), (2, 64), (None, 16),
    ]  # fmt: skip
    assert len(ticks) == 6
    for row in found["rows"]:
        assert row["measured_ms"] > 0
        assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1)
        assert row["error_at_ceilings"] == pytest.approx(row["at_ceilings_ms"] / row["measured_ms"] - 1)
    parts = found["memory"]["parts"]
    assert parts["weights"]["num_bytes"] == parts["weights"]["predicted"]
    assert parts["KV cache"]["num_bytes"] == parts["KV cache"]["predicted"]
    assert found["efficiency_source"] == "calibrated (this CPU, 2026-11-25)"
    shown = text({"model": "embedded", **found})
    assert "2 × 64" in shown
    assert "at each moment's ceilings" in shown


def test_a_model_too_short_for_any_case_is_refused() -> None:
    with pytest.raises(ConfigError, match="no case fits: the shortest has 100,000 tokens"):
        measure(plan(shape=SHAPES["tiny"], contexts=(200_000,), prompts=(100_000,)), overlay())


def test_the_calibration_of_another_device_is_told(tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    overlay().model_copy(update={"profile": "nvidia-b200"}).write(path)
    with pytest.raises(ConfigError, match="is no calibration of cpu-"):
        here("cpu", path)


def test_a_bandwidth_that_is_wrong_by_half_shows_in_the_error_of_the_plan_alone() -> None:
    right, wrong = (measure(plan(shape=SHAPES["tiny"], contexts=(64,), batches=(1,)), overlay(gb_per_s))
                    for gb_per_s in (20.0, 10.0))  # fmt: skip
    first, second = right["rows"][0], wrong["rows"][0]
    assert second["predicted_ms"] == pytest.approx(2 * first["predicted_ms"], rel=0.05)
    for row, planned in ((first, 20.0), (second, 10.0)):  # what was read in the run stands in for what was planned
        assert 0.2 < row["predicted_ms"] * planned / row["at_ceilings_ms"] / row["read_gb_per_s"] < 5


def test_cases_that_the_context_does_not_hold_are_left_out_and_told() -> None:
    found = measure(plan(shape=SHAPES["tiny"], contexts=(32, 5000), batches=(1,), prompts=(16,)), overlay())
    assert found["left_out"] == [[1, 5000]]
    assert len(found["rows"]) == 2
    assert "left out" in text({"model": "tiny", **found})


def test_the_summary_takes_errors_without_their_sign() -> None:
    rows = [{"error": error, "error_at_ceilings": None} for error in (-0.3, 0.1, 0.2)]
    found = summary(rows, {"error": 0.01})
    assert (found["median_error"], found["worst_error"]) == (0.2, 0.3)
    assert found["worst_error_at_ceilings"] is None
    assert found["memory_error"] == 0.01


def test_a_host_without_a_calibration_is_refused_before_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(bench_check, "built_at_random", lambda decided: pytest.fail("it was loaded"))
    with pytest.raises(ConfigError, match="run `ambidex calibrate`"):
        check(None, shape="tiny", device="cpu")


def test_the_command_runs_the_check_and_its_options_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "overlay.yaml"
    overlay().write(path)
    asked: list[Plan] = []

    def kept(plan: Plan, *_: object) -> dict[str, Any]:
        asked.append(plan)
        return {"rows": []}

    monkeypatch.setattr(bench_check, "measure", kept)
    assert run(["plan", "--check", "--shape", "tiny", "--device", "cpu", "--calibration", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "tiny", "rows": []}
    assert asked == [Plan(shape=SHAPES["tiny"], device="cpu")]
    assert run(["plan", "--shape", "tiny"]) == 2
    assert run(["plan", "--check", "--shape", "9b"]) == 2
    assert "--check" in capsys.readouterr().err


def test_generate_says_what_was_predicted_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "overlay.yaml"
    overlay().write(path)
    monkeypatch.setenv("AMBIDEX_CALIBRATION", str(path))
    asked = ["generate", "--prompt", "def add(", "--max-tokens", "4", "--ignore-eos", "--device", "cpu", "--verbose"]
    assert run(asked) == 0
    lines = capsys.readouterr().err.splitlines()[-4:]
    assert [line.split()[0] for line in lines] == ["plan", "first", "per", "memory"]
    assert all("predicted" in line and "measured" in line for line in lines[1:])
    monkeypatch.setenv("AMBIDEX_CALIBRATION", str(tmp_path / "none.yaml"))
    assert run(asked) == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith("plan       none: ")
