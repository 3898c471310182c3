# pyright: basic
"""rms_norm in Triton: a program holds whole rows in registers, so memory is read once and written once.

Letters: T rows, R repeats of a row (heads), D values of a row. How a row is summed follows from its size alone: rows of
a program and warps are the same in every bucket, so a row's bits do not depend on how many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.types import Determinism, Reason, Site, Weight
from .language import jit, tl
from .launching import VECTOR_BYTES, options, power, warps
from .overlap import joined, overlaps, released

MAX_WIDTH = 1 << 16
"""Values of a row that registers hold: 64 for each of the most threads that a program has."""
_VECTORS = 4  # 16-byte loads that a thread has in flight
_MIN_THREADS, _MAX_THREADS = 128, 1024


@jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x_ptr, residual_ptr, norm_ptr, y_ptr, sum_ptr, num_rows, x_stride, x_repeat_stride, residual_stride, eps,
    REPEATS: tl.constexpr, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, ADDS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:  # fmt: skip
    """ADDS: the sum of x and the residual, rounded, is what is normed and what is written to `sum`."""
    row, column = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    inside_D = column < D
    norm_D = tl.load(norm_ptr + column, mask=inside_D, other=0.0).to(tl.float32)
    joined(PDL)
    released(PDL)
    inside = (row < num_rows)[:, None] & inside_D[None, :]
    x_rows = row // REPEATS * x_stride + row % REPEATS * x_repeat_stride
    x_TD = tl.load(x_ptr + x_rows[:, None] + column[None, :], mask=inside, other=0.0)
    target = row[:, None] * D + column[None, :]
    if ADDS:
        residual = residual_ptr + row[:, None] * residual_stride + column[None, :]
        residual_TD = tl.load(residual, mask=inside, other=0.0).to(tl.float32)
        x_TD = (residual_TD + x_TD.to(tl.float32)).to(x_TD.dtype)
        tl.store(sum_ptr + target, x_TD, mask=inside)
    wide_TD = x_TD.to(tl.float32)
    scale_T = tl.rsqrt(tl.sum(wide_TD * wide_TD, axis=1) / D + eps)
    y_TD = wide_TD * scale_T[:, None] * norm_D[None, :]
    tl.store(y_ptr + target, y_TD.to(y_ptr.dtype.element_ty), mask=inside)


def rms_norm_triton(
    x: torch.Tensor, weight: Weight, *, eps: float, block_t: int, num_warps: int, pdl: bool
) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x = x if x.stride(-1) == 1 and x.ndim in (2, 3) else x.reshape(-1, x.shape[-1])
    repeats, width = prod(x.shape[1:-1]), x.shape[-1]
    num_rows = x.shape[0] * repeats
    if num_rows == 0:
        return y
    norm = weight.values
    rms_norm_kernel[(-(-num_rows // block_t),)](
        x, x, norm, y, y, num_rows, x.stride(0), x.stride(1) if x.ndim == 3 else 0, 0, eps,
        REPEATS=repeats, D=width, BLOCK_T=block_t, BLOCK_D=power(width), ADDS=False, PDL=pdl,
        **options(num_warps, pdl=pdl),
    )  # fmt: skip
    return y


def row_launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """Warps so that a thread has some loads in flight; several rows where a row would leave most threads idle."""
    return _rows(site, profile, _VECTORS)


def row_configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    """One to eight loads a thread. Each keeps a row's bits by itself, whatever the bucket."""
    for vectors in (1, 2, _VECTORS, 8):
        yield _rows(site, profile, vectors)


def _rows(site: Site, profile: Profile, vectors: int) -> Launch:
    row_bytes = power(site.dim("D")) * site.dtypes["x"].itemsize
    threads = min(_MAX_THREADS, max(_MIN_THREADS, row_bytes // (vectors * VECTOR_BYTES)))
    block_t = max(1, threads * vectors * VECTOR_BYTES // row_bytes)
    return {"block_t": block_t, "num_warps": warps(threads, profile), "pdl": overlaps(profile)}


def row_refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    if site.dim("D") > MAX_WIDTH:
        return Reason("shape", f"holds rows of at most {MAX_WIDTH:,} values, not {site.dim('D'):,}")
    return None


_configurations = row_configurations

KERNELS = (
    Kernel(
        "rms_norm_triton", op="rms_norm", language="triton", run=rms_norm_triton, determinism=Determinism.BATCH,
        priority=50, launch=row_launch, configurations=_configurations, refuses=row_refuses,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
