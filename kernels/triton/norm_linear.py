# pyright: basic
"""norm_linear in Triton: each block norms its rows while it reads them, then multiplies; the normed rows stay on chip.

Two passes over a block's rows of x: the sum of squares, then the product. The second finds x in a cache, and the norm
is applied before the rounding to x's dtype, as the op's parts do (folding it in afterwards would overflow float16).

Letters: T tokens, N outputs, K contraction. Two kernels share the code. `norm_linear_triton` takes tiles by the bucket
of rows; `norm_linear_triton_invariant` the same tiles in every bucket, because another tile height is another matrix
instruction with another order of sums: then a row's bits do not depend on how many rows there are.
"""

from __future__ import annotations

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.types import Determinism, Reason, Site, Weight, dtype_name
from .language import INTERPRETED, jit, tl

_TILE_BYTES = 128
"""Of K that a tile row holds: the widest swizzle of NVIDIA's shared memory, two cache lines' halves of AMD's."""
_MIN_ROWS = 16  # the least that tl.dot takes
_MAX_STAGES = 4
_DEFAULT_ON_CHIP_KIB = 48  # where a profile does not say: what every GPU has


@jit(do_not_specialize=["num_rows"])
def _norm_linear_kernel(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, y_ptr,
    num_rows, num_outputs, width, x_stride, weight_stride, y_stride, eps,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    output = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_K)
    row_inside, output_inside = row < num_rows, output < num_outputs
    x_rows = x_ptr + row[:, None] * x_stride
    weight_rows = weight_ptr + output[:, None] * weight_stride

    squares_TK = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.float32)
    for k in range(0, width, BLOCK_K):
        inside = row_inside[:, None] & (k + column < width)[None, :]
        x_TK = tl.load(x_rows + (k + column)[None, :], mask=inside, other=0.0).to(tl.float32)
        squares_TK += x_TK * x_TK
    scale_T = tl.rsqrt(tl.sum(squares_TK, axis=1) / width + eps)

    y_TN = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for k in range(0, width, BLOCK_K):
        k_inside = k + column < width
        x_TK = tl.load(x_rows + (k + column)[None, :], mask=row_inside[:, None] & k_inside[None, :], other=0.0)
        norm_K = tl.load(norm_ptr + k + column, mask=k_inside, other=0.0).to(tl.float32)
        w_NK = tl.load(weight_rows + (k + column)[None, :], mask=output_inside[:, None] & k_inside[None, :], other=0.0)
        normed_TK = (x_TK.to(tl.float32) * scale_T[:, None] * norm_K[None, :]).to(w_NK.dtype)
        if UPCAST:
            normed_TK, w_NK = normed_TK.to(tl.float32), w_NK.to(tl.float32)
        y_TN = tl.dot(normed_TK, tl.trans(w_NK), y_TN, input_precision="ieee")

    if HAS_BIAS:
        y_TN += tl.load(bias_ptr + output, mask=output_inside, other=0.0).to(tl.float32)[None, :]
    target = y_ptr + row[:, None] * y_stride + output[None, :]
    tl.store(target, y_TN.to(y_ptr.dtype.element_ty), mask=row_inside[:, None] & output_inside[None, :])


def norm_linear_triton(
    x: torch.Tensor, norm: Weight, weight: Weight, bias: Weight | None = None, *, eps: float,
    out_dtype: torch.dtype | None = None, block_t: int, block_n: int, block_k: int, num_warps: int, num_stages: int,
) -> torch.Tensor:  # fmt: skip
    x = x if x.stride(1) == 1 else x.contiguous()
    (num_rows, width), num_outputs = x.shape, weight.shape[0]
    y = torch.empty((num_rows, num_outputs), dtype=out_dtype or x.dtype, device=x.device)
    if num_rows == 0:
        return y
    grid = (-(-num_rows // block_t), -(-num_outputs // block_n))
    _norm_linear_kernel[grid](
        x, norm.values, weight.values, bias.values if bias else x, y,
        num_rows, num_outputs, width, x.stride(0), weight.values.stride(0), y.stride(0), eps,
        BLOCK_T=block_t, BLOCK_N=block_n, BLOCK_K=block_k, HAS_BIAS=bias is not None,
        UPCAST=INTERPRETED and x.dtype == torch.bfloat16,  # the interpreter takes bfloat16 operands for integers
        num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    return y


def _launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """Tiles for this many rows: as tall as the bucket up to 128, as wide as leaves every unit of the device a block."""
    block_t = min(128, max(_MIN_ROWS, 1 << (bucket - 1).bit_length()))
    units = profile.compute.units or 1
    block_n = 128
    while block_n > 16 and -(-site.dim("N") // block_n) * max(1, min(bucket, 4096) // block_t) < units:
        block_n //= 2
    return _fitted(site, profile, block_t, block_n)


def _invariant_launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """The tiles of a decode step, in every bucket."""
    return _launch(site, profile, _MIN_ROWS)


def _fitted(site: Site, profile: Profile, block_t: int, block_n: int) -> Launch:
    """Shrinks a tile until two stages of it fit the profile's on-chip memory; then as many stages as fit."""
    limit = int((profile.on_chip.shared_memory_per_block_kib or _DEFAULT_ON_CHIP_KIB) * 1024)
    while 2 * _stage_bytes(block_t, block_n) > limit and max(block_t, block_n) > _MIN_ROWS:
        block_t, block_n = (block_t // 2, block_n) if block_t > block_n else (block_t, block_n // 2)
    return {
        "block_t": block_t,
        "block_n": block_n,
        "block_k": _TILE_BYTES // site.dtypes["x"].itemsize,
        "num_warps": max(1, (128 if block_t < 64 else 256) // profile.lane_width),
        "num_stages": min(_MAX_STAGES, limit // _stage_bytes(block_t, block_n)),
    }


def _stage_bytes(block_t: int, block_n: int) -> int:
    return (block_t + block_n) * _TILE_BYTES


def _on_chip_bytes(launch: Launch) -> int:
    return int(launch["num_stages"]) * _stage_bytes(launch["block_t"], launch["block_n"])


def _refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    x, weight = site.dtypes["x"], site.dtypes["weight"]
    return None if weight == x else Reason("dtype", f"takes a weight of x's dtype {dtype_name(x)}")


_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})

KERNELS = (
    Kernel(
        "norm_linear_triton", op="norm_linear", language="triton", run=norm_linear_triton, dtypes=_DTYPES,
        determinism=Determinism.RUN, priority=50, refuses=_refuses, launch=_launch, on_chip_bytes=_on_chip_bytes,
    ),
    Kernel(
        "norm_linear_triton_invariant", op="norm_linear", language="triton", run=norm_linear_triton, dtypes=_DTYPES,
        determinism=Determinism.BATCH, priority=45, refuses=_refuses, launch=_invariant_launch,
        on_chip_bytes=_on_chip_bytes,
    ),
)  # fmt: skip
