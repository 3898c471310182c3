"""gated_linear on the C library: gate and up panels meet in registers, silu(gate) · up is rounded once."""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.layouts import PANEL16
from ...ops.types import Determinism, Weight
from .levels import level_launch, widened_row_bytes
from .limits import FLOATS, gated_reason
from .product import product


def gated_linear_cpu(
    x: torch.Tensor, weight: Weight, norm: Weight | None = None, bias: Weight | None = None, *, eps: float = 0.0,
    level: str,
) -> torch.Tensor:  # fmt: skip
    return product(level, x, weight, bias, norm, eps, gated=True)


KERNELS = (
    Kernel(
        "gated_linear_cpu", op="gated_linear", language="cpu", run=gated_linear_cpu, dtypes=FLOATS,
        determinism=Determinism.BATCH, priority=100, layout=PANEL16, refuses=gated_reason, launch=level_launch,
        scratch_row_bytes=widened_row_bytes,
    ),
)  # fmt: skip
