# pyright: basic
"""What the QKV product does with its outputs where rope and the stores are its epilogue: turned, and into the pages.

A rotation takes two values of a head that lie half a head apart, so a program takes the outputs in pairs: numbers 2i
and 2i + 1 are the two values of pair i. See `product.py`, and `qkv_rope_store.py` for the kernel that stands alone.

Letters: T rows, N outputs, P pairs.
"""

from __future__ import annotations

from .language import jit, tl


@jit()
def paired(number, PAIRS: tl.constexpr):
    """The output that a number stands for. PAIRS: of a head."""
    pair = number // 2
    return pair // PAIRS * (2 * PAIRS) + pair % PAIRS + number % 2 * PAIRS


@jit()
def store_turned(
    y_TN, first, row_T, num_rows, rotation_ptr, q_ptr, k_ptr, v_ptr, slots_ptr, rotation_stride, page_stride,
    slot_stride, head_stride, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, PAIRS: tl.constexpr,
    NUM_HEADS: tl.constexpr, GROUPS: tl.constexpr, PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    """Pairs from `first` on: queries and keys are turned; queries go to q, keys and values to the row's slot."""
    pair_P = first + tl.arange(0, BLOCK_N // 2)
    head_P, column_P = pair_P // PAIRS, pair_P % PAIRS
    low_TP, high_TP = tl.split(tl.reshape(y_TN, (BLOCK_T, BLOCK_N // 2, 2)))
    inside_T = row_T < num_rows
    turned = inside_T[:, None] & (head_P < NUM_HEADS + GROUPS)[None, :]
    angle = rotation_ptr + row_T[:, None] * rotation_stride + column_P[None, :]
    cosine_TP = tl.load(angle, mask=turned, other=1.0)
    sine_TP = tl.load(angle + PAIRS, mask=turned, other=0.0)
    first_TP = tl.where(turned, low_TP * cosine_TP - high_TP * sine_TP, low_TP)  # where it is not, inf stays alone
    high_TP = tl.where(turned, high_TP * cosine_TP + low_TP * sine_TP, high_TP)
    low_TP = first_TP

    query = q_ptr + (row_T[:, None] * NUM_HEADS + head_P[None, :]) * (2 * PAIRS) + column_P[None, :]
    is_query = inside_T[:, None] & (head_P < NUM_HEADS)[None, :]
    tl.store(query, low_TP.to(q_ptr.dtype.element_ty), mask=is_query)
    tl.store(query + PAIRS, high_TP.to(q_ptr.dtype.element_ty), mask=is_query)

    slot_T = tl.load(slots_ptr + row_T, mask=inside_T, other=-1).to(tl.int64)
    kv_head_P = head_P - NUM_HEADS
    is_key = (slot_T >= 0)[:, None] & ((kv_head_P >= 0) & (kv_head_P < GROUPS))[None, :]
    is_value = (slot_T >= 0)[:, None] & ((kv_head_P >= GROUPS) & (kv_head_P < 2 * GROUPS))[None, :]
    place_T = slot_T // PAGE_SIZE * page_stride + slot_T % PAGE_SIZE * slot_stride
    key = k_ptr + place_T[:, None] + (kv_head_P * head_stride + column_P)[None, :]
    tl.store(key, low_TP.to(k_ptr.dtype.element_ty), mask=is_key)
    tl.store(key + PAIRS, high_TP.to(k_ptr.dtype.element_ty), mask=is_key)
    value = v_ptr + place_T[:, None] + ((kv_head_P - GROUPS) * head_stride + column_P)[None, :]
    tl.store(value, low_TP.to(v_ptr.dtype.element_ty), mask=is_value)
    tl.store(value + PAIRS, high_TP.to(v_ptr.dtype.element_ty), mask=is_value)
