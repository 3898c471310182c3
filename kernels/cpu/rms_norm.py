"""rms_norm on the C library: one pass over each row, in float32."""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.types import Determinism, Weight
from .levels import level_launch
from .limits import FLOATS, norm_reason
from .normalisation import normalise


def rms_norm_cpu(x: torch.Tensor, weight: Weight, *, eps: float, level: str) -> torch.Tensor:
    if x.ndim == 2:
        return normalise(level, x, weight, eps)
    return normalise(level, x.reshape(-1, x.shape[-1]), weight, eps).view(x.shape)


KERNELS = (
    Kernel(
        "rms_norm_cpu", op="rms_norm", language="cpu", run=rms_norm_cpu, dtypes=FLOATS,
        determinism=Determinism.BATCH, priority=100, refuses=norm_reason, launch=level_launch,
    ),
)  # fmt: skip
