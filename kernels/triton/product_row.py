# pyright: basic
"""The product of one row in Triton: vector units, K side by side over the threads, and added up once, at the end.

Nothing is staged on chip; many loads are in flight. What a program loads of its weight before it waits for the kernel
before it (`overlap.joined`) covers that wait. See `product.py`.

Letters: N outputs, K contraction.
"""

from __future__ import annotations

from .language import jit, tl
from .overlap import joined, released
from .turned import paired, store_turned


@jit()
def read(pointers, held, EVEN: tl.constexpr):
    """What lies there; EVEN: all of it is held, so that no mask narrows the load."""
    return tl.load(pointers) if EVEN else tl.load(pointers, mask=held, other=0.0)


@jit()
def product_row_kernel(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, rotation_ptr, k_ptr, v_ptr, slots_ptr,
    num_outputs, width, weight_stride, rotation_stride, page_stride, slot_stride, head_stride, eps,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TILES: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADDED: tl.constexpr, EVEN_K: tl.constexpr, PDL: tl.constexpr, PAIRS: tl.constexpr,
    NUM_HEADS: tl.constexpr, GROUPS: tl.constexpr, PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK_N
    output = paired(first + tl.arange(0, BLOCK_N), PAIRS) if PAIRS else first + tl.arange(0, BLOCK_N)
    inside, column = output < num_outputs, tl.arange(0, BLOCK_K)
    # Rows beyond the last are the last once more: no mask narrows the loads, and only the store leaves them out.
    rows = weight_ptr + tl.minimum(output, num_outputs - 1)[:, None] * weight_stride
    up_rows = rows + tl.cast(num_outputs, tl.int64) * weight_stride if GATED else rows
    norm = norm_ptr if NORMED else weight_ptr
    w_NK, up_w_NK, norm_K = _weights(rows, up_rows, norm, column, width, NORMED, GATED, EVEN_K)
    joined(PDL)
    released(PDL)
    squares_K = tl.zeros((BLOCK_K,), dtype=tl.float32)
    y_NK = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    up_NK = y_NK
    y_NK, up_NK, squares_K = _added(
        x_ptr, column, width, w_NK, up_w_NK, norm_K, y_NK, up_NK, squares_K, NORMED, GATED, EVEN_K
    )
    if TILES:
        for tile in tl.static_range(1, TILES):
            y_NK, up_NK, squares_K = _with_block(
                x_ptr, rows, up_rows, norm, tile * BLOCK_K + column, width, y_NK, up_NK, squares_K,
                NORMED, GATED, EVEN_K,
            )  # fmt: skip
    else:
        for start in range(BLOCK_K, width, BLOCK_K):
            y_NK, up_NK, squares_K = _with_block(
                x_ptr, rows, up_rows, norm, start + column, width, y_NK, up_NK, squares_K, NORMED, GATED, EVEN_K
            )

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
    if PAIRS:
        store_turned(
            y_N[None, :], first // 2, tl.zeros((1,), dtype=tl.int64), 1, rotation_ptr, y_ptr, k_ptr, v_ptr, slots_ptr,
            rotation_stride, page_stride, slot_stride, head_stride, 1, BLOCK_N, PAIRS, NUM_HEADS, GROUPS, PAGE_SIZE,
        )  # fmt: skip
    else:
        tl.store(y_ptr + output, y_N.to(y_ptr.dtype.element_ty), mask=inside)


@jit()
def _weights(rows, up_rows, norm, k, width, NORMED: tl.constexpr, GATED: tl.constexpr, EVEN_K: tl.constexpr):
    """A block of the weight, of its upper half, and of the norm; what is not asked for is the block once more."""
    held = k < width
    w_NK = read(rows + k[None, :], held[None, :], EVEN_K)
    up_w_NK = read(up_rows + k[None, :], held[None, :], EVEN_K) if GATED else w_NK
    norm_K = read(norm + k, held, EVEN_K) if NORMED else k
    return w_NK, up_w_NK, norm_K


@jit()
def _with_block(
    x_ptr, rows, up_rows, norm, k, width, y_NK, up_NK, squares_K, NORMED: tl.constexpr, GATED: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """The sums with the columns k of the weight."""
    w_NK, up_w_NK, norm_K = _weights(rows, up_rows, norm, k, width, NORMED, GATED, EVEN_K)
    return _added(x_ptr, k, width, w_NK, up_w_NK, norm_K, y_NK, up_NK, squares_K, NORMED, GATED, EVEN_K)


@jit()
def _added(
    x_ptr, k, width, w_NK, up_w_NK, norm_K, y_NK, up_NK, squares_K, NORMED: tl.constexpr, GATED: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """The sums with a block that is loaded."""
    x_K = read(x_ptr + k, k < width, EVEN_K).to(tl.float32)
    if NORMED:
        squares_K += x_K * x_K
        x_K *= norm_K.to(tl.float32)
    y_NK += w_NK.to(tl.float32) * x_K[None, :]
    if GATED:
        up_NK += up_w_NK.to(tl.float32) * x_K[None, :]
    return y_NK, up_NK, squares_K
