"""Trials: one kernel on one case in one dtype. What the conformance suite runs, and how it judges.

The expected result is the op's reference in float64. A trial's error is max |y - expected| / max |expected| over each
tensor that the op observes; integers must be equal. A kernel that refuses the site gives its coded reason: neither a
failure nor a pass. Promises are tried too: two runs for `run`; for `batch` a row or a request alone and in company,
with one launch, as a binding at `batch` has it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property, lru_cache
from math import inf
from typing import Any

import torch

from ..hwprofiles.schema import Profile
from ..ops import discovery
from ..ops.contract import Arguments, Case, Kernel, Launch, Op, Policy
from ..ops.reference import ReferenceOps
from ..ops.state import Attending, Pages
from ..ops.support import PageDemand, bucket_of, layout_refusal, refusal
from ..ops.tracing import Recorder
from ..ops.types import Cost, Determinism, Reason, Site, Work, dtype_name
from .operands import Poison, copied, on_device, packed, request_taken, rows_taken, widened

POLICY = Policy(determinism=Determinism.NONE)
_CPU = torch.device("cpu")
_COMPANY = 70
"""Rows of the larger batch in which a row must keep its bits: more than two of the policy's buckets."""


@dataclass(frozen=True)
class Place:
    """Where trials run: the profile that decides who serves, the device, and the languages that cannot run here.

    most_programs: to so many a launch's `programs` are cut, None: they are the device's own.
    """

    profile: Profile
    device: torch.device
    missing: dict[str, str]
    most_programs: int | None = None


@dataclass(frozen=True)
class Trial:
    """A kernel, a case (itself or its twin) and a dtype. `check` raises AssertionError with what is wrong.

    device: where the operands are made; on `meta` they are shapes alone, which no check can use.
    """

    op: Op
    kernel: Kernel
    case: Case
    dtype: torch.dtype
    full: bool = False
    device: torch.device = _CPU

    def __str__(self) -> str:
        return f"{self.kernel.name}-{self.case.name}-{dtype_name(self.dtype)}"

    @cached_property
    def operands(self) -> Arguments:
        dims = self.case.dims if self.full else self.case.twin
        seed = zlib.crc32(f"{self.op.name}:{self.case.name}".encode())
        return self.op.inputs(dims, self.dtype, self.device, torch.Generator().manual_seed(seed))

    @cached_property
    def site(self) -> Site:
        args, params = on_device(self.operands, "meta")
        recorder = Recorder(discovery.ops(), num_logits=-1)
        getattr(recorder, self.op.name)(*args, **params)
        return recorder.sites[0]

    def by(self, kernel: Kernel) -> Trial:
        """The same trial of another kernel, on the very operands of this one."""
        other = replace(self, kernel=kernel)
        other.__dict__.update(operands=self.operands, site=self.site)
        return other

    @property
    def num_rows(self) -> int:
        return int(self.operands[0][0].shape[self.op.row_axis])

    @property
    def is_reference(self) -> bool:
        return self.kernel.name.endswith((".reference", ".parts"))

    def refusal(self, place: Place) -> Reason | None:
        """Why the kernel cannot serve this case on the profile, in the binding's own words."""
        if self.is_reference:
            return None
        bucket = bucket_of(self.num_rows, POLICY)
        reason = refusal(self.kernel, self.site, bucket, place.profile, POLICY, place.missing)
        pages = [arg for arg in self.operands[0] if isinstance(arg, Pages)]
        demands = {found.group.name: PageDemand(self.kernel.page_layouts[0], found.page_size) for found in pages}
        return reason or layout_refusal(self.kernel, self.site, demands)

    def launch(self, place: Place, num_rows: int) -> Launch:
        """As a binding without tuned rows launches so many rows."""
        bucket = bucket_of(num_rows, POLICY)
        launch = self.kernel.launch(self.site, place.profile, bucket) if self.kernel.launch else {}
        cut = place.most_programs and "programs" in launch
        return {**launch, "programs": min(launch["programs"], place.most_programs)} if cut else launch

    def call(self, operands: Arguments, place: Place, launch: Launch | None = None) -> Any:
        """One run with poisoned memory, with this launch or the one for its number of rows."""
        args, params = operands
        if launch is None:
            launch = self.launch(place, int(args[0].shape[self.op.row_axis]))
        with Poison():
            return self.kernel.run(*args, **params, **launch)

    def packings(self, place: Place) -> Iterator[Arguments]:
        """The operands as the kernel wants them, once for each order of page axes that it accepts."""
        paged = any(isinstance(arg, Pages) for arg in self.operands[0])
        for order in self.kernel.page_layouts if paged else self.kernel.page_layouts[:1]:
            yield on_device(packed(self.operands, self.kernel.layout, order), place.device)

    def check(self, place: Place) -> None:
        for operands in self.packings(place):
            fresh = self._unused(operands)
            result = self.call(operands, place)
            self._check_outputs(result)
            for name, y, expected in self._compared(result, operands):
                compare(f"{self}: {name}", y, expected, self.op.tolerance[self.dtype])
            self._check_promises(place, fresh, self.op.observe(result, operands[0]))

    def errors(self, place: Place) -> list[float]:
        """The relative error of each tensor that the op observes, in each order of page axes."""
        found = []
        for operands in self.packings(place):
            compared = self._compared(self.call(operands, place), operands)
            found += [relative_error(y, reference) for _, y, reference in compared]
        return found

    def _check_outputs(self, result: Any) -> None:
        """The result has the shapes and dtypes that the op's validation announces."""
        args, params = self.operands
        announced = self.op.check(*args, **params).outputs
        given = tuple((tuple(y.shape), y.dtype) for y in tensors_of(result))
        assert given == announced, f"{self}: returns {given}, the op announces {announced}"

    def _compared(self, result: Any, operands: Arguments) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        observed = self.op.observe(result, operands[0])
        device = operands[0][0].device
        wanted = expected(self.op.name, self.case.name, self.dtype, self.full, device)
        assert len(observed) == len(wanted), f"{self}: {len(observed)} tensors, the reference has {len(wanted)}"
        for number, (y, reference) in enumerate(zip(observed, wanted, strict=True)):
            yield f"tensor {number}", y.cpu(), reference

    def _check_promises(self, place: Place, fresh: Arguments, first: tuple[torch.Tensor, ...]) -> None:
        """fresh: operands that no call has written to; first: what the op observed of a run on others like them."""
        if self.kernel.determinism.covers(Determinism.RUN):
            again = self._unused(fresh)
            second = self.op.observe(self.call(again, place), again[0])
            assert all(map(same_bits, first, second)), f"{self}: promises determinism `run`, two runs differ"
        if self.kernel.determinism.covers(Determinism.BATCH):
            company = self._requests if any(isinstance(a, Attending) for a in fresh[0]) else self._rows
            for what, alone, together in company(self._unused(fresh), place):
                assert same_bits(alone, together), f"{self}: promises determinism `batch`, {what} differs when alone"

    def _unused(self, operands: Arguments) -> Arguments:
        """Operands that no call has written to: pages are taken from the case again."""
        pages = [arg for arg in operands[0] if isinstance(arg, Pages)]
        if not pages:
            return copied(operands)
        device = operands[0][0].device
        return on_device(packed(self.operands, self.kernel.layout, pages[0].layout), device)

    def _requests(self, operands: Arguments, place: Place) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        args, params = operands
        launch = self.launch(place, 1)
        together = self.call(operands, place, launch)
        for number in range(next(arg for arg in args if isinstance(arg, Attending)).context_lengths.shape[0]):
            alone, rows = request_taken(args, number)
            yield f"request {number}", self.call((alone, params), place, launch), together[rows]

    def _rows(self, operands: Arguments, place: Place) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        count, axis, launch = self.num_rows, self.op.row_axis, self.launch(place, 1)
        many = self.call(rows_taken(operands, axis, count, torch.arange(_COMPANY) % count), place, launch)
        last = min(count, _COMPANY) - 1
        for row in sorted({0, last // 2, last}):
            alone = self.call(rows_taken(operands, axis, count, torch.tensor([row])), place, launch)
            for y, company in zip(tensors_of(alone), tensors_of(many), strict=True):
                yield f"row {row}", y[0], company[row]

    @property
    def cost(self) -> Cost:
        return self.op.cost(self.site, work_of(self.operands[0], self.num_rows))


def tensors_of(result: Any) -> tuple[torch.Tensor, ...]:
    if result is None:
        return ()
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    first, second = (tensor.contiguous().cpu().flatten().view(torch.uint8) for tensor in (a, b))
    return torch.equal(first, second)


def compare(what: str, y: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """AssertionError unless y is as near to what is wanted as the tolerance says, NaN and infinities where they are."""
    assert y.shape == wanted.shape, f"{what} has shape {list(y.shape)}, not {list(wanted.shape)}"
    if not y.is_floating_point():
        assert torch.equal(y, wanted), f"{what}: {int((y != wanted).sum())} of {y.numel()} integers differ"
        return
    y, wanted = y.double(), wanted.double()
    strange = _strange(y, wanted)
    assert not strange.any(), (
        f"{what}: {int(strange.sum())} of {y.numel()} values are NaN or infinite, and should not be"
    )
    relative = relative_error(y, wanted)
    assert relative <= tolerance, f"{what}: error {relative:.2e} of the largest, the op allows {tolerance:.1e}"


def _strange(y: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Where one is a number and the other is none."""
    return ~torch.where(wanted.isfinite(), y.isfinite(), (y == wanted) | (y.isnan() & wanted.isnan()))


def relative_error(y: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest value; infinity where a NaN or an integer is not as wanted."""
    if not y.is_floating_point():
        return 0.0 if torch.equal(y, wanted) else inf
    y, wanted = y.double(), wanted.double()
    if _strange(y, wanted).any():
        return inf
    finite = wanted.isfinite()
    if not finite.any():
        return 0.0
    largest, error = wanted[finite].abs().max().item(), (y - wanted)[finite].abs().max().item()
    return error / largest if largest else error


@lru_cache(maxsize=16)
def expected(
    op_name: str, case_name: str, dtype: torch.dtype, full: bool, device: torch.device = _CPU
) -> tuple[torch.Tensor, ...]:
    """What the op observes of its reference in float64, computed on the device if it holds it; on the CPU."""
    op = discovery.ops()[op_name]
    case = next(case for case in op.cases if case.name == case_name)
    operands = widened(Trial(op, reference_kernel(op), case, dtype, full).operands)
    try:
        found = _observed_of_reference(op, on_device(operands, device if full else _CPU))
    except torch.OutOfMemoryError:
        found = _observed_of_reference(op, operands)
    return tuple(y.cpu() for y in found)


def _observed_of_reference(op: Op, operands: Arguments) -> tuple[torch.Tensor, ...]:
    args, params = copied(operands)
    return op.observe(ReferenceOps(discovery.ops()).function(op)(*args, **params), args)


def reference_kernel(op: Op) -> Kernel:
    """The op's reference, or its parts by their references, tried like a kernel: in the operands' own dtype."""
    name, level = ("reference", op.determinism) if op.reference else ("parts", Determinism.RUN)
    run: Callable[..., Any] = ReferenceOps(discovery.ops()).function(op)
    return Kernel(f"{op.name}.{name}", op.name, "torch", run, frozenset(op.tolerance), level, priority=0)


def trials(pattern: str = "*", *, full: bool = False) -> list[Trial]:
    """Every kernel whose name fits the pattern (references too, as `<op>.reference`) × its op's cases × its dtypes."""
    found = []
    for op in discovery.ops().values():
        serving = [kernel for kernel in discovery.kernels().values() if kernel.op == op.name]
        for kernel in (reference_kernel(op), *sorted(serving, key=lambda kernel: kernel.name)):
            if fnmatch(kernel.name, pattern):
                dtypes = [dtype for dtype in op.tolerance if dtype in kernel.dtypes]
                cases = op.cases if full else op.proofs
                found += [Trial(op, kernel, case, dtype, full) for case in cases for dtype in dtypes]
    return found


def work_of(args: tuple[Any, ...], num_rows: int) -> Work:
    """The dynamic sizes of a call, counted from its operands."""
    attending = next((arg for arg in args if isinstance(arg, Attending)), None)
    if attending is None:
        return Work(rows=num_rows)
    window = next(arg for arg in args if isinstance(arg, Pages)).group.window
    queries, contexts = attending.query_starts.diff().tolist(), attending.context_lengths.tolist()
    kept = [
        min(context, window + query - 1) if window else context
        for query, context in zip(queries, contexts, strict=True)
    ]
    seen = [
        min(context - query + row + 1, window or context)
        for query, context in zip(queries, contexts, strict=True)
        for row in range(query)
    ]
    return Work(num_rows, len(queries), sum(kept), sum(seen))
