"""linear_add on the C library: the residual is added to the float32 sum, which is rounded once."""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.layouts import PANEL16
from ...ops.types import Determinism, Weight
from .levels import level_launch, widened_row_bytes
from .limits import FLOATS, product_reason
from .product import product


def linear_add_cpu(
    x: torch.Tensor, weight: Weight, residual: torch.Tensor, bias: Weight | None = None, *, level: str
) -> torch.Tensor:
    return product(level, x, weight, bias, residual=residual)


KERNELS = (
    Kernel(
        "linear_add_cpu", op="linear_add", language="cpu", run=linear_add_cpu, dtypes=FLOATS,
        determinism=Determinism.BATCH, priority=100, layout=PANEL16, refuses=product_reason, launch=level_launch,
        scratch_row_bytes=widened_row_bytes,
    ),
)  # fmt: skip
