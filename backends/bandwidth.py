"""How fast a device reads its memory: the denominator of the roofline that a run is held against."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_BUDGET_S = 0.15
_MAX_PASSES = 20


def read_gb_per_s(device: torch.device, num_bytes: int, synchronize: Callable[[torch.device], None]) -> float:
    """The best of several passes of a sum over a fresh buffer of `num_bytes`, in 10⁹ bytes a second.

    The buffer has to be larger than the device's caches. Filling it comes first and is not timed.
    """
    buffer = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    buffer[: num_bytes // 64].sum()
    synchronize(device)
    best_s, begin = float("inf"), time.perf_counter()
    for _ in range(_MAX_PASSES):
        start = time.perf_counter()
        buffer.sum()
        synchronize(device)
        end = time.perf_counter()
        best_s = min(best_s, end - start)
        if end - begin > _BUDGET_S:
            break
    return buffer.numel() * 4 / best_s / 1e9
