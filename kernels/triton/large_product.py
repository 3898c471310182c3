# pyright: basic
"""The products of a prefill in Triton: many rows, so that the matrix units' rate is what counts.

y = x · Wᵀ, with bias, residual or SwiGLU as epilogue. PROGRAMS programs, one a unit of the device or a few, share the
tiles of y: the P-th takes tiles P, P + PROGRAMS, … in an order that goes through GROUP_T tiles of rows before the next
tile of outputs, so that what runs at one time reads few rows of x and W, which then lie in the last-level cache. Where
that cache is in SLICES slices, each for every SLICES-th program, neighbouring tiles go to one slice.

With DESCRIBED, blocks come and go by tensor descriptors (the bulk tensor copies of NVIDIA from sm_90 on), which fill
with zeros beyond an edge and leave out what lies there; elsewhere by pointers and masks. FLAT joins a program's tiles
into one loop: loads of the next tile are under way while this one's epilogue runs. The epilogue works in PARTS slices
of columns: less to hold at once in registers and on chip.

The last round has fewer tiles than there are programs, and may be the only one. Where it ends sooner so, K of its tiles
falls into shares of whole blocks, each a program's: into how many, the host says (`large_launch.shares_of`). A tile's
last program to arrive adds up all shares in their order: the same bits in every run. (Stream-K's hybrid of whole tiles
and shared ones: Osama et al., arXiv:2301.03598, with equal shares.)

A gated weight's block holds rows of both halves, gates first, so that one instruction multiplies both and one
accumulator holds them side by side.

Letters: T rows of x, N outputs, K contraction.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from ...ops.types import Weight
from .arrivals import NUM_COUNTERS, counters, is_last
from .language import INTERPRETED, jit, tl
from .large_launch import shares_of
from .overlap import joined, options, released
from .rms_norm import rms_norm_triton

_ALIGNED_BYTES = 16  # what tensor descriptors ask of a tensor's start and row stride


@jit()
def _tile_of(number, heights, widths, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_T: tl.constexpr):
    """First row and output of the number-th tile."""
    band = number // (GROUP_T * widths)
    high = tl.minimum(heights - band * GROUP_T, GROUP_T)
    place = number - band * GROUP_T * widths
    return (band * GROUP_T + place % high) * BLOCK_T, place // high * BLOCK_N


@jit()
def _x_block(x, row, k, stride, num_rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIBED: tl.constexpr,
             EVEN: tl.constexpr):  # fmt: skip
    """[ROWS, COLUMNS] from (row, k) on; rows beyond the last are the last once more, or zeros."""
    return x.load([row, k]) if DESCRIBED else _lines(
        x, tl.minimum(row + tl.arange(0, ROWS), num_rows - 1), k + tl.arange(0, COLUMNS), stride, width, EVEN
    )  # fmt: skip


@jit()
def _weight_block(
    weight, output, k, stride, num_outputs, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GATED: tl.constexpr,
    DESCRIBED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLUMNS] from (output, k) on; of a gated weight [2·ROWS, COLUMNS], gates above, ups below."""
    if DESCRIBED:
        block = tl.reshape(weight.load([0, output, k]), (2 * ROWS, COLUMNS)) if GATED else weight.load([output, k])
    else:
        place = tl.arange(0, 2 * ROWS if GATED else ROWS)
        rows = tl.minimum(output + place % ROWS, num_outputs - 1) + place // ROWS * num_outputs
        block = _lines(weight, rows, k + tl.arange(0, COLUMNS), stride, width, EVEN)
    return block


@jit()
def _lines(matrix_ptr, rows, columns, stride, width, EVEN: tl.constexpr):
    """Values of these rows; columns from `width` on are zeros, where EVEN does not say that there are none."""
    pointers = matrix_ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(pointers) if EVEN else tl.load(pointers, mask=(columns < width)[None, :], other=0.0)


@jit()
def _sums(
    x, weight, row, output, begin, end, num_rows, num_outputs, width, x_stride, weight_stride,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GATED: tl.constexpr, EVEN_K: tl.constexpr,
    DESCRIBED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Of a tile over [begin, end) of K: [BLOCK_T, BLOCK_N], gated [BLOCK_T, 2·BLOCK_N]."""
    y_TN = tl.zeros((BLOCK_T, 2 * BLOCK_N if GATED else BLOCK_N), dtype=tl.float32)
    for k in range(begin, end, BLOCK_K):
        x_TK = _x_block(x, row, k, x_stride, num_rows, width, BLOCK_T, BLOCK_K, DESCRIBED, EVEN_K)
        w_NK = _weight_block(
            weight, output, k, weight_stride, num_outputs, width, BLOCK_N, BLOCK_K, GATED, DESCRIBED, EVEN_K
        )
        if UPCAST:
            x_TK, w_NK = x_TK.to(tl.float32), w_NK.to(tl.float32)
        y_TN = tl.dot(x_TK, tl.trans(w_NK), y_TN, input_precision="ieee")
    return y_TN


@jit()
def _finished(
    y_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride, y_stride,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    ADDED: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """A tile's epilogue: SwiGLU, then the rest in PARTS slices of columns."""
    COLUMNS: tl.constexpr = BLOCK_N // PARTS
    BIAS_AFTER: tl.constexpr = HAS_BIAS and not GATED
    if GATED:
        y_TN, up_TN = _halves(y_TN, BLOCK_T, BLOCK_N)
        if HAS_BIAS:
            y_TN += _bias(bias_ptr, output, num_outputs, BLOCK_N)
            up_TN += _bias(bias_ptr + num_outputs, output, num_outputs, BLOCK_N)
        y_TN = y_TN / (1.0 + tl.exp(-y_TN)) * up_TN
    if PARTS == 1:
        _stored(
            y_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride, y_stride, BLOCK_T,
            COLUMNS, BIAS_AFTER, ADDED, DESCRIBED,
        )  # fmt: skip
    else:
        left_TN, right_TN = _halves(y_TN, BLOCK_T, COLUMNS)
        _stored(
            left_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride, y_stride, BLOCK_T,
            COLUMNS, BIAS_AFTER, ADDED, DESCRIBED,
        )  # fmt: skip
        _stored(
            right_TN, bias_ptr, residual, y, row, output + COLUMNS, num_rows, num_outputs, residual_stride, y_stride,
            BLOCK_T, COLUMNS, BIAS_AFTER, ADDED, DESCRIBED,
        )  # fmt: skip


@jit()
def _bias(bias_ptr, output, num_outputs, COLUMNS: tl.constexpr):
    """[1, COLUMNS]"""
    columns = output + tl.arange(0, COLUMNS)
    return tl.load(bias_ptr + columns, mask=columns < num_outputs, other=0.0).to(tl.float32)[None, :]


@jit()
def _stored(
    y_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride, y_stride, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, ADDED: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Columns [output, output + COLUMNS), with the bias, and the residual, if one is ADDED."""
    if HAS_BIAS:
        y_TN += _bias(bias_ptr, output, num_outputs, COLUMNS)
    if DESCRIBED:
        if ADDED:
            y_TN += residual.load([row, output]).to(tl.float32)
        y.store([row, output], y_TN.to(y.dtype))
    else:
        rows, columns = (row + tl.arange(0, ROWS)).to(tl.int64), output + tl.arange(0, COLUMNS)
        held = (rows < num_rows)[:, None] & (columns < num_outputs)[None, :]
        if ADDED:
            added = tl.load(residual + rows[:, None] * residual_stride + columns[None, :], mask=held, other=0.0)
            y_TN += added.to(tl.float32)
        tl.store(y + rows[:, None] * y_stride + columns[None, :], y_TN.to(y.dtype.element_ty), mask=held)


@jit(do_not_specialize=["num_rows", "whole", "shares"])
def _large_product_kernel(
    x, weight, bias_ptr, residual, y, shares_ptr, arrived_ptr, num_rows, num_outputs, width, whole, shares, x_stride,
    weight_stride, residual_stride, y_stride,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_T: tl.constexpr, PROGRAMS: tl.constexpr,
    SLICES: tl.constexpr, SHARED: tl.constexpr, PARTS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    ADDED: tl.constexpr, EVEN_K: tl.constexpr, DESCRIBED: tl.constexpr, FLAT: tl.constexpr, UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """whole: tiles that are not shared, all or so many as whole rounds have; shares: of each of the others."""
    released(PDL)
    joined(PDL)
    program = tl.program_id(0)
    if SLICES > 1:
        program = program % SLICES * (PROGRAMS // SLICES) + program // SLICES
    heights, widths = tl.cdiv(num_rows, BLOCK_T), tl.cdiv(num_outputs, BLOCK_N)
    for number in tl.range(program, whole, PROGRAMS, flatten=FLAT):
        row, output = _tile_of(number, heights, widths, BLOCK_T, BLOCK_N, GROUP_T)
        y_TN = _sums(
            x, weight, row, output, 0, width, num_rows, num_outputs, width, x_stride, weight_stride, BLOCK_T, BLOCK_N,
            BLOCK_K, GATED, EVEN_K, DESCRIBED, UPCAST,
        )  # fmt: skip
        # The loop in there may have been joined with this one: its tile's place is computed once more, not kept.
        row, output = _tile_of(number, heights, widths, BLOCK_T, BLOCK_N, GROUP_T)
        _finished(
            y_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride, y_stride, BLOCK_T,
            BLOCK_N, PARTS, GATED, HAS_BIAS, ADDED, DESCRIBED,
        )  # fmt: skip
    if SHARED:
        COLUMNS: tl.constexpr = 2 * BLOCK_N if GATED else BLOCK_N
        place = tl.arange(0, BLOCK_T)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        share_K = tl.cdiv(tl.cdiv(width, BLOCK_K), shares) * BLOCK_K
        for piece in range(program, (heights * widths - whole) * shares, PROGRAMS):
            waiting, begin = piece // shares, piece % shares * share_K
            row, output = _tile_of(whole + waiting, heights, widths, BLOCK_T, BLOCK_N, GROUP_T)
            y_TN = _sums(
                x, weight, row, output, begin, tl.minimum(begin + share_K, width), num_rows, num_outputs, width,
                x_stride, weight_stride, BLOCK_T, BLOCK_N, BLOCK_K, GATED, EVEN_K, DESCRIBED, UPCAST,
            )  # fmt: skip
            tl.store(shares_ptr + tl.cast(piece, tl.int64) * BLOCK_T * COLUMNS + place, y_TN)
            if is_last(arrived_ptr + waiting, shares - 1):
                first = shares_ptr + tl.cast(waiting, tl.int64) * shares * BLOCK_T * COLUMNS
                y_TN = tl.zeros((BLOCK_T, COLUMNS), dtype=tl.float32)
                for share in range(shares):
                    y_TN += tl.load(first + share * BLOCK_T * COLUMNS + place, cache_modifier=".cg")
                _finished(
                    y_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride, y_stride,
                    BLOCK_T, BLOCK_N, PARTS, GATED, HAS_BIAS, ADDED, DESCRIBED,
                )  # fmt: skip


@jit()
def _halves(y_TN, BLOCK_T: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right columns of a tile."""
    return tl.split(tl.permute(tl.reshape(y_TN, (BLOCK_T, 2, COLUMNS)), (0, 2, 1)))


def large_product(
    x: torch.Tensor, weight: Weight, norm: Weight | None = None, bias: Weight | None = None,
    residual: torch.Tensor | None = None, *, eps: float = 0.0, gated: bool = False,
    out_dtype: torch.dtype | None = None, block_t: int, block_n: int, block_k: int, group_t: int, programs: int,
    slices: int, shares: int, parts: int, described: bool, flat: bool, pdl: bool, num_warps: int, num_stages: int,
    norm_warps: int = 0, **target: int,
) -> torch.Tensor:  # fmt: skip
    """[T, N] (gated: [T, N / 2]). A norm is a kernel of its own before the product: of many rows, x is small beside
    what multiplying it costs. shares: of a tile in the last round, at most; target: options that only some targets
    know."""
    values = weight.values
    (num_rows, width), num_outputs = x.shape, values.shape[0] // (2 if gated else 1)
    y = torch.empty((num_rows, num_outputs), dtype=out_dtype or x.dtype, device=x.device)
    if num_rows == 0:
        return y
    if norm is not None:
        x = rms_norm_triton(x, norm, eps=eps, block_t=1, num_warps=norm_warps, pdl=pdl)
    x = _aligned(x) if described else _row_major(x)
    residual = residual if residual is None else _aligned(residual) if described else _row_major(residual)
    added = x if residual is None else residual
    strides = (x.stride(0), values.stride(0), added.stride(0), y.stride(0))
    operands: tuple[Any, ...] = (x, values, added, y)
    if described:
        halves = values.unflatten(0, (2, num_outputs)) if gated else values
        weight_block = (2, block_n, block_k) if gated else (block_n, block_k)
        store = (block_t, block_n // parts)
        blocks = ((block_t, block_k), weight_block, (block_t, block_k) if residual is None else store, store)
        operands = tuple(map(_descriptor, (x, halves, added, y), blocks))
    x_operand, weight_operand, added_operand, y_operand = operands
    tiles = -(-num_rows // block_t) * -(-num_outputs // block_n)
    num_shares = shares_of(tiles, programs, width, shares)
    whole = tiles if num_shares == 1 else tiles // programs * programs
    assert tiles - whole <= NUM_COUNTERS, "each tile that waits for shares has a counter"
    size = (tiles - whole) * num_shares * block_t * block_n * (2 if gated else 1)
    sums = torch.empty(max(1, size), dtype=torch.float32, device=x.device)
    _large_product_kernel[(programs,)](
        x_operand, weight_operand, bias.values if bias else x, added_operand, y_operand, sums, counters(x.device),
        num_rows, num_outputs, width, whole, num_shares, *strides, BLOCK_T=block_t, BLOCK_N=block_n, BLOCK_K=block_k,
        GROUP_T=group_t, PROGRAMS=programs, SLICES=slices if programs % slices == 0 else 1, SHARED=shares > 1,
        PARTS=parts, GATED=gated, HAS_BIAS=bias is not None, ADDED=residual is not None, EVEN_K=width % block_k == 0,
        DESCRIBED=described, FLAT=flat, PDL=pdl,
        UPCAST=INTERPRETED and x.dtype == torch.bfloat16,  # the interpreter takes bfloat16 operands for integers
        num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True, **options(pdl), **target,
    )  # fmt: skip
    return y


def _descriptor(tensor: torch.Tensor, block: tuple[int, ...]) -> Any:
    """Made on the host: one made in the kernel would need an allocator for the whole process."""
    made = import_module("triton.tools.tensor_descriptor").TensorDescriptor
    return made(tensor, list(tensor.shape), list(tensor.stride()), list(block))


def _row_major(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that a descriptor can describe: itself, if it lies so already."""
    row_bytes = tensor.stride(0) * tensor.element_size()
    if tensor.stride(1) == 1 and row_bytes % _ALIGNED_BYTES == 0 and tensor.data_ptr() % _ALIGNED_BYTES == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
