"""Tuning: every kernel's launches timed on the device that is here, the best written as tuned rows.

For each case (an op's own, or a site of a model at a bucket's rows) and each kernel that serves it: the kernel has
passed its op's proofs, each launch is checked against the reference in float64 and timed for a moment, the fastest few
are timed again, and the best becomes a row. What is in the files already is not measured again, so a run that was
stopped goes on; its rows are held against the ceilings of the run that measured them, and the file names the last.

No row is written for a launch that is not right, nor for a kernel that a device which captures could not capture: its
time would hold the host's. A row replaces priorities (`ops/ranking.py`), so that would be a guess.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import torch

from ..ops import discovery
from ..ops.contract import Arguments, Case, Kernel, Launch, Policy
from ..ops.launches import launch_reason, offered, typical_rows
from ..ops.support import UNBOUNDED, bucket_of
from ..ops.tuned import Row, Table, TunedError, dtype_names, formats, read, timed_dims, written
from ..ops.types import Site
from .operands import copied, packed
from .ops import Bench, one_line
from .trials import POLICY, Trial, reference_kernel

_MOMENT_S, _FINALISTS = 0.03, 3
_META = torch.device("meta")
_MOST_LOGITS = 64
"""Rows of logits, one a request, above which a site is not measured."""

Clock = Callable[[Kernel, Launch, float], float]
"""Seconds that a kernel takes, launched so; the last argument: for how many seconds to try."""

Note = dict[str, Any]
"""What became of a kernel at a case: its row, or why there is none."""


class OutOfTime(Exception):
    """The time that a run may take is over."""


def buckets() -> list[int]:
    """The number of rows that stands for each bucket of a binding."""
    bounds = (0, *Policy().buckets, UNBOUNDED)
    return [typical_rows(above, bucket) for above, bucket in pairwise(bounds)]


def of_sites(sites: Iterable[Site]) -> Iterator[Trial]:
    """A trial for each site (parts too) and bucket, as `bench.ops` takes them; sites that are alike once."""
    seen: list[tuple[Any, ...]] = []
    for site in _with_parts(sites):
        key = (site.op, timed_dims(site), dtype_names(site), formats(site))
        if key not in seen:
            seen.append(key)
            yield from _at_buckets(site)


def _with_parts(sites: Iterable[Site]) -> Iterator[Site]:
    for site in sites:
        yield site
        yield from _with_parts(site.parts)


def _at_buckets(site: Site) -> Iterator[Trial]:
    op = discovery.ops()[site.op]
    if site.dtypes["x"] not in op.tolerance or not any(kernel.op == op.name for kernel in discovery.kernels().values()):
        return
    for rows in buckets():
        if site.rows == "tokens" or rows <= _MOST_LOGITS:
            yield trial_at(site, rows)


def trial_at(site: Site, rows: int) -> Trial:
    """A trial of the op's reference on a case like the site, with so many rows."""
    op = discovery.ops()[site.op]
    case = Case(f"{site.label}-{rows}", op.case_at(site, rows), {})
    return Trial(op, reference_kernel(op), case, site.dtypes["x"], full=True)


@dataclass
class Files:
    """The tuned rows of a folder. facts: what a table says of this run. ValueError: rows of another run's software."""

    folder: Path
    facts: dict[str, Any]
    fresh: bool = False
    _tables: dict[str, Table] = field(default_factory=dict[str, Table])

    def table(self, op: str) -> Table:
        if op not in self._tables:
            self._tables[op] = self._read(op)
        return self._tables[op]

    def path(self, op: str) -> Path:
        return self.folder / self.facts["family"] / f"{op}.json"

    def _read(self, op: str) -> Table:
        empty = msgspec.convert({**self.facts, "op": op, "rows": []}, Table)
        if self.fresh or not self.path(op).is_file():
            return empty
        there = read(self.path(op))
        for name in ("profile", "device", "torch", "triton"):
            if getattr(there, name) != getattr(empty, name):
                raise TunedError(
                    f"{self.path(op)} was measured with {name} {getattr(there, name)}, here it is "
                    f"{getattr(empty, name)}: give --fresh to begin anew, or --out another folder"
                )
        return msgspec.structs.replace(empty, rows=there.rows)

    def held(self, op: str, key: tuple[str, str]) -> Row | None:
        return next((row for row in self.table(op).rows if row.key == key), None)

    def add(self, op: str, row: Row) -> None:
        """Instead of one for the same. Written at once: what was measured outlives the process."""
        table = self.table(op)
        others = [each for each in table.rows if each.key != row.key]
        self._tables[op] = msgspec.structs.replace(table, rows=[*others, row])
        path = self.path(op)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text(written(self._tables[op]), encoding="utf-8")
        beside.replace(path)


def facts(bench: Bench, device_name: str) -> dict[str, Any]:
    """What every table of a run says beside its rows."""
    profile = bench.place.profile
    names = {each.metadata["Name"] for each in importlib.metadata.distributions()}
    return {
        "family": profile.tuning_family, "vendor": profile.vendor, "arch": profile.arch,
        "units": profile.compute.units, "profile": profile.name, "device": device_name,
        "date": datetime.datetime.now(datetime.UTC).date(), "torch": str(torch.__version__),
        "triton": importlib.metadata.version("triton") if "triton" in names else None,
        "read_gb_per_s": bench.ceilings.read_gb_per_s, "matrix_tflops": bench.ceilings.matrix_tflops,
    }  # fmt: skip


@dataclass(frozen=True)
class Tuning:
    """One run. deadline: of `time.monotonic`. clock: how long a launch takes, tried for so many seconds, where launches
    are not timed alone; then rows that are there are made anew."""

    bench: Bench
    files: Files
    deadline: float = float("inf")
    clock: Clock | None = None

    def run(self, bases: Sequence[Trial], kernels: Callable[[Trial], list[Kernel]]) -> Iterator[Note | None]:
        """A note for each kernel of each case; None after each case. OutOfTime: what is left stays for another run."""
        for each in bases:
            self._in_time()
            base = replace(each)  # a trial of its own: its operands go with it
            left = [trial for trial in map(base.by, kernels(base)) if self._is_left(trial)]
            for trial in left:
                self._compile(trial)
            wanted = self.bench.wanted(base) if left else None
            for trial in left:
                self._in_time()
                yield self._tuned(trial, wanted)
            yield None

    def _compile(self, trial: Trial) -> None:
        """All launches of a kernel that has to be compiled at once, on all cores: one after another they would take
        most of a run. One that does not compile says so when it is launched."""
        language = discovery.compiled_languages().get(trial.kernel.language)
        if language is None:
            return
        args, params = packed(replace(trial, device=_META).operands, trial.kernel.layout, trial.kernel.page_layouts[0])
        profile = self.bench.place.profile
        with suppress(RuntimeError), language.collecting(language.Target.of(profile), os.cpu_count() or 1):
            for launch in self._launches(trial):
                trial.kernel.run(*args, **params, **launch)

    def _is_left(self, trial: Trial) -> bool:
        held = self.files.held(trial.op.name, self._key(trial))
        return (self.clock is not None or held is None) and trial.refusal(self.bench.place) is None

    def _launches(self, trial: Trial) -> list[Launch]:
        """What the kernel names, and what its row has: a search that knew more may have found that."""
        profile, bucket = self.bench.place.profile, bucket_of(trial.num_rows, POLICY)
        named = offered(trial.kernel, trial.site, profile, bucket)
        held = self.files.held(trial.op.name, self._key(trial))
        if held is None or launch_reason(trial.kernel, trial.site, profile, bucket, held.launch) is not None:
            return named
        return [*named, *([] if held.launch in named else [held.launch])]

    def _in_time(self) -> None:
        if monotonic() > self.deadline:
            raise OutOfTime

    def _tuned(self, trial: Trial, wanted: tuple[torch.Tensor, ...] | None) -> Note:
        note: Note = self.bench.about(trial)
        try:
            proof = self.bench.proved(trial)
            sets, fresh = self.bench.sets(trial), self.bench.packed(trial)
            best, failures = self._fastest(trial, wanted, sets, fresh)
            error = proof if wanted is None else self.bench.error(trial, wanted, best, copied(fresh))
            timed = self.bench.timed(trial, sets, best)
        except (AssertionError, RuntimeError, ValueError) as failure:
            return {**note, "failed": one_line(failure)}
        if timed.eager is not None:
            return {**note, "failed": f"no row, since it was not captured: {timed.eager}"}
        figures = self.bench.figures(trial, timed)
        row = self._row(trial, best, {**figures, "error": error})
        self.files.add(trial.op.name, row)
        return {**note, **figures, "error": error, "launch": dict(best), "launches_refused": failures}

    def _fastest(
        self, trial: Trial, wanted: tuple[torch.Tensor, ...] | None, sets: Sequence[Arguments], fresh: Arguments
    ) -> tuple[Launch, list[str]]:
        """The best of the kernel's launches, and why others are none. AssertionError: not one is right."""
        launches = self._launches(trial)
        failures: list[str] = []
        times: list[tuple[float, int]] = []
        for number, launch in enumerate(launches):
            self._in_time()
            try:
                if wanted is not None:
                    self.bench.error(trial, wanted, launch, copied(fresh))
                times.append((self._seconds(trial, sets, launch, _MOMENT_S), number))
            except (AssertionError, RuntimeError, ValueError) as failure:
                failures.append(f"{dict(launch)}: {one_line(failure)}")
        assert times, "; ".join(failures)
        again = [(self._seconds(trial, sets, launches[number], self.bench.watch.budget_s), number)
                 for _, number in sorted(times)[:_FINALISTS]]  # fmt: skip
        return launches[min(again)[1]], failures

    def _seconds(self, trial: Trial, sets: Sequence[Arguments], launch: Launch, budget_s: float) -> float:
        if self.clock is not None:
            return self.clock(trial.kernel, launch, budget_s)
        return self.bench.timed(trial, sets, launch, budget_s).median_s

    def _key(self, trial: Trial) -> tuple[str, str]:
        return self._row(trial, {}, {"time_us": 1.0, "roofline_share": 1.0, "error": 0.0}).key

    def _row(self, trial: Trial, launch: Launch, figures: dict[str, Any]) -> Row:
        site = trial.site
        return Row(
            kernel=trial.kernel.name, dims=timed_dims(site), dtypes=dtype_names(site), formats=formats(site),
            rows=trial.num_rows, launch=dict(launch), error=figures["error"], time_us=round(figures["time_us"], 3),
            roofline_share=round(figures["roofline_share"], 4),
        )  # fmt: skip
