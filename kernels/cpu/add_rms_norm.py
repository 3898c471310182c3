"""add_rms_norm on the C library: the sum is written and normalised in one pass."""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.types import Determinism, Weight
from .levels import level_launch
from .limits import FLOATS, norm_reason
from .normalisation import add_normalise


def add_rms_norm_cpu(
    x: torch.Tensor, residual: torch.Tensor, weight: Weight, *, eps: float, level: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if x.ndim == 2:
        return add_normalise(level, x, residual, weight, eps)
    width = x.shape[-1]
    y, total = add_normalise(level, x.reshape(-1, width), residual.reshape(-1, width), weight, eps)
    return y.view(x.shape), total.view(x.shape)


KERNELS = (
    Kernel(
        "add_rms_norm_cpu", op="add_rms_norm", language="cpu", run=add_rms_norm_cpu, dtypes=FLOATS,
        determinism=Determinism.BATCH, priority=100, refuses=norm_reason, launch=level_launch,
    ),
)  # fmt: skip
