"""What a device gives at most, measured in the run that is held against it.

R, bytes read a second: the best of several readers (the backend's own, a sum, a matrix times one vector, and those that
kernel languages bring). C, operations a second in a dtype: torch's best product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from ..ops.types import Cost, dtype_name
from .limits import readers, ways
from .stopwatch import Call, Stopwatch

_PRODUCTS = {True: ((4096, 4096, 4096), (8192, 8192, 8192), (8192, 28672, 4096)), False: ((512, 2048, 2048),)}
"""Rows, outputs and inputs, for devices that work by themselves and for a host."""

_ATTEMPTS = 3
_ALIKE, _OURS = 0.88, 0.7
"""Of the larger of two ceilings, and of the highest C of the run: another program on a host's cores takes a share of C,
which a change of the memory's speed does not."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ceilings:
    """read_gb_per_s: R, by its best `reader`; matrix_tflops: C by dtype, at the best of `products`."""

    read_gb_per_s: float
    reader: str
    matrix_tflops: dict[str, float]

    def least_s(self, cost: Cost) -> float:
        """The roofline: the least time for so many bytes and operations; without a C for the dtype, for the bytes."""
        by_bytes, rate = cost.num_bytes / (self.read_gb_per_s * 1e9), self.matrix_tflops.get(dtype_name(cost.dtype))
        return by_bytes if rate is None else max(by_bytes, cost.num_operations / (rate * 1e12))

    def plain(self) -> dict[str, Any]:
        return {"read_gb_per_s": self.read_gb_per_s, "reader": self.reader, "matrix_tflops": self.matrix_tflops}


def measure(watch: Stopwatch, dtypes: Sequence[torch.dtype]) -> Ceilings:
    return Gauge(watch, dtypes).ceilings


class Gauge:
    """The best reader and the best product of each dtype, found once, so that both can be read again in the course of a
    run: on a shared machine they change from minute to minute."""

    def __init__(self, watch: Stopwatch, dtypes: Sequence[torch.dtype]) -> None:
        self._read_bytes, readers = _readers(watch)
        rates = {name: self._read_bytes / watch.time(calls).median_s / 1e9 for name, calls in readers.items()}
        reader = max(rates, key=lambda name: rates[name])
        self._watch, self._reads = watch, readers[reader]
        own = watch.backend.read_bandwidth_gb_per_s(watch.device)
        reader, rate = (watch.backend.name, own) if own > rates[reader] else (reader, rates[reader])
        self._products = {dtype_name(dtype): best_product(watch, dtype) for dtype in dtypes}
        tflops = {dtype: operations / seconds / 1e12 for dtype, (operations, _, seconds) in self._products.items()}
        self.ceilings = Ceilings(rate, reader, tflops)
        self._most = 0.0

    def steady(self, dtype: str, work: Callable[[], _T]) -> tuple[_T, tuple[Ceilings, Ceilings], bool]:
        """What some work yields, with the ceilings before and after it, and whether they were the same and the machine
        ours: work that another program or a change of speed fell into is done again, a few times."""
        before = self.now(dtype)
        for _ in range(_ATTEMPTS):
            found, after = work(), self.now(dtype)
            self._most = max(self._most, after.matrix_tflops[dtype])
            if self._alike(before, after, dtype):
                return found, (before, after), True
            last, before = (before, after), after
        return found, last, False

    def _alike(self, before: Ceilings, after: Ceilings, dtype: str) -> bool:
        rates = [each.matrix_tflops[dtype] for each in (before, after)]
        reads = [each.read_gb_per_s for each in (before, after)]
        return min(reads) > _ALIKE * max(reads) and min(rates) > _ALIKE * max(rates) and min(rates) > _OURS * self._most

    def now(self, dtype: str) -> Ceilings:
        """Both again, C of one dtype, in a quarter of the stopwatch's time each."""
        watch = replace(self._watch, budget_s=self._watch.budget_s / 4)
        operations, call, _ = self._products[dtype]
        rate = self._read_bytes / watch.time(self._reads).median_s / 1e9
        return Ceilings(rate, self.ceilings.reader, {dtype: operations / watch.time([call]).median_s / 1e12})


def _readers(watch: Stopwatch) -> tuple[int, dict[str, list[Call]]]:
    """Bytes that a call reads, and each reader's calls: the parts of a buffer in turn, so that no cache holds it."""
    free = watch.backend.memory(watch.device).free_bytes
    wanted = (4 if watch.backend.is_asynchronous else 1) * watch.rotated_bytes  # a launch's start hides in a long read
    part = min(wanted, free // 4) // 4 // 4096 * 4096
    buffers = [torch.ones(part // 4, dtype=torch.float32, device=watch.device) for _ in range(4)]
    found: list[tuple[str, Callable[[torch.Tensor], object]]] = [("sum", torch.sum), ("vector", _times_vector)]
    found += readers() if not watch.backend.is_asynchronous else []
    return part, {name: [partial(read, buffer) for buffer in buffers] for name, read in found}


def _times_vector(buffer: torch.Tensor) -> torch.Tensor:
    matrix = buffer.view(torch.bfloat16).view(-1, 2048)
    return torch.mv(matrix, matrix[0])


def best_product(watch: Stopwatch, dtype: torch.dtype) -> tuple[int, Call, float]:
    """Operations, the call and its seconds, of the product and way with the highest rate."""
    found: list[tuple[int, Call, float]] = []
    for rows, outputs, inputs in _PRODUCTS[watch.backend.is_asynchronous]:
        for _, call in ways((rows, outputs, inputs), dtype, watch.device):
            found.append((2 * rows * outputs * inputs, call, watch.time([call]).median_s))
    return max(found, key=lambda each: each[0] / each[2])
