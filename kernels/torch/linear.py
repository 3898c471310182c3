"""linear by torch's library (oneDNN, cuBLAS, hipBLAS). Not batch-invariant: it picks tiles by the number of rows."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel
from ...ops.types import Determinism, Reason, Site, Weight, dtype_name

_CHUNK_ELEMENTS = 1 << 21


def linear_torch(
    x: torch.Tensor, weight: Weight, bias: Weight | None = None, *, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    if out_dtype in (None, x.dtype):
        return functional.linear(x, weight.values, bias.values if bias else None)
    return _widened(x, weight.values, bias.values if bias else None, out_dtype or x.dtype)


def _widened(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype) -> torch.Tensor:
    """Without a rounding to x's dtype in between: the weight is widened a piece at a time, small enough for a cache."""
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=out_dtype, device=x.device)
    wide, step = x.to(out_dtype), max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for row in range(0, weight.shape[0], step):
        y[:, row : row + step] = wide @ weight[row : row + step].to(out_dtype).T
    return y if bias is None else y.add_(bias)


def _refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    x, weight, y = (site.dtypes[name] for name in ("x", "weight", "y"))
    if weight != x or site.dtypes.get("bias", x) != x:
        return Reason("dtype", f"takes a weight and a bias of x's dtype {dtype_name(x)}")
    if y != x and profile.memory.kind == "hbm":
        return Reason("dtype", f"multiplies in {dtype_name(y)} to write it, at a fraction of the matrix units' rate")
    if y not in (x, torch.float32):
        return Reason("dtype", f"writes {dtype_name(x)} or float32, not {dtype_name(y)}")
    return None


KERNELS = (
    Kernel(
        "linear_torch", op="linear", language="torch", run=linear_torch, determinism=Determinism.RUN, priority=10,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}), refuses=_refuses,
    ),
)  # fmt: skip
