"""linear on the C library: the weight, in panels of 16 rows, is read once whatever the number of rows."""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.layouts import PANEL16
from ...ops.types import Determinism, Weight
from .levels import level_launch, widened_row_bytes
from .limits import FLOATS, product_reason
from .product import product


def linear_cpu(
    x: torch.Tensor, weight: Weight, bias: Weight | None = None, *, out_dtype: torch.dtype | None = None, level: str
) -> torch.Tensor:
    return product(level, x, weight, bias, out_dtype=out_dtype)


KERNELS = (
    Kernel(
        "linear_cpu", op="linear", language="cpu", run=linear_cpu, dtypes=FLOATS, determinism=Determinism.BATCH,
        priority=100, layout=PANEL16, refuses=product_reason, launch=level_launch,
        scratch_row_bytes=widened_row_bytes,
    ),
)  # fmt: skip
