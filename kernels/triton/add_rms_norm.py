# pyright: basic
"""add_rms_norm in Triton: the sum and its norm in one pass over memory, by the kernel of rms_norm."""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.types import Determinism, Weight
from .launching import options, power
from .rms_norm import rms_norm_kernel, row_configurations, row_launch, row_refuses


def add_rms_norm_triton(
    x: torch.Tensor, residual: torch.Tensor, weight: Weight, *, eps: float, block_t: int, num_warps: int, pdl: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    y, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    width = x.shape[-1]
    x_TD, residual_TD = (each.reshape(-1, width) for each in (x, residual))
    x_TD, residual_TD = (each if each.stride(1) == 1 else each.contiguous() for each in (x_TD, residual_TD))
    num_rows = x_TD.shape[0]
    if num_rows:
        rms_norm_kernel[(-(-num_rows // block_t),)](
            x_TD, residual_TD, weight.values, y, total, num_rows, x_TD.stride(0), 0, residual_TD.stride(0), eps,
            REPEATS=1, D=width, BLOCK_T=block_t, BLOCK_D=power(width), ADDS=True, PDL=pdl,
            **options(num_warps, pdl=pdl),
        )  # fmt: skip
    return y, total


_configurations = row_configurations

KERNELS = (
    Kernel(
        "add_rms_norm_triton", op="add_rms_norm", language="triton", run=add_rms_norm_triton,
        determinism=Determinism.BATCH, priority=50, launch=row_launch, configurations=_configurations,
        refuses=row_refuses,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
