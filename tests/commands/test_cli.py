"""The command line: what it prints where, and how little it costs to ask it for help."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from ambidex.cli import app, run
from ambidex.commands import options
from ambidex.runtime.options import Options
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]
Ask = Callable[..., Any]
Fail = Callable[..., tuple[int, str]]


def cpu_seconds(*arguments: str) -> float:
    """Processor time of one run: what else happens on the machine hardly counts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "ambidex", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("arguments", "limit_s"), [(["--help"], 0.3), (["profiles"], 0.5)])
def test_light_commands_answer_fast(arguments: list[str], limit_s: float) -> None:
    assert min(cpu_seconds(*arguments) for _ in range(4)) < limit_s


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["profiles"], ["profiles", "groq-lpu"]])
def test_light_commands_do_not_load_torch(arguments: list[str]) -> None:
    code = f"import sys; from ambidex.cli import run; run({arguments}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize(
    "command",
    ["generate", "chat", "devices", "profiles", "explain", "plan", "doctor",
     "bench latency", "bench throughput", "bench prefix", "bench micro"],
)  # fmt: skip
def test_every_command_has_help_and_json(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.output.startswith("ambidex 0.")


def test_profiles_as_a_table(capsys: Capture) -> None:
    assert run(["profiles"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (b200,) = (line.split() for line in lines if line.startswith("nvidia-b200"))
    assert b200 == ["nvidia-b200", "178", "7.67", "2,250", "4,500", "9,000", "1,000", "6.5", "cuda"]
    assert next(line for line in lines if line.startswith("groq-lpu")).endswith("no backend")
    assert max(map(len, lines[:-3])) <= 80


def test_profiles_as_json(ask: Ask) -> None:
    named = {profile["name"]: profile for profile in ask("profiles")}
    assert {path.stem for path in (ROOT / "hwprofiles").glob("*.yaml")} == set(named)
    assert named["amd-mi300x"]["price"] == {"eur_per_hour": 3.0, "basis": "quoted"}


def test_one_profile_shows_sources_and_doubts(capsys: Capture, ask: Ask) -> None:
    assert run(["profiles", "groq-lpu"]) == 0
    out = capsys.readouterr().out
    assert "300  (unverified)" in out
    assert "memory.raw_gb: TechPowerUp, Groq LPU" in out
    assert ask("profiles", ROOT / "hwprofiles" / "groq-lpu.yaml")["unverified"] == ["tdp_w"]


def test_devices(capsys: Capture, ask: Ask) -> None:
    found = ask("devices")
    cpu = next(device for device in found["devices"] if device["device"] == "cpu:0")
    assert cpu["profile"].startswith("cpu-")
    assert cpu["match"] in ("exact", "near")
    assert 0 < cpu["free_bytes"] <= cpu["total_bytes"]
    assert all(reason for reason in found["missing"].values())
    assert run(["devices"]) == 0
    assert f"profile  {cpu['profile']}" in capsys.readouterr().out


def test_doctor(capsys: Capture, ask: Ask) -> None:
    findings = ask("doctor")
    assert findings["can_run"]
    assert findings["packages"]["torch"]
    assert findings["threads"] >= 1
    assert run(["doctor"]) == 0
    assert "a model can run here" in capsys.readouterr().out


def test_doctor_says_what_an_engine_would_take(model: Path, ask: Ask, fail: Fail) -> None:
    plan = ask("doctor", model, "--memory", "50MiB", "--max-num-seqs", "4", "--enforce-eager")["engine"]
    assert plan["predicted_bytes"]["graphs"] == 0
    assert 0 < sum(plan["predicted_bytes"].values()) <= 50 << 20
    assert any("4 requests of 1,024 (all that can run at once)" in line for line in plan["decisions"])
    assert "engine" not in ask("doctor")
    code, line = fail("doctor", model, "--memory", "1MiB", "--no-graphs")
    assert code == 7
    assert "of memory are missing" in line
    assert "what cures it: --memory" in line


@pytest.mark.parametrize(
    ("arguments", "engine"),
    [
        ([], {}),
        (["--memory", "2GiB", "--no-overlap"], {"memory": "2GiB", "overlap": False}),
        (["--enforce-eager", "--no-prefix-caching"], {"graphs": False, "prefix_caching": False}),
        (["--graphs", "--dtype", "auto", "--step-budget-ms", "5"], {"graphs": True, "step_budget_ms": 5.0}),
        (["--kernel", "linear=reference", "--kernel", "a=b"], {"kernels": {"linear": "reference", "a": "b"}}),
    ],
)
def test_engine_options_reach_the_engine_if_they_were_given(arguments: list[str], engine: dict[str, Any]) -> None:
    seen: dict[str, Any] = {}

    def command(engine: dict[str, Any], model: options.ModelArgument = None) -> None:
        seen.update(engine, model=model)

    small = typer.Typer()
    small.command()(options.with_engine(command))
    assert CliRunner().invoke(small, ["here", *arguments]).exit_code == 0
    assert seen == {**engine, "model": "here"}
    assert set(options.ENGINE) - {"kernel"} <= set(Options.__dataclass_fields__)
