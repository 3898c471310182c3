"""`ambidex bench throughput`: the requests, the keys, the roofline."""

import json
from pathlib import Path
from typing import Any

import pytest
from ambidex.bench.shapes import SHAPES, write_checkpoint
from ambidex.bench.throughput import DatasetRefused, Plan, decode_steps, engine_options, load
from ambidex.cli import run

SMALL = ("--num-prompts=5", "--input-len=24", "--output-len=6", "--max-num-seqs=3", "--num-iters=2")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bench") / "result.json"
    assert run(["bench", "throughput", "--shape", "tiny", *SMALL, "--output-json", str(path)]) == 0
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def test_it_has_vllms_keys(result: dict[str, Any]) -> None:
    assert result["num_requests"] == 5
    assert result["total_num_tokens"] == 5 * 30
    assert result["requests_per_second"] == pytest.approx(5 / result["elapsed_time"])
    assert result["tokens_per_second"] == pytest.approx(150 / result["elapsed_time"])


def test_it_says_what_ran(result: dict[str, Any]) -> None:
    (row,) = result["measurements"]
    assert len(row["elapsed_times"]) == 2
    assert min(row["elapsed_times"]) <= result["elapsed_time"] <= max(row["elapsed_times"])
    assert row["share_of_roofline"] == pytest.approx(result["least_s"] / row["elapsed_time"])
    assert result["manifest"]["sites"]
    assert result["contenders"]["ambidex"]["fingerprint"].startswith("fp_")


def test_random_requests_are_drawn_in_their_range() -> None:
    plan = Plan(input_len=100, output_len=40, num_prompts=200, range_ratio=0.5, seed=3)
    requests = load(plan)
    assert requests == load(plan)
    assert 50 <= min(requests.input_lens) < 60 < 140 < max(requests.input_lens) <= 150
    assert 20 <= min(requests.output_lens) < max(requests.output_lens) <= 60
    assert load(Plan(input_len=7, output_len=3, num_prompts=2)) == ([7, 7], [3, 3], None)


def test_the_fewest_steps() -> None:
    assert decode_steps([5, 5, 5, 5], 2) == 8
    assert decode_steps([2, 2, 9], 8) == 8
    assert decode_steps([1, 1], 2) == 0


def test_the_cache_holds_what_runs_at_once() -> None:
    requests = load(Plan(input_len=100, output_len=28, num_prompts=10))
    options = engine_options(Plan(max_num_seqs=4), requests)
    assert (options["max_model_len"], options["max_num_seqs"], options["kv_cache_tokens"]) == (128, 4, 512)
    assert options["roofline_steps"]["prompts"] == [(0, 100)] * 10
    assert options["roofline_steps"]["decode"] == [(114, 1)] * 3  # 270 tokens behind the first in 68 steps


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(SHAPES["tiny"], folder)
    return folder


def test_conversations_are_pruned_as_vllm_does(tiny: Path, tmp_path: Path) -> None:
    """A token of this checkpoint is a byte."""
    path = tmp_path / "talks.json"
    unfit = [
        conversation("abc", "long enough"),
        conversation("long enough", "abc"),
        conversation("x" * 1025, "answer"),
        conversation("x" * 1000, "y" * 1049),
        {"conversations": [{"from": "human", "value": "alone"}]},
    ]
    path.write_text(json.dumps([*unfit, conversation("five!", "sixsix"), conversation("four", "seven 7")]))
    requests = load(Plan(model=str(tiny), dataset=str(path), num_prompts=2))
    assert sorted(zip(requests.input_lens, requests.output_lens, strict=True)) == [(4, 7), (5, 6)]
    assert sorted(requests.prompts or []) == sorted([list_of(tiny, "five!"), list_of(tiny, "four")])
    assert requests.ids(512, "any") == requests.prompts
    with pytest.raises(DatasetRefused, match="has 2 requests of a fit length: --num-prompts 2"):
        load(Plan(model=str(tiny), dataset=str(path), num_prompts=3))
    assert load(Plan(model=str(tiny), dataset=str(path), num_prompts=2, output_len=9)).output_lens == [9, 9]


def list_of(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)


@pytest.mark.parametrize("text", ["", "[1]", '[{"conversations": [{"v": 1}, {"v": 2}]}]', '{"a": 1}'])
def test_a_file_of_another_form(text: str, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "talks.json"
    path.write_text(text)
    with pytest.raises(DatasetRefused, match="is not a list of"):
        load(Plan(model=str(tiny), dataset=str(path)))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--dataset-name", "sharegpt"], "sharegpt and a file belong together"),
        (["--dataset-path", "x.json"], "sharegpt and a file belong together"),
        (["--dataset-name", "sonnet"], "sonnet is not known: there are random, sharegpt"),
        (["--dataset-name", "sharegpt", "--dataset-path", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_what_cannot_be_measured(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "throughput", "--shape", "tiny", *arguments]) == 2
    assert line in capsys.readouterr().err
