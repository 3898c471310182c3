"""`ambidex tune`: rows that are right and the fastest, resumed, bounded, read by a binding; nothing wrong is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from ambidex.backends.choosing import best
from ambidex.bench import ceilings
from ambidex.bench.ops import Bench, Selection
from ambidex.bench.stopwatch import Stopwatch
from ambidex.bench.trials import Place, Trial
from ambidex.bench.tune import Files, Note, OutOfTime, Tuning, buckets, facts, of_sites
from ambidex.cli import run
from ambidex.ops import discovery, tuned
from ambidex.ops.binding import UNBOUNDED, bind
from ambidex.ops.contract import Kernel, Launch, Policy
from ambidex.ops.support import bucket_of
from ambidex.ops.tuned import Tuned, TunedError, timed_dims
from ambidex.ops.types import Site
from ambidex.runtime.start import model_sites

CPU = torch.device("cpu")
GOOD = discovery.kernels()["linear_torch"]


@pytest.fixture(scope="module")
def bench() -> Bench:
    watch = Stopwatch(best("cpu").backend, CPU, budget_s=0.003, rotated_bytes=1 << 20)
    profile = best("cpu").match.profile
    assert profile is not None
    place = Place(profile, CPU, discovery.missing_languages())
    return Bench(place, watch, ceilings.measure(watch, [torch.float32]), Tuned())


def odd(op: str = "linear") -> list[Trial]:
    return Selection(op, "odd", dtype=torch.float32).trials()


def tuning(bench: Bench, folder: Path, **more: Any) -> Tuning:
    return Tuning(bench, Files(folder, facts(bench, "here")), **more)


def notes(made: Tuning, *kernels: Kernel, op: str = "linear") -> list[Note]:
    return [note for note in made.run(odd(op), lambda base: list(kernels)) if note is not None]


def slowed(*args: Any, repeats: int, **params: Any) -> Any:
    results = [GOOD.run(*args, **params) for _ in range(repeats)]
    return results[-1] * (2.0 if repeats == 1 else 1.0)


REPEATING = replace(
    GOOD, name="repeating", run=slowed, launch=lambda *_: {"repeats": 40},
    configurations=lambda *_: [{"repeats": repeats} for repeats in (1, 2, 12, 40)],
)  # fmt: skip


def test_the_fastest_launch_that_is_right_becomes_the_row(bench: Bench, tmp_path: Path) -> None:
    (note,) = notes(tuning(bench, tmp_path), REPEATING)
    assert note["launch"] == {"repeats": 2}
    assert len(note["launches_refused"]) == 1
    assert note["launches_refused"][0].startswith("{'repeats': 1}: repeating-odd-float32: error")
    table = tuned.read(tmp_path / bench.place.profile.tuning_family / "linear.json")
    (row,) = table.rows
    assert (row.kernel, row.rows, row.launch) == ("repeating", 17, {"repeats": 2})
    assert row.dims == {"N": 1003, "K": 333, "bias": False}
    assert row.time_us == pytest.approx(note["time_us"], abs=1e-3)
    assert row.error <= 1e-5
    assert table.read_gb_per_s == bench.ceilings.read_gb_per_s
    assert table.torch == str(torch.__version__)


def test_with_a_clock_it_chooses_and_the_row_is_timed_alone_and_made_anew(bench: Bench, tmp_path: Path) -> None:
    asked: list[int] = []

    def clock(kernel: Kernel, launch: Launch, budget_s: float) -> float:
        asked.append(int(launch["repeats"]))
        return {2: 0.3, 12: 0.1, 40: 0.2}[asked[-1]]  # seconds

    assert [note["launch"] for note in notes(tuning(bench, tmp_path), REPEATING)] == [{"repeats": 2}]
    (note,) = notes(tuning(bench, tmp_path, clock=clock), REPEATING)
    assert note["launch"] == {"repeats": 12}
    assert asked == [40, 2, 12, 12, 40, 2], "all that are right, then the finalists, the fastest first"
    assert note["time_us"] not in {1e5, 2e5, 3e5}
    (row,) = tuned.read(tmp_path / bench.place.profile.tuning_family / "linear.json").rows
    assert row.launch == {"repeats": 12}


def test_the_launch_that_a_row_has_is_tried_too(bench: Bench, tmp_path: Path) -> None:
    """A search that knew more than the kernel names may have found it: a faster one is not lost to a slower."""
    made = tuning(bench, tmp_path)
    assert [note["launch"] for note in notes(made, REPEATING)] == [{"repeats": 2}]
    narrow = replace(REPEATING, configurations=lambda *_: [{"repeats": 12}])
    tried: list[int] = []

    def clock(kernel: Kernel, launch: Launch, budget_s: float) -> float:
        tried.append(int(launch["repeats"]))
        return float(launch["repeats"])

    (note,) = notes(tuning(bench, tmp_path, clock=clock), narrow)
    assert (note["launch"], set(tried)) == ({"repeats": 2}, {2, 12, 40})


def test_a_binding_reads_what_was_written(bench: Bench, tmp_path: Path) -> None:
    notes(tuning(bench, tmp_path), REPEATING)
    site = odd()[0].site
    binding = bind((site,), bench.place.profile, kernels={"repeating": REPEATING}, tuned=Tuned(tuned.load(tmp_path)))
    found = {choice.bucket: (choice.source, choice.launch["repeats"]) for choice in binding.sites[0].choices}
    assert [bucket for bucket, (source, _) in found.items() if source == "exact"] == [bucket_of(17, Policy())]
    assert found[16] == ("near", 2)  # within a factor of 2
    assert {found[bucket] for bucket in (1, 8, 64, 512, UNBOUNDED)} == {("derived", 40)}
    assert found[bucket_of(17, Policy())] == ("exact", 2)


def test_nothing_wrong_is_written(bench: Bench, tmp_path: Path) -> None:
    wrong = replace(GOOD, name="wrong", run=lambda *args, **params: GOOD.run(*args, **params) * 1.01)
    only_wrong = replace(REPEATING, name="only", launch=lambda *_: {"repeats": 1}, configurations=None)
    (first, second) = notes(tuning(bench, tmp_path), wrong, only_wrong)
    assert "the op allows 1.0e-05" in first["failed"]
    assert "the op allows 1.0e-05" in second["failed"]
    assert list(tmp_path.iterdir()) == []


def test_who_refuses_is_left_out(bench: Bench, tmp_path: Path) -> None:
    assert notes(tuning(bench, tmp_path), replace(GOOD, needs=frozenset({"wgmma"}))) == []


def test_a_kernel_that_a_capturing_device_cannot_capture_gets_no_row(bench: Bench, tmp_path: Path) -> None:
    class Asynchronous(type(bench.watch.backend)):  # type: ignore[misc]
        is_asynchronous = True

        def capture(self, function: Any) -> str:
            return "reads on the host"

    there = Bench(bench.place, replace(bench.watch, backend=Asynchronous()), bench.ceilings, Tuned())
    (note,) = notes(tuning(there, tmp_path), GOOD)
    assert note["failed"] == "no row, since it was not captured: reads on the host"
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_where_another_stopped(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(OutOfTime):
        list(tuning(bench, tmp_path, deadline=0.0).run(odd(), lambda base: [GOOD]))
    assert len(notes(tuning(bench, tmp_path), GOOD)) == 1
    assert notes(tuning(bench, tmp_path), GOOD) == []
    assert len(notes(tuning(bench, tmp_path), GOOD, REPEATING)) == 1
    table = tuned.read(tmp_path / bench.place.profile.tuning_family / "linear.json")
    assert [row.kernel for row in table.rows] == ["linear_torch", "repeating"]
    assert len(notes(Tuning(bench, Files(tmp_path, facts(bench, "here"), fresh=True)), GOOD)) == 1


def test_rows_of_other_software_are_not_mixed(bench: Bench, tmp_path: Path) -> None:
    notes(tuning(bench, tmp_path), GOOD)
    path = tmp_path / bench.place.profile.tuning_family / "linear.json"
    older = msgspec.structs.replace(tuned.read(path), torch="2.0.0")
    path.write_text(tuned.written(older), encoding="utf-8")
    with pytest.raises(TunedError, match=r"was measured with torch 2\.0\.0, here it is .*: give --fresh"):
        notes(tuning(bench, tmp_path), GOOD)


def with_parts(site: Site) -> Iterator[Site]:
    yield site
    for part in site.parts:
        yield from with_parts(part)


def test_every_site_of_a_model_can_be_drawn_as_it_is(bench: Bench) -> None:
    sites = model_sites(None, "float32", bench.place.profile)
    bases = list(of_sites(sites))
    assert {base.op.name for base in bases} >= {"norm_linear", "linear", "rms_norm", "paged_attention", "sample"}
    assert buckets() == [*Policy().buckets, 4096]
    wanted = [timed_dims(part) for site in sites for part in with_parts(site)]
    for base in bases:
        if base.case.name.endswith("-8"):
            assert timed_dims(base.site) in wanted
            assert base.num_rows == 8
    of_logits = {base.case.name.rpartition("-")[2] for base in bases if base.op.name == "sample"}
    assert of_logits == {str(rows) for rows in Policy().buckets if rows <= 64}


def test_the_command_tunes_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tune", "--ops", "rms_norm", "--cases", "odd", "--device", "cpu", "--out", str(tmp_path)]
    assert run([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["cases_left"] == 0
    kernels = {note["kernel"] for note in record["measurements"] if "time_us" in note}
    assert "rms_norm_torch" in kernels
    (table,) = tuned.load(tmp_path)
    assert {row.kernel for row in table.rows} == kernels
    assert run(arguments) == 0
    assert "nothing was left to measure" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (["--ops", "zzz"], "nothing fits 'zzz' with a case '*'", 2),
        (["--profile", "nvidia-b200"], "no device here is nvidia-b200: tuning runs on the device itself", 11),
    ],
)
def test_what_cannot_be_tuned(arguments: list[str], line: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", *arguments]) == code
    assert line in capsys.readouterr().err
