"""`ambidex bench ops`: what is timed and what is not, the ceilings of the run, the chain of a layer's products."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ambidex.backends.choosing import best
from ambidex.bench import ceilings
from ambidex.bench.chain import Chain, Shape
from ambidex.bench.ops import Bench, Selection
from ambidex.bench.stopwatch import Stopwatch
from ambidex.bench.trials import Place
from ambidex.cli import run
from ambidex.ops import discovery
from ambidex.ops.tuned import Tuned
from ambidex.ops.types import Cost

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def watch() -> Stopwatch:
    return Stopwatch(best("cpu").backend, CPU, budget_s=0.005, rotated_bytes=1 << 22)


@pytest.fixture(scope="module")
def bench(watch: Stopwatch) -> Bench:
    profile = best("cpu").match.profile
    assert profile is not None
    place = Place(profile, CPU, discovery.missing_languages())
    return Bench(place, watch, ceilings.measure(watch, [torch.float32, torch.bfloat16]), Tuned())


def test_a_case_has_a_row_for_each_kernel_and_the_library_beside(bench: Bench) -> None:
    selection = Selection("linear", "odd", "linear_torch", torch.float32)
    (base,) = selection.trials()
    row, refused = bench.case(base, selection.of(base.op))
    assert refused["kernel"] == "linear_torch_widened", "the library's other product is tried, too"
    assert (row["op"], row["case"], row["dtype"], row["rows"]) == ("linear", "odd", "float32", 17)
    assert (row["library"], row["times_library"], row["error_of"]) == ("linear_torch", 1.0, "case")
    assert 0 < row["min_us"] <= row["time_us"]
    seconds = row["time_us"] / 1e6
    assert row["gb_per_s"] == pytest.approx(row["num_bytes"] / seconds / 1e9)
    assert row["tflops"] == pytest.approx(2 * 17 * 1003 * 333 / seconds / 1e12)
    assert row["roofline_share"] == pytest.approx(bench.ceilings.least_s(base.cost) / seconds)
    assert 0 < row["error"] <= 1e-5


def test_a_composite_stands_beside_its_parts_by_the_library(bench: Bench) -> None:
    selection = Selection("gated_linear", "odd", dtype=torch.float32)
    (base,) = selection.trials()
    timed = [row for row in bench.case(base, selection.of(base.op)) if "time_us" in row]
    assert "gated_linear.parts" in {row["kernel"] for row in timed}
    assert {row["library"] for row in timed} == {"gated_linear.parts"}
    assert [row["time_us"] for row in timed] == sorted(row["time_us"] for row in timed)


def wrong(function: Callable[..., Any]) -> Callable[..., Any]:
    def run_wrong(*args: Any, **params: Any) -> Any:
        return function(*args, **params) * 1.5

    return run_wrong


def test_who_is_wrong_or_refuses_is_not_timed(bench: Bench) -> None:
    (base,) = Selection("linear", "odd", dtype=torch.float32).trials()
    good = discovery.kernels()["linear_torch"]
    bad = replace(good, name="bad", run=wrong(good.run))
    lacking = replace(good, name="lacking", needs=frozenset({"wgmma"}))
    found = {row["kernel"]: row for row in bench.case(base, [good, bad, lacking])}
    assert "time_us" in found["linear_torch"]
    assert not {"time_us", "error"} & (set(found["bad"]) | set(found["lacking"]))
    assert "bad-odd-float32: tensor 0: error 5.00e-01 of the largest" in found["bad"]["failed"]
    assert "has no wgmma" in found["lacking"]["refused"]


def test_right_on_the_twin_and_wrong_on_the_case_is_wrong(bench: Bench) -> None:
    (base,) = Selection("linear", "llama-3.1-8b-o-decode", dtype=torch.float32).trials()
    good = discovery.kernels()["linear_torch"]

    def small_only(x: torch.Tensor, *args: Any, **params: Any) -> Any:
        return good.run(x, *args, **params) * (1.5 if x.shape[1] > 1000 else 1.0)

    (row, *_) = bench.case(base, [replace(good, name="small", run=small_only)])
    assert "the op allows 1.0e-05" in row["failed"]


def test_the_roofline_is_the_larger_of_the_two_bounds() -> None:
    limits = ceilings.Ceilings(100.0, "sum", {"bfloat16": 10.0})
    assert limits.least_s(Cost(10**9, 10**9, torch.bfloat16)) == pytest.approx(0.01)
    assert limits.least_s(Cost(10**6, 10**12, torch.bfloat16)) == pytest.approx(0.1)
    assert limits.least_s(Cost(10**6, 10**12, torch.float16)) == pytest.approx(1e-5)


def test_operands_are_rotated_until_no_cache_holds_them(watch: Stopwatch) -> None:
    assert watch.num_sets(call_bytes=1 << 20, set_bytes=1 << 20) == 4
    assert watch.num_sets(call_bytes=1, set_bytes=1) == 256
    assert watch.num_sets(call_bytes=1, set_bytes=1 << 22) == 3
    assert watch.num_sets(call_bytes=1 << 20, set_bytes=1 << 60) == 1
    seen: list[int] = []
    timed = watch.time([lambda number=number: seen.append(number) for number in range(3)])  # type: ignore[misc]
    assert seen[:5] == [0, 0, 1, 2, 0]
    assert len(timed.samples_s) == 200
    assert timed.eager is None


def test_a_device_that_works_by_itself_gets_a_graph(watch: Stopwatch) -> None:
    class Asynchronous(type(watch.backend)):  # type: ignore[misc]
        is_asynchronous = True
        replays = True

        def capture(self, function: Callable[[], None]) -> Any:
            function()
            return function if self.replays else "reads on the host"

    backend = Asynchronous()
    calls: list[int] = []
    timed = replace(watch, backend=backend).time([lambda: calls.append(1)] * 3)
    assert (timed.num_calls, timed.eager) == (8, None)
    assert len(calls) == 8 * (2 + len(timed.samples_s))
    backend.replays = False
    assert replace(watch, backend=backend).time([lambda: None]).eager == "reads on the host"


def test_a_chain_is_checked_and_compared(bench: Bench, watch: Stopwatch) -> None:
    made = Chain(Shape(hidden=64, qkv=96, q=64, intermediate=112), torch.bfloat16, bench.place, watch)
    row = made.measure(3, bench.ceilings, {})
    assert set(row["kernels"]) >= {"norm_linear@qkv", "linear_add@out", "gated_linear@gate_up", "linear_add@down"}
    assert set(row["library"].values()) <= {"parts", "rms_norm_torch", "linear_torch", "silu_and_mul_torch"}
    assert row["num_layers"] == -(-(1 << 22) // (2 * (64 + 96 * 64 + 64 * 64 + 2 * 112 * 64 + 64 * 112)))
    assert row["times_library"] == pytest.approx(row["library_us"] / row["time_us"])
    assert 0 < row["error"] < 2.5e-2
    chosen = made.measure(1, bench.ceilings, {"norm_linear": "parts"})
    assert chosen["kernels"]["norm_linear@qkv"] == "parts"


def test_the_command_prints_a_table_and_the_ceilings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "ops.json"
    arguments = ["--ops", "rms_norm", "--cases", "odd", "--device", "cpu", "--max-seconds", "0.01"]
    assert run(["bench", "ops", *arguments, "--output-json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "rms_norm_torch" in out
    assert "GB/s read in this run" in out
    record = json.loads(path.read_text())
    assert record["limits"]["read_gb_per_s"] > 0
    assert {row["kernel"] for row in record["measurements"]} >= {"rms_norm_torch"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--ops", "nothing*"], "no op fits 'nothing*' with a case '*'"),
        (["--dtype", "int4"], "int4 is not known: there are float32, bfloat16, float16"),
        (["--chain", "--cases", "gpt*"], "no chain fits 'gpt*': there are llama-3.1-8b, llama-3.1-70b-tp4"),
    ],
)
def test_what_cannot_be_measured(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "ops", "--device", "cpu", *arguments]) == 2
    assert line in capsys.readouterr().err
