"""`ambidex tune --steps`: launches chosen by the time of a whole step, site by site; rows checked and timed alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ambidex.bench.ops import Selection
from ambidex.bench.shapes import SHAPES, write_config
from ambidex.bench.step import StepBench
from ambidex.bench.trials import Trial
from ambidex.bench.tune_steps import Search, bench_of
from ambidex.cli import run
from ambidex.ops import discovery, tuned
from ambidex.ops.contract import Kernel
from ambidex.ops.types import Weight

PRODUCTS = Selection(ops="*linear*")
LEVELS = ("low", "middle", "high")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_config(SHAPES["tiny"], folder)
    return folder


@pytest.fixture(scope="module")
def bench(model: Path) -> StepBench:
    return bench_of(str(model), "cpu", "auto", [(2, 32)])


class Trying:
    """Stands in for a tuning: it asks the search for each level once, and again for those it is told to."""

    def __init__(self, search: Search, again: tuple[str, ...]) -> None:
        self.search, self.again = search, again
        self.bench = SimpleNamespace(watch=SimpleNamespace(budget_s=0.3))

    def run(self, bases: list[Trial], kernels: Callable[[Trial], list[Kernel]]) -> Iterator[None]:
        for base in bases:
            for level in (*LEVELS, *self.again):
                for kernel in kernels(base):
                    self.search.seconds(kernel, {"level": level}, 0.03)
            yield None


def scripted(
    bench: StepBench, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]], again: tuple[str, ...]
) -> tuple[Search, list[dict[str, str]]]:
    """A search in which a site adds to the step what its level says, the next time it is asked; and what was asked."""
    search, asked = Search(bench, (2, 32), PRODUCTS), list[dict[str, str]]()

    def step_s(served: dict[str, tuple[Kernel, dict[str, Any]]], budget_s: float) -> float:
        levels = {site: launch["level"] for site, (_, launch) in served.items()}
        asked.append(levels)
        times = [seconds[level] for level in levels.values()]
        return 1.0 + sum(each.pop(0) if len(each) > 1 else each[0] for each in times)

    monkeypatch.setattr(search, "_step_s", step_s)
    for _ in search.run(Trying(search, again)):  # type: ignore[arg-type]
        pass
    return search, asked


def test_sites_come_by_the_bytes_that_they_move(bench: StepBench) -> None:
    names = [site.name for site in Search(bench, (2, 32), PRODUCTS).sites]
    assert names == [
        "gated_linear@layers.*.gate_up", "linear_add@layers.*.down", "norm_linear@layers.*.qkv",
        "linear_add@layers.*.o",
    ]  # fmt: skip
    only = Search(bench, (2, 32), Selection(ops="linear_add", cases="*.o-8"))
    assert [site.name for site in only.sites] == ["linear_add@layers.*.o"], "cases are of the bucket's rows"


def test_what_is_fastest_at_a_site_serves_it_while_the_others_are_searched(
    bench: StepBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, asked = scripted(bench, monkeypatch, {"low": [0.5], "middle": [0.1], "high": [0.9]}, LEVELS)
    first, second, *others = [site.name for site in search.sites]
    assert asked[0] == {}, "the step as it is bound comes first"
    assert {levels[first] for levels in asked[1:7]} == set(LEVELS)
    assert all(len(levels) == 1 for levels in asked[1:7])
    assert all(levels[first] == "middle" for levels in asked[7:])
    assert {levels[second] for levels in asked[7:13]} == set(LEVELS)
    assert asked[-1] == dict.fromkeys([first, second, *others], "middle")
    assert search.before_s == 1.0
    assert search.after_s == pytest.approx(1.4)


def test_a_launch_that_was_fast_once_and_not_again_is_not_taken(
    bench: StepBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"low": [0.01, 0.5], "middle": [0.2], "high": [0.001]}
    _, asked = scripted(bench, monkeypatch, times, ("low", "middle"))
    assert set(asked[-1].values()) == {"middle"}, "low was slower when timed again, high was not timed again"


def test_sites_alike_are_searched_once_and_served_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(replace(SHAPES["tiny"], intermediate_size=SHAPES["tiny"].hidden_size), tmp_path)
    alike = bench_of(str(tmp_path), "cpu", "auto", [(2, 32)])
    monkeypatch.setattr(sys.modules[__name__], "PRODUCTS", Selection(ops="linear_add"))
    search, asked = scripted(alike, monkeypatch, {"low": [0.5], "middle": [0.1], "high": [0.9]}, LEVELS)
    assert len(search.sites) == 1
    assert asked[-1] == dict.fromkeys(("linear_add@layers.*.o", "linear_add@layers.*.down"), "middle")


def test_what_is_tried_runs_in_the_step_at_its_site_alone(bench: StepBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that counts its calls: the capture makes one a layer, with the weight of its site, in a part too."""
    counted: list[tuple[str, int]] = []

    def counting(of: Kernel) -> Kernel:
        def counts(x: torch.Tensor, *args: Any, **params: Any) -> torch.Tensor:
            weight = next(arg for arg in args if isinstance(arg, Weight) and len(arg.shape) == 2)
            counted.append((weight.role.rpartition(".")[2], x.shape[0]))
            result: torch.Tensor = of.run(x, *args, **params)
            return result

        return replace(of, name="counting", run=counts)

    for op, role in (("linear_add", "o"), ("norm_linear", "qkv")):
        search = Search(bench, (2, 32), Selection(ops=op, cases=f"*.{role}-8"))
        (site,) = search.sites
        kernel = counting(discovery.kernels()[f"{op}_cpu"])
        monkeypatch.setitem(discovery.kernels(), "counting", kernel)
        monkeypatch.setattr(search, "_at", site)
        assert kernel.launch is not None
        counted.clear()
        assert search.seconds(kernel, kernel.launch(site, bench.decided.profile, 8), 0.0) > 0
        assert set(counted) == {(role, 2)}
        assert len(counted) % SHAPES["tiny"].num_layers == 0


def test_the_command_searches_steps_on_this_machine(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "tune",
        str(model),
        "--steps",
        "2x32",
        "--ops",
        "linear_add",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    assert run([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {note["rows"] for note in record["measurements"]} == {8}, "the bucket's rows"
    (step,) = record["steps"]
    assert (step["batch"], step["context"], record["cases_left"]) == (2, 32, 0)
    assert min(step["before_ms"], step["ms"]) > 0
    (table,) = tuned.load(tmp_path)
    assert len(table.rows) == len(record["measurements"]) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--steps", "8x64"], "steps are a model's: name its folder"),
        (["MODEL", "--steps", "8"], "requests and tokens of context, as in 8x1024"),
        (["MODEL", "--steps", "0x64"], "requests and tokens of context, as in 8x1024"),
        (["MODEL", "--steps", "2x32", "--ops", "zzz"], "nothing fits 'zzz' with a case '*'"),
        (["MODEL", "--steps", "2x32,7x64"], "two of these steps have rows of one bucket"),
        (["MODEL", "--steps", "2x32", "--fresh"], "steps make the rows of their buckets anew"),
    ],
)
def test_steps_that_cannot_be_tuned(
    arguments: list[str], line: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", *(str(model) if each == "MODEL" else each for each in arguments), "--device", "cpu"]) == 2
    assert line in capsys.readouterr().err
