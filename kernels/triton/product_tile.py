# pyright: basic
"""The product of a few dozen rows in Triton: the weight's tile is the left operand of the matrix unit and x the right
one, so that 8 rows are enough. K is cut into SPLITS: wide tiles (each brings x from the cache again) and yet a program
for every unit. A tile's last program to arrive adds up all parts in their order: the same bits in every run.

The norm's squares are summed in the same pass; in float16 x·g could overflow where x is not normed first: there they
have a pass of their own. See `product.py`.

Letters: T rows of x, N outputs, K contraction, S splits.
"""

from __future__ import annotations

from .arrivals import is_last
from .language import jit, tl
from .overlap import joined, released
from .product_row import read
from .turned import paired, store_turned


@jit(do_not_specialize=["num_rows"])
def product_tile_kernel(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, rotation_ptr, k_ptr, v_ptr, slots_ptr, parts_ptr,
    arrived_ptr, num_rows, num_outputs, width, x_stride, weight_stride, residual_stride, y_stride,
    rotation_stride, page_stride, slot_stride, head_stride, eps,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, NORMED: tl.constexpr,
    TWO_PASSES: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, ADDED: tl.constexpr, EVEN_K: tl.constexpr,
    INTERPRET: tl.constexpr, PDL: tl.constexpr, EARLY: tl.constexpr, PAIRS: tl.constexpr,
    NUM_HEADS: tl.constexpr, GROUPS: tl.constexpr, PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    tile, split, above = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tile.to(tl.int64) * BLOCK_N
    output = paired(first + tl.arange(0, BLOCK_N), PAIRS) if PAIRS else first + tl.arange(0, BLOCK_N)
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
        w_NK = read(w_rows + (k + column)[None, :], held[None, :], EVEN_K)
        x_TK = read(x_rows + (k + column)[None, :], held[None, :], EVEN_K)
        if NORMED:
            x_TK, more_TK = _times_norm(x_TK, read(norm_ptr + k + column, held, EVEN_K), scale_T)
            squares_TK += more_TK
        y_NT = _multiplied(w_NK, x_TK, y_NT, INTERPRET)
        if GATED:
            up_NT = _multiplied(read(up_rows + (k + column)[None, :], held[None, :], EVEN_K), x_TK, up_NT, INTERPRET)
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
        if not is_last(arrived_ptr + number, SPLITS - 1):
            return
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
    if PAIRS:
        store_turned(
            y_TN, first // 2, row, num_rows,
            rotation_ptr, y_ptr, k_ptr, v_ptr, slots_ptr, rotation_stride, page_stride, slot_stride, head_stride,
            BLOCK_T, BLOCK_N, PAIRS, NUM_HEADS, GROUPS, PAGE_SIZE,
        )  # fmt: skip
        return
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
