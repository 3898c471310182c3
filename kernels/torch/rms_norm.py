"""rms_norm by torch's library: one pass over memory where the device has a fused kernel, float32 inside."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel
from ...ops.types import Determinism, Reason, Site, Weight, dtype_name


def rms_norm_torch(x: torch.Tensor, weight: Weight, *, eps: float) -> torch.Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight.values, eps)


def _refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    x, norm = site.dtypes["x"], site.dtypes["norm"]
    return (
        None if norm == x else Reason("dtype", f"takes a weight of x's dtype {dtype_name(x)}, not {dtype_name(norm)}")
    )


KERNELS = (
    Kernel(
        "rms_norm_torch", op="rms_norm", language="torch", run=rms_norm_torch, determinism=Determinism.BATCH,
        priority=10, dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}), refuses=_refuses,
    ),
)  # fmt: skip
