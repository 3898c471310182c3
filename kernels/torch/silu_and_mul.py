"""silu_and_mul by torch's library, in the operand's dtype. On a CPU its bits change where threads share a row."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...ops.contract import Kernel
from ...ops.types import Determinism


def silu_and_mul_torch(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


KERNELS = (
    Kernel(
        "silu_and_mul_torch", op="silu_and_mul", language="torch", run=silu_and_mul_torch, determinism=Determinism.RUN,
        priority=10, dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
