# pyright: basic
"""gated_linear in Triton for few rows and for many: gate and up rows meet in one program. See `product.py`."""

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


def gated_linear_triton(
    x: torch.Tensor, weight: Weight, norm: Weight | None = None, bias: Weight | None = None, *, eps: float = 0.0,
    **launch: Any,
) -> torch.Tensor:  # fmt: skip
    return product(x, weight, norm, bias, eps=eps, gated=True, **launch)


def gated_linear_triton_large(
    x: torch.Tensor, weight: Weight, norm: Weight | None = None, bias: Weight | None = None, *, eps: float = 0.0,
    **launch: Any,
) -> torch.Tensor:  # fmt: skip
    return large_product(x, weight, norm, bias, eps=eps, gated=True, **launch)


KERNELS = (
    Kernel(
        "gated_linear_triton", op="gated_linear", language="triton", run=gated_linear_triton, dtypes=_DTYPES,
        determinism=Determinism.RUN, priority=50, max_rows=MAX_ROWS, refuses=refuses, launch=launch,
        configurations=configurations, refuses_launch=fits,
    ),
    Kernel(
        "gated_linear_triton_large", op="gated_linear", language="triton", run=gated_linear_triton_large,
        dtypes=_DTYPES, determinism=Determinism.RUN, priority=40, refuses=large_launch.refuses,
        launch=large_launch.launch,
        configurations=large_launch.configurations, refuses_launch=large_launch.fits,
    ),
    Kernel(
        "gated_linear_triton_invariant", op="gated_linear", language="triton", run=gated_linear_triton, dtypes=_DTYPES,
        determinism=Determinism.BATCH, priority=5, refuses=refuses, launch=invariant_launch, refuses_launch=fits_rows,
    ),
)  # fmt: skip
