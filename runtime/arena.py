"""An arena: one allocation of a backend, cut into tensors.

Weights and pages are allocated once and live as long as the engine. In one piece they can lie on huge pages: a matrix
of two megabytes that is spread over 4 KiB pages reads at half the speed on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch

from ..backends.contract import Backend

_ALIGNMENT = 256
"""Bytes: of every cut; a multiple of what any kernel asks of a weight."""


def arena_bytes(tensors: Iterable[tuple[tuple[int, ...], torch.dtype]]) -> int:
    """What an arena must hold for these shapes and dtypes, each cut aligned."""
    return sum(_aligned(prod(shape) * dtype.itemsize) for shape, dtype in tensors)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class Arena:
    """`take(shape, dtype)` gives the next piece as a zeroed tensor. MemoryError beyond the size it was made for.

    storage: [num_bytes] uint8, all of it.
    """

    def __init__(self, num_bytes: int, backend: Backend, device: torch.device) -> None:
        self.storage = backend.allocate(num_bytes, device)
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        num_bytes = prod(shape) * dtype.itemsize
        if self._used + num_bytes > self.storage.numel():
            raise MemoryError(f"the arena of {self.storage.numel():,} bytes has no {num_bytes:,} left")
        piece = self.storage[self._used : self._used + num_bytes].view(dtype).view(shape)
        self._used += _aligned(num_bytes)
        return piece
