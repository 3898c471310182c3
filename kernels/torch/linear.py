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
    return functional.linear(x, weight.values, bias.values if bias else None)


def linear_torch_widened(
    x: torch.Tensor, weight: Weight, bias: Weight | None = None, *, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Without a rounding to x's dtype in between: the weight is widened a piece at a time, small enough for a cache."""
    values, out = weight.values, out_dtype or x.dtype
    y = torch.empty((x.shape[0], values.shape[0]), dtype=out, device=x.device)
    wide, step = x.to(out), max(1, _CHUNK_ELEMENTS // values.shape[1])
    for row in range(0, values.shape[0], step):
        y[:, row : row + step] = wide @ values[row : row + step].to(out).T
    return y if bias is None else y.add_(bias.values)


def _refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    x, weight, y = (site.dtypes[name] for name in ("x", "weight", "y"))
    if weight != x or site.dtypes.get("bias", x) != x:
        return Reason("dtype", f"takes a weight and a bias of x's dtype {dtype_name(x)}")
    return None if y == x else Reason("dtype", f"writes {dtype_name(x)}, not {dtype_name(y)}")


def _refuses_widened(site: Site, profile: Profile, bucket: int) -> Reason | None:
    x, weight, y = (site.dtypes[name] for name in ("x", "weight", "y"))
    if weight != x or site.dtypes.get("bias", x) != x:
        return Reason("dtype", f"takes a weight and a bias of x's dtype {dtype_name(x)}")
    return None if x != y == torch.float32 else Reason("dtype", f"writes float32 of 16 bits, not {dtype_name(y)}")


_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
KERNELS = (
    Kernel(
        "linear_torch", op="linear", language="torch", run=linear_torch, determinism=Determinism.RUN, priority=10,
        dtypes=_DTYPES, refuses=_refuses,
    ),
    # It multiplies in float32: on a GPU at a fraction of the matrix units' rate, so behind all that use those.
    Kernel(
        "linear_torch_widened", op="linear", language="torch", run=linear_torch_widened, determinism=Determinism.RUN,
        priority=3, dtypes=_DTYPES, refuses=_refuses_widened,
    ),
)  # fmt: skip
