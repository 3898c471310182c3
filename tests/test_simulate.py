"""`ambidex simulate`: what it prints and writes, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ambidex.cli import run

Capture = pytest.CaptureFixture[str]


def out(capsys: Capture, *arguments: str | Path) -> str:
    assert run(["simulate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def fail(capsys: Capture, *arguments: str | Path) -> tuple[int, str]:
    """Exit code and message: one line, nothing on standard output."""
    code = run(["simulate", *map(str, arguments)])
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    return code, found.err


def test_without_a_name_it_lists_what_is_shipped(capsys: Capture) -> None:
    assert "phase-1" in out(capsys)
    assert {"phase-1", "phase-2", "phase-3", "million"} <= set(json.loads(out(capsys, "--json")))


def test_the_same_seed_writes_the_same_files(capsys: Capture, tmp_path: Path) -> None:
    asked = ("phase-1", "--requests", "60", "--json", "--seed")
    one = out(capsys, *asked, "3", "--html", tmp_path / "a.html", "--output-json", tmp_path / "a.json")
    two = out(capsys, *asked, "3", "--html", tmp_path / "b.html")
    assert one == two
    assert json.loads(one) == json.loads((tmp_path / "a.json").read_text())
    assert json.loads(one)["requests"]["done"] == 60
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert "//" not in (tmp_path / "a.html").read_text().replace("http://www.w3.org/2000/svg", ""), "nothing is loaded"
    assert out(capsys, *asked, "4") != one


def test_the_table_has_latencies_goodput_and_cost(capsys: Capture) -> None:
    text = out(capsys, "phase-1", "--requests", "40")
    for word in ("first token", "each further token", "queue", "goodput", "EUR", "mean batch", "nvidia-h100-sxm"):
        assert word in text


def test_it_draws(capsys: Capture, tmp_path: Path) -> None:
    out(capsys, "phase-1", "--requests", "40", "--plot", tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["phase1"], 6, "unknown scenario 'phase1': did you mean phase-1"),
        (["--file", "gone.yaml"], 6, "cannot read the scenario gone.yaml"),
        (["phase-1", "--file", "x.yaml"], 2, "give one"),
        (["phase-1", "--requests", "0"], 2, "--requests"),
        (["phase-1", "--seed", "-1"], 2, "--seed"),
        (["phase-1", "--html", "no/such/a.html"], 2, "there is no folder no/such"),
        (["phase-1", "--plot", "a.txt"], 2, "ends with none of"),
    ],
)
def test_what_cannot_be_is_one_line(capsys: Capture, arguments: list[str], code: int, said: str) -> None:
    found, line = fail(capsys, *arguments)
    assert found == code
    assert said in line


def test_a_trace_without_its_columns_is_named(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,5\n")
    (tmp_path / "s.yaml").write_text(
        "about: a trace\ntraffic: {arrivals: {kind: trace, file: t.csv}}\nslo: {ttft_ms: 1, tpot_ms: 1}\n"
        "fleets: [{name: a, params: 8B, workers: [{profile: nvidia-h100-sxm, workers: 1}]}]\n"
    )
    code, line = fail(capsys, "--file", tmp_path / "s.yaml")
    assert code == 6
    assert "t.csv:1: the trace has no column GeneratedTokens" in line
