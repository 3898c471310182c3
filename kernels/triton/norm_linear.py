# pyright: basic
"""norm_linear in Triton for few rows and for many: the norm folds into the product. See `product.py`."""

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


def norm_linear_triton(
    x: torch.Tensor, norm: Weight, weight: Weight, bias: Weight | None = None, *, eps: float,
    out_dtype: torch.dtype | None = None, **launch: Any,
) -> torch.Tensor:  # fmt: skip
    return product(x, weight, norm, bias, eps=eps, out_dtype=out_dtype, **launch)


def norm_linear_triton_large(
    x: torch.Tensor, norm: Weight, weight: Weight, bias: Weight | None = None, *, eps: float,
    out_dtype: torch.dtype | None = None, **launch: Any,
) -> torch.Tensor:  # fmt: skip
    return large_product(x, weight, norm, bias, eps=eps, out_dtype=out_dtype, **launch)


KERNELS = (
    Kernel(
        "norm_linear_triton", op="norm_linear", language="triton", run=norm_linear_triton, dtypes=_DTYPES,
        determinism=Determinism.RUN, priority=50, max_rows=MAX_ROWS, refuses=refuses, launch=launch,
        configurations=configurations, refuses_launch=fits,
    ),
    Kernel(
        "norm_linear_triton_large", op="norm_linear", language="triton", run=norm_linear_triton_large, dtypes=_DTYPES,
        determinism=Determinism.RUN, priority=20, refuses=large_launch.refuses, launch=large_launch.launch,
        configurations=large_launch.configurations, refuses_launch=large_launch.fits,
    ),
    Kernel(
        "norm_linear_triton_invariant", op="norm_linear", language="triton", run=norm_linear_triton, dtypes=_DTYPES,
        determinism=Determinism.BATCH, priority=5, refuses=refuses, launch=invariant_launch, refuses_launch=fits_rows,
    ),
)  # fmt: skip
