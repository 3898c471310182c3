"""`ambidex bench micro`: llama-bench's tests and its formats."""

import csv
import io
import json
import sqlite3

import pytest
from ambidex.bench.micro import Measurement, Plan
from ambidex.cli import run
from ambidex.commands.micro import written

SMALL = ("-p", "32", "-n", "4", "-pg", "16,4", "-d", "0,128", "-r", "2")


def test_the_table_is_llama_benchs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "micro", "--shape", "tiny", *SMALL]) == 0
    header, rules, *rows = capsys.readouterr().out.splitlines()
    assert header == (
        "| model                          |       size |     params | backend    | threads |            test |"
        "                  t/s |"
    )
    assert rules == (
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: | --------------: |"
        " -------------------: |"
    )
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    names = ["pp32", "tg4", "pp16+tg4", "pp32 @ d128", "tg4 @ d128", "pp16+tg4 @ d128"]
    assert [each[5] for each in cells] == names
    assert {each[0] for each in cells} == {"llama 0.12M BF16"}
    assert {each[2] for each in cells} == {"0.12 M"}
    for each in cells:
        mean, deviation = map(float, each[6].split(" ± "))
        assert mean > 0 <= deviation


def test_the_order_and_the_lengths_of_the_tests() -> None:
    plan = Plan(prompts=(8, 0), new=(4,), both=((2, 3),), depths=(0, 16))
    assert [each.name for each in plan.tests()] == ["pp8", "tg4", "pp2+tg3", "pp8 @ d16", "tg4 @ d16", "pp2+tg3 @ d16"]
    assert plan.engine_options()["max_model_len"] == 16 + 8 + 1
    assert plan.engine_options()["prefix_caching"] is True
    assert Plan().engine_options()["prefix_caching"] is False
    assert Measurement(0, 128, 512).length == 512 + 1 + 128 + 1


ROW = {
    "model_type": "llama 7B BF16", "model_size": 14 << 30, "model_n_params": 7_000_000_000, "backends": "CPU",
    "n_threads": 2, "n_batch": None, "test": "pp512", "avg_ts": 12.345, "stddev_ts": 0.5, "samples_ts": [12.0, 12.69],
    "cpu_info": "It's a CPU",
}  # fmt: skip


def test_large_models_in_the_table() -> None:
    *_, row = written([ROW], "md").splitlines()
    assert "|  14.00 GiB |     7.00 B |" in row
    assert row.endswith(("|         12.35 ± 0.50 |", "|         12.34 ± 0.50 |"))


@pytest.mark.parametrize("rows", [[ROW], [ROW, ROW]])
def test_every_format_gives_the_rows_back(rows: list[dict[str, object]]) -> None:
    assert json.loads(written(rows, "json")) == rows
    assert [json.loads(line) for line in written(rows, "jsonl").splitlines()] == rows
    read = list(csv.DictReader(io.StringIO(written(rows, "csv"))))
    assert [(each["cpu_info"], float(each["avg_ts"]), each["n_batch"]) for each in read] == [
        ("It's a CPU", 12.345, "")
    ] * len(rows)
    with sqlite3.connect(":memory:") as database:
        database.executescript(written(rows, "sql"))
        found = database.execute("SELECT cpu_info, avg_ts, n_batch, samples_ts FROM llama_bench").fetchall()
    database.close()
    assert found == [("It's a CPU", 12.345, None, "[12.0, 12.69]")] * len(rows)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-p", "x"], "whole numbers, as in 512"),
        (["-pg", "16"], "a prompt and new tokens, as in 512,128"),
        (["-o", "xml"], "xml is not known"),
        (["-p", "0", "-n", "0"], "nothing is left to measure"),
        (["-p", "32", "-n", "0", "-d", "7"], "take a multiple of 128"),
    ],
)
def test_what_cannot_be_measured(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "micro", "--shape", "tiny", *arguments]) == 2
    assert line in capsys.readouterr().err
