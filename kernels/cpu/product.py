"""The product of the C library as torch calls it; `linear` and the composites around it are thin faces of this one."""

from __future__ import annotations

import torch

from ...ops.types import Weight
from .arguments import DTYPES, LinearArgs
from .levels import LEVELS
from .library import load
from .operands import rows, vector


def product(
    level: str,
    x: torch.Tensor,
    weight: Weight,
    bias: Weight | None = None,
    norm: Weight | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    gated: bool = False,
) -> torch.Tensor:
    """[rms_norm](x) · Wᵀ (+ bias) (+ residual), or silu(gate) · up of it where gated; x [M, K], weight in panel16.

    A fresh argument struct a call: threads may call at once with the same weight.
    """
    x, x_stride = rows(x)
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0]
    dtype = x.dtype
    code = DTYPES[dtype]
    width = num_outputs // 2 if gated else num_outputs
    if out_dtype is None or out_dtype is dtype:
        y, out_code = x.new_empty((num_rows, width)), code
    else:
        y, out_code = x.new_empty((num_rows, width), dtype=out_dtype), DTYPES[out_dtype]
    residual_at, residual_stride, bias_at, bias_code, norm_at, norm_code = 0, 0, 0, 0, 0, 0
    if residual is not None:
        residual, residual_stride = rows(residual)
        residual_at = residual.data_ptr()
    if bias is not None:
        added = vector(bias)
        bias_at, bias_code = added.data_ptr(), DTYPES[added.dtype]
    if norm is not None:
        scale = vector(norm)
        norm_at, norm_code = scale.data_ptr(), DTYPES[scale.dtype]
    load().linear(
        LinearArgs(
            LEVELS[level], code, out_code, gated, num_rows, num_outputs, num_inputs, x.data_ptr(), x_stride,
            weight.values.data_ptr(), y.data_ptr(), width, residual_at, residual_stride, bias_at, norm_at,
            bias_code, norm_code, eps, 0,
        )
    )  # fmt: skip
    return y
