"""What `bench host`, `interference` and `overload` give out, and what is checked before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ambidex.cli import run
from ambidex.commands.progress import ticking

COMMANDS: dict[str, list[str]] = {
    "host": ["--requests", "4", "--steps", "20"],
    "interference": ["--input-len", "300", "--num-requests", "2", "--decode-input-len", "8", "--step-budget-ms", "5"],
    "overload": ["--seconds", "1", "--input-len", "8", "--output-len", "8", "--fitting", "2", "--times", "4"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_result_holds_its_manifest_command_date_and_machine(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["ambidex", "bench", name, *COMMANDS[name]])
    moves: list[float] = []
    totals: list[float] = []

    def watched(what: str, total: float) -> Any:
        assert what == name
        totals.append(total)
        return _Watched(moves)

    monkeypatch.setattr(f"ambidex.commands.{name}.ticking", watched)
    path = tmp_path / "result.json"
    assert run(["bench", name, *COMMANDS[name], "--json", "--output-json", str(path)]) == 0
    printed, written = json.loads(capsys.readouterr().out), json.loads(path.read_text(encoding="utf-8"))
    assert printed == written
    assert written["command"] == " ".join(["ambidex", "bench", name, *COMMANDS[name]])
    assert written["date"].startswith("20")
    assert written["machine"]["packages"]["torch"]
    manifest = written["manifest"]
    assert "-" in manifest["profile"]
    assert bool(manifest["sites"]) == (name != "host"), "no kernel runs where the device's work is left out"
    assert sum(moves) == pytest.approx(totals[0], rel=0.02), "the bar ends where it should"


class _Watched:
    def __init__(self, moves: list[float]) -> None:
        self._moves = moves

    def __enter__(self) -> Any:
        return lambda steps=1.0: self._moves.append(steps)

    def __exit__(self, *error: object) -> None:
        return None


def test_a_single_size_of_host_has_its_keys_at_the_top(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "host", *COMMANDS["host"], "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["median_us_per_step"] == result["measurements"][0]["median_us_per_step"]


BENCHES = ["latency", "throughput", "prefix", "micro", *COMMANDS]
DRAWN = ["latency", "throughput", "host", "interference"]


@pytest.mark.parametrize(
    ("name", "option", "given", "said"),
    [
        *((name, "--output-json", "nowhere/result.json", "there is no folder") for name in BENCHES),
        *((name, "--output-json", ".", "is a folder") for name in BENCHES),
        *((name, "--plot", "nowhere/plot.svg", "there is no folder") for name in DRAWN),
        *((name, "--plot", "plot.txt", "ends with none of .svg, .png, .pdf") for name in DRAWN),
    ],
)
def test_where_a_result_cannot_go_nothing_is_measured(
    name: str, option: str, given: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)

    def measured(*arguments: object, **more: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(f"ambidex.bench.{name}.{'growth' if name == 'host' else 'measure'}", measured)
    assert run(["bench", name, option, given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert option in error


@pytest.mark.parametrize("name", DRAWN)
def test_without_matplotlib_nothing_is_measured(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambidex.commands.plot.importlib.util.find_spec", lambda name: None)
    assert run(["bench", name, "--plot", str(tmp_path / "plot.svg")]) == 12
    assert "ambidex[plot]" in capsys.readouterr().err


def test_a_bar_moves_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with ticking("something", 4) as tick:
        tick()
        tick(2.5)
    assert "something" in capsys.readouterr().err
