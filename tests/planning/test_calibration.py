"""Overlays: what a file must hold, what a profile becomes under one, and a small one measured on this machine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ambidex.bench import calibrate
from ambidex.bench.shapes import SHAPES
from ambidex.cli import run
from ambidex.hwprofiles.reader import load
from ambidex.hwprofiles.records import RateName
from ambidex.planning.calibration import Calibration, default_path, find, read, with_ceilings
from ambidex.planning.deployment import Deployment, deploy
from ambidex.planning.efficiency import KINDS, ceilings
from ambidex.planning.memory import Demand
from ambidex.planning.point import decode_step
from ambidex.planning.precision import Precision, precision
from ambidex.planning.subject import sized_subject
from ambidex.runtime.errors import ConfigError

POINTS = {"axis": [1.0, 8.0], "shares": [0.5, 0.7]}
MICROS = dict.fromkeys(KINDS, 2.0)


def curved(points: dict[str, list[float]]) -> dict[str, Any]:
    return dict.fromkeys(KINDS, points)


def overlay(**changed: Any) -> dict[str, Any]:
    return {
        "profile": "cpu-avx512", "device": "a CPU", "date": "2026-11-25", "usable_gib": 16.0,
        "bandwidth_gb_per_s": 50.0, "matrix_tflops": {"bf16": 1.0}, "launch_us": MICROS, "step_us": 0.0,
        "host_us": 100.0, "host_us_per_request": 1.0, "eager_us": 5.0, "beside_reading": 0.0, "read_share": 1.0,
        "curves": curved(POINTS), **changed,
    }  # fmt: skip


def written(folder: Path, content: object) -> Path:
    path = folder / "overlay.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in overlay().items() if key != name}


BAD: dict[str, tuple[object, str]] = {
    "no YAML": ("a: [1", "is not valid YAML"),
    "no mapping": ("- 1", "should be"),
    "empty": ("", "should be"),
    "too long": ("# " + "x" * 70_000, "no calibration"),
    "missing": (without("host_us"), "host_us: is missing"),
    "unknown": (overlay(hosts_us=1.0), "hosts_us: is not a field"),
    "a number as text": (overlay(bandwidth_gb_per_s="50"), "bandwidth_gb_per_s: "),
    "what a terminal obeys": (overlay(device="a CPU \x1b[2J!"), "device: "),
    "below 0": (overlay(step_us=-1.0), "step_us: "),
    "not finite": (overlay(bandwidth_gb_per_s=float("nan")), "bandwidth_gb_per_s: "),
    "no day": (overlay(date="2026-11-31"), "date: "),
    "no date": (overlay(date="yesterday"), "date: "),
    "no rate": (overlay(matrix_tflops={}), "names no rate"),
    "a falling axis": (overlay(curves=curved({"axis": [8.0, 1.0], "shares": [0.5, 0.7]})), "has to rise"),
    "a share too few": (overlay(curves=curved({"axis": [1.0, 8.0], "shares": [0.5]})), "give as many"),
    "a share of 0": (overlay(curves=curved({"axis": [1.0], "shares": [0.0]})), "shares.0: "),
    "a kind too few": (overlay(launch_us={"product": 1.0}), "launch_us.decode_attention: is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_overlay_is_one_line_with_file_and_field(name: str, tmp_path: Path) -> None:
    content, wanted = BAD[name]
    with pytest.raises(ConfigError) as refused:
        read(written(tmp_path, content))
    line = str(refused.value)
    assert line.startswith(f"{tmp_path}/overlay.yaml: ")
    assert wanted in line
    assert "run `ambidex calibrate` again" in line
    assert "\n" not in line


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot write"):
        Calibration.model_validate_json(json.dumps(overlay())).write(Path("/proc/none.yaml"))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    first = read(written(tmp_path, overlay()))
    first.write(tmp_path / "deep" / "copy.yaml")
    assert read(tmp_path / "deep" / "copy.yaml") == first
    assert first.source == "calibrated (a CPU, 2026-11-25)"


def test_a_profile_has_the_ceilings_of_its_overlay_and_no_others(tmp_path: Path) -> None:
    found = read(written(tmp_path, overlay()))
    profile = found.on(load("cpu-avx512"))
    assert ceilings(profile, "bf16") == (50e9, 1e12)
    assert profile.memory.usable_gib == 16.0
    assert profile.sources["peak.dense_tflops"] == found.source
    with pytest.raises(ConfigError, match="not of nvidia-h200-sxm"):
        found.on(load("nvidia-h200-sxm"))


def test_rates_that_were_not_measured_keep_their_proportion(tmp_path: Path) -> None:
    h200 = load("nvidia-h200-sxm")
    specified = h200.dense_tflops("bf16") or 0.0
    found = read(written(tmp_path, overlay(profile=h200.name, matrix_tflops={"bf16": 0.75 * specified})))
    profile = found.on(h200)
    assert profile.dense_tflops("fp8") == pytest.approx(0.75 * (h200.dense_tflops("fp8") or 0.0))
    assert ceilings(profile, "bf16") == pytest.approx((50e9, 0.75e12 * specified))  # and not the specified bandwidth


def test_an_overlay_lies_where_the_environment_says() -> None:
    assert default_path("p", {"AMBIDEX_CALIBRATION": "/a/b.yaml"}) == Path("/a/b.yaml")
    assert default_path("p", {"XDG_CONFIG_HOME": "/c"}) == Path("/c/ambidex/calibrated/p.yaml")
    assert default_path("p", {}) == Path("~/.config/ambidex/calibrated/p.yaml").expanduser()


def test_an_overlay_of_another_profile_is_none_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMBIDEX_CALIBRATION", str(written(tmp_path, overlay())))
    assert find(load("cpu-avx512")) is not None
    assert find(load("nvidia-h200-sxm")) is None
    monkeypatch.delenv("AMBIDEX_CALIBRATION")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert find(load("cpu-avx512")) is None
    assert find(load("cpu-avx512"), tmp_path / "overlay.yaml") is not None


def deployed(content: dict[str, Any], folder: Path) -> Deployment:
    profile = load("cpu-avx512")
    found = read(written(folder, content))
    form = precision("bf16", profile)
    assert isinstance(form, Precision)
    replica = deploy(sized_subject("1B"), profile, form, 1, Demand(context=2048), calibration=found)
    assert isinstance(replica, Deployment)
    return replica


def test_half_the_bandwidth_doubles_what_bandwidth_takes(tmp_path: Path) -> None:
    whole = decode_step(deployed(overlay(), tmp_path), 1, 1024)
    half = decode_step(deployed(overlay(bandwidth_gb_per_s=25.0), tmp_path), 1, 1024)
    assert whole.limit == "bandwidth"
    assert half.bandwidth == pytest.approx(2 * whole.bandwidth, rel=0.15)  # the intensity moves along the curve
    assert (half.launch, half.host) == (whole.launch, whole.host)


def test_many_rows_follow_the_rate_and_few_the_bandwidth(tmp_path: Path) -> None:
    slow = deployed(overlay(bandwidth_gb_per_s=25.0), tmp_path)
    weak = deployed(overlay(matrix_tflops={"bf16": 0.5}), tmp_path)
    usual = deployed(overlay(), tmp_path)
    prompt = (np.array([0]), np.array([1024]), 1)
    assert weak.step_time.seconds(*prompt) > 1.8 * usual.step_time.seconds(*prompt)
    assert slow.step_time.seconds(*prompt) < 1.1 * usual.step_time.seconds(*prompt)
    assert decode_step(weak, 1, 128).seconds < 1.1 * decode_step(usual, 1, 128).seconds


def test_sites_that_no_graph_replays_cost_the_host_only_in_prompts(tmp_path: Path) -> None:
    dear, free = (deployed(overlay(eager_us=micros), tmp_path) for micros in (50.0, 0.0))
    assert decode_step(dear, 1, 1024) == decode_step(free, 1, 1024)
    prompt = (np.array([0]), np.array([64]), 1)
    calls = sum(site.num_layers for site in dear.part.sites)
    more_s = dear.step_time.breakdown(*prompt).host - free.step_time.breakdown(*prompt).host
    assert more_s == pytest.approx(50e-6 * calls)


SMALL = calibrate.Sizes((SHAPES["tiny"],), rotated_bytes=1 << 18, decodes=((1, 16), (2, 64)), prompts=(16, 32),
                        hot=(2, 32), budget_s=0.005)  # fmt: skip


def test_a_small_calibration_of_this_machine_can_be_planned_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "default_sizes", lambda device: SMALL)
    path = tmp_path / "here.yaml"
    assert run(["calibrate", "--device", "cpu", "--output", str(path), "--json"]) == 0
    answered = json.loads(capsys.readouterr().out)
    found = read(path)
    assert answered == {"file": str(path), **found.model_dump(mode="json")}
    assert found.bandwidth_gb_per_s > 1
    assert len(found.curves.product.axis) == 4  # 1, 2, 16 and 32 rows
    assert found.curves.prompt_attention.axis == (8.5, 16.5)
    assert found.launch_us.product > 0
    replica = found.on(load(found.profile))
    assert found.efficiency().source == found.source
    assert replica.memory.usable_gib == pytest.approx(found.usable_gib)


def test_a_folder_is_no_place_for_a_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", "--device", "cpu", "--output", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_rate_that_was_not_measured_follows_the_matrix_units() -> None:
    """fp32 without TF32 runs on vectors: a tenth of its peak there is no tenth of fp8's."""
    profile = load("nvidia-h100-sxm")
    peaks = profile.peak.dense_tflops
    assert peaks.fp32
    assert peaks.bf16
    assert peaks.fp8
    measured: dict[RateName, float] = {"bf16": 0.7 * peaks.bf16, "fp32": 0.1 * peaks.fp32}
    found = with_ceilings(profile, 3000.0, measured, "now").peak.dense_tflops
    assert found.fp32 == pytest.approx(0.1 * peaks.fp32)
    assert found.fp8 == pytest.approx(0.7 * peaks.fp8)


def test_every_number_of_an_overlay_is_what_a_plan_reckons_with(tmp_path: Path) -> None:
    numbers = {"step_us": 3.0, "host_us": 4.0, "host_us_per_request": 5.0, "eager_us": 6.0, "beside_reading": 0.7,
               "read_share": 0.8}  # fmt: skip
    found = read(written(tmp_path, overlay(**numbers))).efficiency()
    assert {name: getattr(found, name) for name in numbers} == numbers
    assert dict(found.launch_us) == MICROS
    assert found.curves["product"].shares == (0.5, 0.7)
