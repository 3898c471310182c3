"""The norm of the C library as torch calls it; `rms_norm` and `add_rms_norm` are its faces."""

from __future__ import annotations

import torch

from ...ops.types import Weight
from .arguments import DTYPES, NormArgs
from .levels import LEVELS
from .library import load
from .operands import rows, vector


def normalise(level: str, x: torch.Tensor, weight: Weight, eps: float) -> torch.Tensor:
    """x [M, K], normalised over K; a new tensor."""
    x, stride = rows(x)
    num_rows, width = x.shape
    y, scale = x.new_empty((num_rows, width)), vector(weight)
    load().rms_norm(
        NormArgs(
            LEVELS[level], DTYPES[x.dtype], num_rows, width, x.data_ptr(), stride, 0, 0, 0, 0, y.data_ptr(), width,
            scale.data_ptr(), DTYPES[scale.dtype], eps,
        )
    )  # fmt: skip
    return y


def add_normalise(
    level: str, x: torch.Tensor, residual: torch.Tensor, weight: Weight, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(normalised sum, sum) of x and residual [M, K]; two new tensors."""
    x, x_stride = rows(x)
    residual, residual_stride = rows(residual)
    num_rows, width = x.shape
    y, total, scale = x.new_empty((num_rows, width)), x.new_empty((num_rows, width)), vector(weight)
    load().rms_norm(
        NormArgs(
            LEVELS[level], DTYPES[x.dtype], num_rows, width, x.data_ptr(), x_stride, residual.data_ptr(),
            residual_stride, total.data_ptr(), width, y.data_ptr(), width, scale.data_ptr(), DTYPES[scale.dtype], eps,
        )
    )  # fmt: skip
    return y, total
