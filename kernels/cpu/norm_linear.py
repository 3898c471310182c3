"""norm_linear on the C library: rows are normalised as they are laid out for the product."""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.layouts import PANEL16
from ...ops.types import Determinism, Weight
from .levels import level_launch, widened_row_bytes
from .limits import FLOATS, product_reason
from .product import product


def norm_linear_cpu(
    x: torch.Tensor,
    norm: Weight,
    weight: Weight,
    bias: Weight | None = None,
    *,
    eps: float,
    out_dtype: torch.dtype | None = None,
    level: str,
) -> torch.Tensor:
    return product(level, x, weight, bias, norm, eps, None, out_dtype)


KERNELS = (
    Kernel(
        "norm_linear_cpu", op="norm_linear", language="cpu", run=norm_linear_cpu, dtypes=FLOATS,
        determinism=Determinism.BATCH, priority=100, layout=PANEL16, refuses=product_reason, launch=level_launch,
        scratch_row_bytes=widened_row_bytes,
    ),
)  # fmt: skip
