"""What a device gives at most, measured in the run that is held against it.

R, bytes read a second: the best of several readers (the backend's own, a sum, a matrix times one vector, and those that
kernel languages bring). C, operations a second in a dtype: torch's best product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..ops.types import Cost, dtype_name
from .limits import readers, ways
from .stopwatch import Call, Stopwatch

_PRODUCTS = {True: ((4096, 4096, 4096), (8192, 8192, 8192), (8192, 28672, 4096)), False: ((512, 2048, 2048),)}
"""Rows, outputs and inputs, for devices that work by themselves and for a host."""


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
    rates = dict(_reads(watch))
    reader = max(rates, key=lambda name: rates[name])
    return Ceilings(rates[reader], reader, {dtype_name(dtype): _matrix_tflops(watch, dtype) for dtype in dtypes})


def _reads(watch: Stopwatch) -> Iterator[tuple[str, float]]:
    """10⁹ bytes a second by reader. The parts of the buffer are read in turn: no cache holds it."""
    yield watch.backend.name, watch.backend.read_bandwidth_gb_per_s(watch.device)
    free = watch.backend.memory(watch.device).free_bytes
    wanted = (4 if watch.backend.is_asynchronous else 1) * watch.rotated_bytes  # a launch's start hides in a long read
    part = min(wanted, free // 4) // 4 // 4096 * 4096
    buffers = [torch.ones(part // 4, dtype=torch.float32, device=watch.device) for _ in range(4)]
    found: list[tuple[str, Callable[[torch.Tensor], object]]] = [("sum", torch.sum), ("vector", _times_vector)]
    found += readers() if not watch.backend.is_asynchronous else []
    for name, read in found:
        calls: list[Call] = [partial(read, buffer) for buffer in buffers]
        yield name, part / watch.time(calls).median_s / 1e9


def _times_vector(buffer: torch.Tensor) -> torch.Tensor:
    matrix = buffer.view(torch.bfloat16).view(-1, 2048)
    return torch.mv(matrix, matrix[0])


def _matrix_tflops(watch: Stopwatch, dtype: torch.dtype) -> float:
    rates = []
    for sizes in _PRODUCTS[watch.backend.is_asynchronous]:
        for _, call in ways(sizes, dtype, watch.device):
            rates.append(2 * sizes[0] * sizes[1] * sizes[2] / watch.time([call]).median_s / 1e12)
    return max(rates)
