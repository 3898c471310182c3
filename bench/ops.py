"""Each op's cases, timed kernel by kernel, beside the ceilings of the same run and the fastest library kernel.

A kernel is timed behind its proof: it has passed the conformance of the case's twin here, and its result on the case
itself lies within the op's tolerance. Who refuses or fails says why and has no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from ..ops import discovery
from ..ops.binding import bind
from ..ops.contract import Arguments, Kernel, Launch, Op
from ..ops.launches import Launches
from ..ops.manifest import references
from ..ops.reference import ReferenceOps
from ..ops.support import UNBOUNDED, bucket_of
from ..ops.tuned import Tuned, found
from ..ops.types import Determinism, dtype_name
from .ceilings import Ceilings
from .operands import changed, copied, each_tensor, on_device, packed, widened
from .stopwatch import Stopwatch, Timed
from .trials import POLICY, Place, Trial, reference_kernel, relative_error

LIBRARY = "torch"
"""The language whose kernels are calls of vendors' libraries."""
_MAX_REFERENCE_OPERATIONS = {True: 5e12, False: 1e11}
"""On devices that work by themselves and on hosts: above it the reference in float64 would take minutes, and the error
is that of the twin; as it is where the reference does not fit the memory."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """Which cases and kernels: patterns of names. dtype: of the operands, where the op has it (else its first)."""

    ops: str = "*"
    cases: str = "*"
    kernels: str = "*"
    dtype: torch.dtype = torch.bfloat16

    def trials(self) -> list[Trial]:
        """One a case, of the op's reference: the trial from which the kernels' are made."""
        return [
            Trial(op, reference_kernel(op), case, self.dtype_of(op), full=True)
            for op in discovery.ops().values() if fnmatch(op.name, self.ops)
            for case in op.cases if fnmatch(case.name, self.cases)
        ]  # fmt: skip

    def dtype_of(self, op: Op) -> torch.dtype:
        return self.dtype if self.dtype in op.tolerance else next(iter(op.tolerance))

    def of(self, op: Op) -> list[Kernel]:
        kernels = [each for each in discovery.kernels().values() if each.op == op.name]
        return [each for each in kernels if fnmatch(each.name, self.kernels) or each.language == LIBRARY]


class Bench:
    """Times trials on one device. tuned: the rows from which launches are picked."""

    def __init__(self, place: Place, watch: Stopwatch, ceilings: Ceilings, tuned: Tuned | None = None) -> None:
        self.place, self.watch, self.ceilings = place, watch, ceilings
        buckets = (*POLICY.buckets, UNBOUNDED)
        self._proved: dict[tuple[Kernel, tuple[str, ...], torch.dtype], float] = {}
        self._launches = Launches(place.profile, found() if tuned is None else tuned, buckets, single=False)

    def case(self, base: Trial, kernels: Sequence[Kernel]) -> list[Row]:
        """A row for each kernel, the fastest first; then who was not timed, and why."""
        wanted = self.wanted(base)
        rows = [self.kernel(base.by(each), wanted) for each in (*kernels, *self._library_parts(base))]
        timed = sorted((row for row in rows if "time_us" in row), key=lambda row: row["time_us"])
        library = next((row for row in timed if row["language"] == LIBRARY), None)
        for row in timed:
            row["library"] = library and library["kernel"]
            row["times_library"] = library and library["time_us"] / row["time_us"]
        return [*timed, *(row for row in rows if "time_us" not in row)]

    def wanted(self, base: Trial) -> tuple[torch.Tensor, ...] | None:
        """The reference in float64, computed on the device; None where that is too much work."""
        if base.cost.num_operations > _MAX_REFERENCE_OPERATIONS[self.watch.backend.is_asynchronous]:
            return None
        try:
            args, params = widened(on_device(base.operands, self.place.device))
            return base.op.observe(ReferenceOps(discovery.ops()).function(base.op)(*args, **params), args)
        except torch.OutOfMemoryError:
            return None

    def kernel(self, trial: Trial, wanted: tuple[torch.Tensor, ...] | None) -> Row:
        """The row of one kernel, launched as a binding would."""
        row = self.about(trial)
        reason = trial.refusal(self.place)
        if reason is not None:
            return {**row, "refused": str(reason)}
        pick = self._launches.pick(trial.kernel, trial.site, bucket_of(trial.num_rows, POLICY))
        row |= {"launch": dict(pick.launch), "launch_source": pick.source}
        try:
            error = self.proved(trial)
            error = self.error(trial, wanted, pick.launch) if wanted is not None else error
            timed = self.timed(trial, self.sets(trial), pick.launch)
        except (AssertionError, RuntimeError, ValueError) as failure:
            return {**row, "failed": one_line(failure)}
        return {**row, **self.figures(trial, timed), "error": error, "error_of": "twin" if wanted is None else "case"}

    def about(self, trial: Trial) -> Row:
        return {
            "op": trial.op.name, "case": trial.case.name, "dtype": dtype_name(trial.dtype), "rows": trial.num_rows,
            "kernel": trial.kernel.name, "language": trial.kernel.language,
        }  # fmt: skip

    def proved(self, trial: Trial) -> float:
        """Tries the case's twin (of a shape that is no case, every twin); its error. AssertionError: it is wrong."""
        twins = [case for case in trial.op.proofs if case.twin == trial.case.twin] or trial.op.proofs
        key = (trial.kernel, tuple(case.name for case in twins), trial.dtype)
        if key not in self._proved:
            self._proved[key] = max(self._proof(Trial(trial.op, trial.kernel, case, trial.dtype)) for case in twins)
        return self._proved[key]

    def _proof(self, twin: Trial) -> float:
        if twin.refusal(self.place) is not None:
            return 0.0
        twin.check(self.place)
        return max(twin.errors(self.place), default=0.0)

    def error(self, trial: Trial, wanted: tuple[torch.Tensor, ...], launch: Launch) -> float:
        """Of the case itself. AssertionError where it is larger than the op allows."""
        operands = self.packed(trial)
        observed = trial.op.observe(trial.call(operands, self.place, launch), operands[0])
        error = max((relative_error(y, right) for y, right in zip(observed, wanted, strict=True)), default=0.0)
        tolerance = trial.op.tolerance[trial.dtype]
        assert error <= tolerance, f"{trial}: error {error:.2e} of the largest, the op allows {tolerance:.1e}"
        return error

    def packed(self, trial: Trial) -> Arguments:
        """The operands on the device, as the kernel wants them."""
        return on_device(packed(trial.operands, trial.kernel.layout, trial.kernel.page_layouts[0]), self.place.device)

    def sets(self, trial: Trial) -> list[Arguments]:
        """So many copies of the operands that no cache holds them all."""
        first = self.packed(trial)
        num_sets = self.watch.num_sets(trial.cost.num_bytes, _num_bytes(first))
        return [first, *(copied(first) for _ in range(num_sets - 1))]

    def timed(self, trial: Trial, sets: Sequence[Arguments], launch: Launch, budget_s: float | None = None) -> Timed:
        watch = self.watch if budget_s is None else replace(self.watch, budget_s=budget_s)
        return watch.time([partial(trial.kernel.run, *args, **params, **launch) for args, params in sets])

    def figures(self, trial: Trial, timed: Timed) -> Row:
        seconds, cost = timed.median_s, trial.cost
        return {
            "time_us": seconds * 1e6,
            "min_us": min(timed.samples_s) * 1e6,
            "num_samples": len(timed.samples_s),
            "num_calls": timed.num_calls,
            "eager": timed.eager,
            "num_bytes": cost.num_bytes,
            "num_operations": cost.num_operations,
            "gb_per_s": cost.num_bytes / seconds / 1e9,
            "tflops": cost.num_operations / seconds / 1e12,
            "roofline_share": self.ceilings.least_s(cost) / seconds,
        }

    def _library_parts(self, base: Trial) -> list[Kernel]:
        """A composite's parts, each by a library's kernel: one that is called like a kernel."""
        if not base.site.parts:
            return []
        kernels = {name: each for name, each in discovery.kernels().items() if each.language == LIBRARY}
        bound = bind((base.site,), self.place.profile, POLICY, missing=self.place.missing, kernels=kernels,
                     tuned=Tuned())  # fmt: skip
        if references(bound) or any(part.parts for part in bound.sites[0].parts) or not bound.sites[0].parts:
            return []
        assert base.op.parts is not None
        chosen = {part.site.op: kernels[part.choices[0].chosen].run for part in bound.sites[0].parts}
        run, dtypes = partial(base.op.parts, SimpleNamespace(**chosen)), frozenset(base.op.tolerance)
        return [Kernel(f"{base.op.name}.parts", base.op.name, LIBRARY, run, dtypes, Determinism.NONE, priority=0)]


def one_line(failure: Exception) -> str:
    return " ".join(str(failure).split())[:300]


def _num_bytes(operands: Arguments) -> int:
    total = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    changed(operands, each_tensor(count))
    return total


def rows(selection: Selection, bench: Bench, each: Callable[[], None] = lambda: None) -> Iterator[Row]:
    """Everything that is selected, case by case; `each` is called after each case."""
    for base in selection.trials():
        yield from bench.case(replace(base), selection.of(base.op))  # a trial of its own: its operands go with it
        each()
