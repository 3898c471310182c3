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

The last round, which has fewer tiles than there are programs, may be the only one. Of its tiles K falls into SHARES of
whole blocks, each a program's. A tile's last program to arrive adds up all shares in their order: the same bits in
every run. (Stream-K's hybrid of whole tiles and shared ones: Osama et al., arXiv:2301.03598, with equal shares.)

Letters: T rows of x, N outputs, K contraction.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from ...ops.types import Weight
from .language import INTERPRETED, jit, tl
from .overlap import joined, options, released
from .product import NUM_COUNTERS, counters
from .rms_norm import rms_norm_triton

_ALIGNED_BYTES = 16  # what tensor descriptors ask of a tensor's start and row stride


@jit()
def _tile_of(number, heights, widths, GROUP_T: tl.constexpr):
    """Row and column of the number-th tile."""
    band = number // (GROUP_T * widths)
    high = tl.minimum(heights - band * GROUP_T, GROUP_T)
    place = number - band * GROUP_T * widths
    return band * GROUP_T + place % high, place // high


@jit()
def _tile_number(number, whole, SHARES: tl.constexpr):
    """Of the tile that a program's number-th piece of work is, or has a share of. whole: tiles that are not shared."""
    return number if SHARES == 1 else tl.where(number < whole, number, whole + (number - whole) // SHARES)


@jit()
def _block(source, row, column, row_stride, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
           DESCRIBED: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """[ROWS, COLUMNS] of a matrix from (row, column) on; rows beyond the last are the last once more, or zeros."""
    if DESCRIBED:
        block = source.load([row, column])
    else:
        rows = tl.minimum(row + tl.arange(0, ROWS), num_rows - 1).to(tl.int64)
        columns = column + tl.arange(0, COLUMNS)
        pointers = source + rows[:, None] * row_stride + columns[None, :]
        block = tl.load(pointers) if EVEN else tl.load(pointers, mask=(columns < num_columns)[None, :], other=0.0)
    return block


@jit()
def _finished(
    y_TN, up_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride, y_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, ADDED: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Epilogue and store of columns [output, output + COLUMNS)."""
    columns = output + tl.arange(0, COLUMNS)
    if HAS_BIAS:
        y_TN += tl.load(bias_ptr + columns, mask=columns < num_outputs, other=0.0).to(tl.float32)[None, :]
        if GATED:
            up_N = tl.load(bias_ptr + num_outputs + columns, mask=columns < num_outputs, other=0.0)
            up_TN += up_N.to(tl.float32)[None, :]
    if GATED:
        y_TN = y_TN / (1.0 + tl.exp(-y_TN)) * up_TN
    if DESCRIBED:
        if ADDED:
            y_TN += residual.load([row, output]).to(tl.float32)
        y.store([row, output], y_TN.to(y.dtype))
    else:
        rows = (row + tl.arange(0, ROWS)).to(tl.int64)
        held = (rows < num_rows)[:, None] & (columns < num_outputs)[None, :]
        if ADDED:
            added = tl.load(residual + rows[:, None] * residual_stride + columns[None, :], mask=held, other=0.0)
            y_TN += added.to(tl.float32)
        tl.store(y + rows[:, None] * y_stride + columns[None, :], y_TN.to(y.dtype.element_ty), mask=held)


@jit()
def _stored(
    y_TN, up_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride, y_stride,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    ADDED: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """A tile's epilogue in PARTS slices."""
    COLUMNS: tl.constexpr = BLOCK_N // PARTS
    if PARTS == 1:
        _finished(
            y_TN, up_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride, y_stride,
            BLOCK_T, COLUMNS, GATED, HAS_BIAS, ADDED, DESCRIBED,
        )  # fmt: skip
    else:
        left_TN, right_TN = _halves(y_TN, BLOCK_T, COLUMNS)
        left_up_TN, right_up_TN = left_TN, right_TN
        if GATED:
            left_up_TN, right_up_TN = _halves(up_TN, BLOCK_T, COLUMNS)
        _finished(
            left_TN, left_up_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride,
            y_stride, BLOCK_T, COLUMNS, GATED, HAS_BIAS, ADDED, DESCRIBED,
        )  # fmt: skip
        _finished(
            right_TN, right_up_TN, bias_ptr, residual, y, row, output + COLUMNS, num_rows, num_outputs,
            residual_stride, y_stride, BLOCK_T, COLUMNS, GATED, HAS_BIAS, ADDED, DESCRIBED,
        )  # fmt: skip


@jit(do_not_specialize=["num_rows"])
def _large_product_kernel(
    x, weight, bias_ptr, residual, y, shares_ptr, arrived_ptr, num_rows, num_outputs, width, x_stride, weight_stride,
    residual_stride, y_stride,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_T: tl.constexpr, PROGRAMS: tl.constexpr,
    SLICES: tl.constexpr, SHARES: tl.constexpr, PARTS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    ADDED: tl.constexpr, EVEN_K: tl.constexpr, DESCRIBED: tl.constexpr, FLAT: tl.constexpr, UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    released(PDL)
    joined(PDL)
    program = tl.program_id(0)
    if SLICES > 1:
        program = program % SLICES * (PROGRAMS // SLICES) + program // SLICES
    heights, widths = tl.cdiv(num_rows, BLOCK_T), tl.cdiv(num_outputs, BLOCK_N)
    tiles = heights * widths
    whole = tiles // PROGRAMS * PROGRAMS
    for number in tl.range(program, whole + (tiles - whole) * SHARES, PROGRAMS, flatten=FLAT):
        tile_row, tile_column = _tile_of(_tile_number(number, whole, SHARES), heights, widths, GROUP_T)
        row, output = tile_row * BLOCK_T, tile_column * BLOCK_N
        begin, end = 0, width
        if SHARES > 1:
            share = tl.cdiv(tl.cdiv(width, BLOCK_K), SHARES) * BLOCK_K
            begin = tl.where(number < whole, 0, (number - whole) % SHARES * share)
            end = tl.where(number < whole, width, tl.minimum(begin + share, width))
        y_TN = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
        up_TN = y_TN
        for k in range(begin, end, BLOCK_K):
            x_TK = _block(x, row, k, x_stride, num_rows, width, BLOCK_T, BLOCK_K, DESCRIBED, EVEN_K)
            w_NK = _block(weight, output, k, weight_stride, num_outputs, width, BLOCK_N, BLOCK_K, DESCRIBED, EVEN_K)
            if UPCAST:
                x_TK, w_NK = x_TK.to(tl.float32), w_NK.to(tl.float32)
            y_TN = tl.dot(x_TK, tl.trans(w_NK), y_TN, input_precision="ieee")
            if GATED:
                up_NK = _block(
                    weight, num_outputs + output, k, weight_stride, 2 * num_outputs, width, BLOCK_N, BLOCK_K, DESCRIBED,
                    EVEN_K,
                )  # fmt: skip
                if UPCAST:
                    up_NK = up_NK.to(tl.float32)
                up_TN = tl.dot(x_TK, tl.trans(up_NK), up_TN, input_precision="ieee")
        # The loop above may have been joined with this one: its tile's place is computed once more, not kept.
        tile_row, tile_column = _tile_of(_tile_number(number, whole, SHARES), heights, widths, GROUP_T)
        row, output = tile_row * BLOCK_T, tile_column * BLOCK_N
        is_done = number < whole
        if SHARES > 1 and number >= whole:
            PLANES: tl.constexpr = 2 if GATED else 1
            SIZE: tl.constexpr = BLOCK_T * BLOCK_N
            place = tl.arange(0, BLOCK_T)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
            own = shares_ptr + tl.cast(number - whole, tl.int64) * PLANES * SIZE
            tl.store(own + place, y_TN)
            if GATED:
                tl.store(own + SIZE + place, up_TN)
            tl.debug_barrier()  # all threads' sums are written before one of them counts
            waiting = (number - whole) // SHARES
            is_done = tl.atomic_add(arrived_ptr + waiting, 1, sem="acq_rel", scope="gpu") == SHARES - 1
            if is_done:
                tl.store(arrived_ptr + waiting, 0)
                first = shares_ptr + tl.cast(waiting, tl.int64) * SHARES * PLANES * SIZE
                y_TN = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
                up_TN = y_TN
                for share in range(SHARES):
                    sums = first + share * PLANES * SIZE + place
                    y_TN += tl.load(sums, cache_modifier=".cg")
                    if GATED:
                        up_TN += tl.load(sums + SIZE, cache_modifier=".cg")
        if SHARES == 1 or is_done:
            _stored(
                y_TN, up_TN, bias_ptr, residual, y, row, output, num_rows, num_outputs, residual_stride, y_stride,
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
    what multiplying it costs. target: options that only some targets know."""
    values = weight.values
    (num_rows, width), num_outputs = x.shape, values.shape[0] // (2 if gated else 1)
    y = torch.empty((num_rows, num_outputs), dtype=out_dtype or x.dtype, device=x.device)
    if num_rows == 0:
        return y
    if norm is not None:
        x = rms_norm_triton(x, norm, eps=eps, block_t=1, num_warps=norm_warps, pdl=pdl)
    x = _aligned(x) if described else _lines(x)
    residual = residual if residual is None else _aligned(residual) if described else _lines(residual)
    added = x if residual is None else residual
    strides = (x.stride(0), values.stride(0), added.stride(0), y.stride(0))
    operands: tuple[Any, ...] = (x, values, added, y)
    if described:
        store = (block_t, block_n // parts)
        blocks = ((block_t, block_k), (block_n, block_k), (block_t, block_k) if residual is None else store, store)
        operands = tuple(map(_descriptor, operands, blocks))
    x_operand, weight_operand, added_operand, y_operand = operands
    shared_tiles = -(-num_rows // block_t) * -(-num_outputs // block_n) % programs
    assert shares == 1 or programs <= NUM_COUNTERS, "each tile that waits for shares has a counter"
    size = shared_tiles * shares * (2 if gated else 1) * block_t * block_n if shares > 1 else 1
    sums = torch.empty(size, dtype=torch.float32, device=x.device)
    _large_product_kernel[(programs,)](
        x_operand, weight_operand, bias.values if bias else x, added_operand, y_operand, sums, counters(x.device),
        num_rows, num_outputs, width, *strides, BLOCK_T=block_t, BLOCK_N=block_n, BLOCK_K=block_k, GROUP_T=group_t,
        PROGRAMS=programs, SLICES=slices if programs % slices == 0 else 1, SHARES=shares, PARTS=parts, GATED=gated,
        HAS_BIAS=bias is not None, ADDED=residual is not None, EVEN_K=width % block_k == 0, DESCRIBED=described,
        FLAT=flat, PDL=pdl,
        UPCAST=INTERPRETED and x.dtype == torch.bfloat16,  # the interpreter takes bfloat16 operands for integers
        num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True, **options(pdl), **target,
    )  # fmt: skip
    return y


def _descriptor(tensor: torch.Tensor, block: tuple[int, int]) -> Any:
    """Made on the host: one made in the kernel would need an allocator for the whole process."""
    made = import_module("triton.tools.tensor_descriptor").TensorDescriptor
    return made(tensor, list(tensor.shape), list(tensor.stride()), list(block))


def _lines(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that a descriptor can describe: itself, if it lies so already."""
    row_bytes = tensor.stride(0) * tensor.element_size()
    if tensor.stride(1) == 1 and row_bytes % _ALIGNED_BYTES == 0 and tensor.data_ptr() % _ALIGNED_BYTES == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
