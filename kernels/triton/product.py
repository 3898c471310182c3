# pyright: basic
"""The products of a decode step in Triton: few rows, so a weight's bytes are all that counts; each is read once.

y = x · Wᵀ, with what composites ask for around it: the norm of x as prologue, bias, residual or SwiGLU as epilogue.

row     one row of x: each program multiplies BLOCK_N rows of the weight with it in vector units, K side by side over
        the threads, and adds up once, at the end. Nothing is staged on chip; many loads are in flight.
tile    a few dozen rows: the weight's tile is the left operand of the matrix unit and x the right one, so that 8 rows
        are enough. K is cut into SPLITS: wide tiles (each brings x from the cache again) and yet a program for
        every unit. A tile's last program to arrive adds up all parts in their order: the same bits in every run.

The norm folds in behind: (x·g) · Wᵀ, times 1/rms of the row, whose squares are summed in the same pass. In float16
x·g could overflow where x is not normed first: there the squares have a pass of their own.

What a program loads of its weight before it waits for the kernel before it (`overlap.joined`) covers that wait.

Letters: T rows of x, N outputs, K contraction, S splits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from ...ops.types import Weight
from .language import INTERPRETED, jit, tl
from .overlap import joined, options, released

_COUNTERS = 1 << 16
"""Tiles of one launch that can wait for their parts."""


@jit()
def _read(pointers, held, EVEN: tl.constexpr):
    return tl.load(pointers) if EVEN else tl.load(pointers, mask=held, other=0.0)


@jit()
def _product_row_kernel(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    num_outputs, width, weight_stride, eps,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    ADDED: tl.constexpr, EVEN_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, column = output < num_outputs, tl.arange(0, BLOCK_K)
    # Rows beyond the last are the last once more: no mask narrows the loads, and only the store leaves them out.
    rows = weight_ptr + tl.minimum(output, num_outputs - 1)[:, None] * weight_stride
    up_rows = rows + tl.cast(num_outputs, tl.int64) * weight_stride
    held = column < width
    w_NK = _read(rows + column[None, :], held[None, :], EVEN_K)
    if GATED:
        up_w_NK = _read(up_rows + column[None, :], held[None, :], EVEN_K)
    joined(PDL)
    released(PDL)
    x_K = _read(x_ptr + column, held, EVEN_K).to(tl.float32)
    squares_K = x_K * x_K
    if NORMED:
        x_K *= _read(norm_ptr + column, held, EVEN_K).to(tl.float32)
    y_NK = w_NK.to(tl.float32) * x_K[None, :]
    up_NK = y_NK
    if GATED:
        up_NK = up_w_NK.to(tl.float32) * x_K[None, :]
    for k in range(BLOCK_K, width, BLOCK_K):
        held = k + column < width
        w_NK = _read(rows + (k + column)[None, :], held[None, :], EVEN_K)
        if GATED:
            up_w_NK = _read(up_rows + (k + column)[None, :], held[None, :], EVEN_K)
        x_K = _read(x_ptr + k + column, held, EVEN_K).to(tl.float32)
        if NORMED:
            squares_K += x_K * x_K
            x_K *= _read(norm_ptr + k + column, held, EVEN_K).to(tl.float32)
        y_NK += w_NK.to(tl.float32) * x_K[None, :]
        if GATED:
            up_NK += up_w_NK.to(tl.float32) * x_K[None, :]

    y_N, up_N = tl.sum(y_NK, axis=1), tl.sum(up_NK, axis=1)
    if NORMED:
        scale = tl.rsqrt(tl.sum(squares_K, axis=0) / width + eps)
        y_N, up_N = y_N * scale, up_N * scale
    if HAS_BIAS:
        y_N += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            up_N += tl.load(bias_ptr + num_outputs + output, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        y_N = y_N / (1.0 + tl.exp(-y_N)) * up_N
    if ADDED:
        y_N += tl.load(residual_ptr + output, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + output, y_N.to(y_ptr.dtype.element_ty), mask=inside)


@jit(do_not_specialize=["num_rows"])
def _product_tile_kernel(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, parts_ptr, arrived_ptr,
    num_rows, num_outputs, width, x_stride, weight_stride, residual_stride, y_stride, eps,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, NORMED: tl.constexpr,
    TWO_PASSES: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, ADDED: tl.constexpr, EVEN_K: tl.constexpr,
    INTERPRET: tl.constexpr, PDL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    tile, split, above = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    output = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = above.to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, BLOCK_K)
    # Rows beyond the last are the last once more: no mask narrows the loads, and only the store leaves them out.
    w_rows = weight_ptr + tl.minimum(output, num_outputs - 1)[:, None] * weight_stride
    up_rows = w_rows + tl.cast(num_outputs, tl.int64) * weight_stride
    x_rows = x_ptr + tl.minimum(row, num_rows - 1)[:, None] * x_stride
    share = tl.cdiv(tl.cdiv(width, BLOCK_K), SPLITS) * BLOCK_K
    begin, end = split * share, tl.minimum(split * share + share, width)

    squares_T = tl.zeros((BLOCK_T,), dtype=tl.float32)
    scale_T = squares_T + 1.0
    y_NT, up_NT = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32), tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    if EARLY:  # whole blocks of K, of a share that has at least so many
        early = begin + tl.arange(0, EARLY)
        early_w_NK = tl.load(w_rows + early[None, :])
        if GATED:
            early_up_NK = tl.load(up_rows + early[None, :])
        if NORMED:
            early_norm_K = tl.load(norm_ptr + early)
    joined(PDL)
    released(PDL)
    if TWO_PASSES:
        scale_T = _scale(x_rows, width, eps, BLOCK_T, BLOCK_K)
    if EARLY:
        early_x_TK = tl.load(x_rows + early[None, :])
    squares_TK = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.float32)
    for k in range(begin + EARLY, end, BLOCK_K):
        held = k + column < width
        w_NK = _read(w_rows + (k + column)[None, :], held[None, :], EVEN_K)
        x_TK = _read(x_rows + (k + column)[None, :], held[None, :], EVEN_K)
        if NORMED:
            x_TK, more_TK = _times_norm(x_TK, _read(norm_ptr + k + column, held, EVEN_K), scale_T)
            squares_TK += more_TK
        y_NT = _multiplied(w_NK, x_TK, y_NT, INTERPRET)
        if GATED:
            up_NT = _multiplied(_read(up_rows + (k + column)[None, :], held[None, :], EVEN_K), x_TK, up_NT, INTERPRET)
    squares_T += tl.sum(squares_TK, axis=1)
    if EARLY:  # last, so that the loop's loads are on their way as soon as the wait is over
        if NORMED:
            early_x_TK, early_squares_TK = _times_norm(early_x_TK, early_norm_K, scale_T)
            squares_T += tl.sum(early_squares_TK, axis=1)
        y_NT = _multiplied(early_w_NK, early_x_TK, y_NT, INTERPRET)
        if GATED:
            up_NT = _multiplied(early_up_NK, early_x_TK, up_NT, INTERPRET)

    if SPLITS > 1:
        number = above * tl.num_programs(0) + tile
        size: tl.constexpr = BLOCK_N * BLOCK_T
        PLANES: tl.constexpr = 2 if GATED else 1
        place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
        tile_parts = parts_ptr + tl.cast(number, tl.int64) * SPLITS * (PLANES * size + BLOCK_T)
        own = tile_parts + split * (PLANES * size + BLOCK_T)
        tl.store(own + place, y_NT)
        if GATED:
            tl.store(own + size + place, up_NT)
        if NORMED:
            tl.store(own + PLANES * size + tl.arange(0, BLOCK_T), squares_T)
        tl.debug_barrier()  # all threads' parts are written before one of them counts
        if tl.atomic_add(arrived_ptr + number, 1, sem="acq_rel", scope="gpu") != SPLITS - 1:
            return
        tl.store(arrived_ptr + number, 0)
        y_NT, up_NT = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32), tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
        squares_T = tl.zeros((BLOCK_T,), dtype=tl.float32)
        for part in range(SPLITS):
            other = tile_parts + part * (PLANES * size + BLOCK_T)
            y_NT += tl.load(other + place, cache_modifier=".cg")
            if GATED:
                up_NT += tl.load(other + size + place, cache_modifier=".cg")
            if NORMED:
                squares_T += tl.load(other + PLANES * size + tl.arange(0, BLOCK_T), cache_modifier=".cg")

    if NORMED and not TWO_PASSES:
        scale_T = tl.rsqrt(squares_T / width + eps)
        y_NT, up_NT = y_NT * scale_T[None, :], up_NT * scale_T[None, :]
    inside = output < num_outputs
    if HAS_BIAS:
        y_NT += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)[:, None]
        if GATED:
            up_NT += tl.load(bias_ptr + num_outputs + output, mask=inside, other=0.0).to(tl.float32)[:, None]
    if GATED:
        y_NT = y_NT / (1.0 + tl.exp(-y_NT)) * up_NT
    y_TN = tl.trans(y_NT)
    held = (row < num_rows)[:, None] & inside[None, :]
    if ADDED:
        residual = residual_ptr + row[:, None] * residual_stride + output[None, :]
        y_TN += tl.load(residual, mask=held, other=0.0).to(tl.float32)
    tl.store(y_ptr + row[:, None] * y_stride + output[None, :], y_TN.to(y_ptr.dtype.element_ty), mask=held)


@jit()
def _scale(x_rows, width, eps, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    """1/rms of each row."""
    squares_TK = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.float32)
    for k in range(0, width, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        x_TK = tl.load(x_rows + column[None, :], mask=(column < width)[None, :], other=0.0).to(tl.float32)
        squares_TK += x_TK * x_TK
    return tl.rsqrt(tl.sum(squares_TK, axis=1) / width + eps)


@jit()
def _times_norm(x_TK, norm_K, scale_T):
    """x·g·scale in x's dtype, and the squares of x."""
    wide_TK = x_TK.to(tl.float32)
    return (wide_TK * scale_T[:, None] * norm_K.to(tl.float32)[None, :]).to(x_TK.dtype), wide_TK * wide_TK


@jit()
def _multiplied(w_NK, x_TK, y_NT, INTERPRET: tl.constexpr):
    if INTERPRET:  # it takes bfloat16 for integers, and in its library's float32 sums depend on a row's place
        return y_NT + tl.dot(w_NK.to(tl.float64), tl.trans(x_TK.to(tl.float64))).to(tl.float32)
    return tl.dot(w_NK, tl.trans(x_TK), y_NT, input_precision="ieee")


def product(
    x: torch.Tensor, weight: Weight, norm: Weight | None = None, bias: Weight | None = None,
    residual: torch.Tensor | None = None, *, eps: float = 0.0, gated: bool = False,
    out_dtype: torch.dtype | None = None,
    block_t: int, block_n: int, block_k: int, splits: int, early: int, num_warps: int, num_stages: int, pdl: bool,
) -> torch.Tensor:  # fmt: skip
    """[T, N], of a gated weight [T, N / 2], in out_dtype or x's. block_t: rows of a tile, 0 for the kernel for one row;
    early: how much of K a program loads before it waits."""
    x = x if x.stride(1) == 1 else x.contiguous()
    (num_rows, width), values = x.shape, weight.values
    num_outputs = values.shape[0] // 2 if gated else values.shape[0]
    y = torch.empty((num_rows, num_outputs), dtype=out_dtype or x.dtype, device=x.device)
    if num_rows == 0:
        return y
    tensors = [x, norm.values if norm else x, values, bias.values if bias else x, x if residual is None else residual]
    shared: dict[str, Any] = {
        "NORMED": norm is not None, "GATED": gated, "HAS_BIAS": bias is not None, "ADDED": residual is not None,
        "EVEN_K": width % block_k == 0, "BLOCK_N": block_n, "BLOCK_K": block_k, "PDL": pdl, "num_warps": num_warps,
        "enable_fp_fusion": True, **options(pdl),
    }  # fmt: skip
    tiles = -(-num_outputs // block_n)
    if block_t == 0:
        _product_row_kernel[(tiles,)](*tensors, y, num_outputs, width, values.stride(0), eps, **shared)
        return y
    assert early == 0 or width % (splits * block_k) == 0 == early % block_k, "every share begins with whole blocks"
    heights = -(-num_rows // block_t)
    size = tiles * heights * splits * ((2 if gated else 1) * block_n + 1) * block_t if splits > 1 else 1
    parts = torch.empty(size, dtype=torch.float32, device=x.device)
    _product_tile_kernel[(tiles, splits, heights)](
        *tensors, y, parts, counters(x.device), num_rows, num_outputs, width, x.stride(0), values.stride(0),
        0 if residual is None else residual.stride(0), y.stride(0), eps, BLOCK_T=block_t, SPLITS=splits, EARLY=early,
        TWO_PASSES=norm is not None and x.dtype == torch.float16,
        INTERPRET=INTERPRETED, num_stages=num_stages, **shared,
    )  # fmt: skip
    return y


@cache
def counters(device: torch.device) -> torch.Tensor:
    """Zeros, which every launch leaves as zeros: kernels of one device that use them follow one another."""
    return torch.zeros(_COUNTERS, dtype=torch.int32, device=device)
