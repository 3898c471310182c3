# pyright: basic
"""linear_add in Triton for few rows and for many: the residual is added before the one rounding. See `product.py`."""

from __future__ import annotations

from typing import Any

import torch

from ...ops.contract import Kernel
from ...ops.types import Determinism, Weight
from . import large_launch
from .large_product import large_product
from .product import product
from .product_launch import MAX_ROWS, configurations, fits, fits_rows, invariant_launch, launch, refuses

_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


def linear_add_triton(
    x: torch.Tensor, weight: Weight, residual: torch.Tensor, bias: Weight | None = None, **launch: Any,
) -> torch.Tensor:  # fmt: skip
    return product(x, weight, bias=bias, residual=residual, **launch)


def linear_add_triton_large(
    x: torch.Tensor, weight: Weight, residual: torch.Tensor, bias: Weight | None = None, **launch: Any,
) -> torch.Tensor:  # fmt: skip
    return large_product(x, weight, bias=bias, residual=residual, **launch)


KERNELS = (
    Kernel(
        "linear_add_triton", op="linear_add", language="triton", run=linear_add_triton, dtypes=_DTYPES,
        determinism=Determinism.RUN, priority=50, max_rows=MAX_ROWS, refuses=refuses, launch=launch,
        configurations=configurations, refuses_launch=fits,
    ),
    Kernel(
        "linear_add_triton_large", op="linear_add", language="triton", run=linear_add_triton_large, dtypes=_DTYPES,
        determinism=Determinism.RUN, priority=40, refuses=large_launch.refuses, launch=large_launch.launch,
        configurations=large_launch.configurations, refuses_launch=large_launch.fits,
    ),
    Kernel(
        "linear_add_triton_invariant", op="linear_add", language="triton", run=linear_add_triton, dtypes=_DTYPES,
        determinism=Determinism.BATCH, priority=5, refuses=refuses, launch=invariant_launch, refuses_launch=fits_rows,
    ),
)  # fmt: skip
