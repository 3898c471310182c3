# pyright: basic
"""linear in Triton for few rows, as in a decode step: see `product.py`.

The invariant one serves any number of rows, at one tile."""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.types import Determinism, Weight
from .product import product
from .product_launch import MAX_ROWS, configurations, fits, invariant_launch, launch, refuses

_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


def linear_triton(
    x: torch.Tensor, weight: Weight, bias: Weight | None = None, *, out_dtype: torch.dtype | None = None, **launch: int,
) -> torch.Tensor:  # fmt: skip
    return product(x, weight, bias=bias, out_dtype=out_dtype, **launch)


KERNELS = (
    Kernel(
        "linear_triton", op="linear", language="triton", run=linear_triton, dtypes=_DTYPES,
        determinism=Determinism.RUN, priority=50, max_rows=MAX_ROWS, refuses=refuses, launch=launch,
        configurations=configurations, refuses_launch=fits,
    ),
    Kernel(
        "linear_triton_invariant", op="linear", language="triton", run=linear_triton, dtypes=_DTYPES,
        determinism=Determinism.BATCH, priority=5, refuses=refuses, launch=invariant_launch, refuses_launch=fits,
    ),
)  # fmt: skip
