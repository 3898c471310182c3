# pyright: basic
"""Attention of the requests of a step that bring more than one query, over pages, with an online softmax.

Milakov and Gimelshein, arXiv:1805.02867; Dao, FlashAttention-2, arXiv:2307.08691. One program a tile of tokens, for
one query head, or for PACKED heads that share a key head: many tokens need no packing (a tile of 128 tokens of one head
sees fewer keys in vain, and the heads of a group, which run side by side, find each other's keys in the last-level
cache), a few tokens fill a tile with it. Nothing is read on the host: a program finds its tile's request by a search.

A tile's keys come in three parts: those that all its queries see, with no mask, between those at the window's edge and
those on the diagonal. The last tiles, which see the most keys, are first in the grid. Where pages hold whole tiles of
keys (ONE_PAGE), a tile's page is one number; then keys and values may come by tensor descriptors (DESCRIBED) of all
pages as one matrix, whose row (page · PAGE_ROWS + head · HEAD_ROWS + slot) and column (head · HEAD_COLUMNS) fit both
orders of a page.

Letters: M rows of a tile (tokens × packed heads), N keys of a tile, D head size, B requests. Key tiles begin at
multiples of N, and a request's token tiles at multiples of theirs: its bits do not depend on other requests.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from .language import jit, tl


@jit()
def _request_of(tile, starts_ptr, num_requests, TOKENS: tl.constexpr):
    """Request b's tiles begin at number starts[b] // TOKENS + b: what a search finds without a list of tiles."""
    low, high = tile * 0, num_requests
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // TOKENS + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@jit()
def _keys(
    source, table_ptr, start, length, kv_head, page_stride, slot_stride, head_stride,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr, ONE_PAGE: tl.constexpr,
    DESCRIBED: tl.constexpr, PAGE_ROWS: tl.constexpr, HEAD_ROWS: tl.constexpr, HEAD_COLUMNS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """[N, D] of the keys or values from `start` on. MASKED: some may lie beyond the request's last; then zeros, except
    for what a descriptor reads."""
    if DESCRIBED:
        page = tl.load(table_ptr + start // PAGE_SIZE)
        row = page * PAGE_ROWS + kv_head * HEAD_ROWS + start % PAGE_SIZE
        keys_ND = source.load([row, kv_head * HEAD_COLUMNS])
    else:
        lane, column = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
        inside = start + lane < length
        if ONE_PAGE:
            page = tl.load(table_ptr + start // PAGE_SIZE).to(tl.int64)
            offset_N = page * page_stride + (start % PAGE_SIZE + lane).to(tl.int64) * slot_stride
        else:
            key = tl.minimum(start + lane, length - 1)
            offset_N = tl.load(table_ptr + key // PAGE_SIZE).to(tl.int64) * page_stride + key % PAGE_SIZE * slot_stride
        pointers = source + kv_head.to(tl.int64) * head_stride + offset_N[:, None] + column[None, :]
        if MASKED:
            keys_ND = tl.load(pointers, mask=inside[:, None] & (column < D)[None, :], other=0.0)
        elif D == BLOCK_D:
            keys_ND = tl.load(pointers)
        else:
            keys_ND = tl.load(pointers, mask=(column < D)[None, :], other=0.0)
    return keys_ND


@jit()
def _attended(
    sums_MD, largest_M, weight_M, q_MD, position_M, k, v, table_ptr, first, end, length, kv_head,
    page_stride, slot_stride, head_stride, scale_log2, softcap_log2,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr, WINDOW: tl.constexpr,
    CAPPED: tl.constexpr, UPCAST: tl.constexpr, ONE_PAGE: tl.constexpr, DESCRIBED: tl.constexpr,
    PAGE_ROWS: tl.constexpr, HEAD_ROWS: tl.constexpr, HEAD_COLUMNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Takes keys [first, end) into unnormalised sums, the largest score (base 2) and the sum of weights."""
    for start in range(first, end, BLOCK_N):
        k_ND = _keys(
            k, table_ptr, start, length, kv_head, page_stride, slot_stride, head_stride, D, BLOCK_N, BLOCK_D,
            PAGE_SIZE, ONE_PAGE, DESCRIBED, PAGE_ROWS, HEAD_ROWS, HEAD_COLUMNS, MASKED,
        )  # fmt: skip
        if UPCAST:
            k_ND = k_ND.to(tl.float32)
        score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
        if CAPPED:  # scale_log2 has no log2(e) here, and 1 - 2 / (exp(2x) + 1) is tanh(x)
            score_MN = softcap_log2 * (1.0 - 2.0 / (tl.exp(2.0 * scale_log2 * score_MN) + 1.0))
        if MASKED:
            key = start + tl.arange(0, BLOCK_N)
            seen = key[None, :] <= position_M[:, None]
            if WINDOW:
                seen = seen & (key[None, :] > position_M[:, None] - WINDOW)
            score_MN = tl.where(seen, score_MN, float("-inf"))
        # The scale is positive: the largest of the products is where the largest score is.
        scale = 1.0 if CAPPED else scale_log2
        raised_M = tl.maximum(largest_M, tl.max(score_MN, axis=1) * scale)
        level_M = raised_M
        if WINDOW:
            level_M = tl.where(raised_M == float("-inf"), 0.0, raised_M)  # a row that has seen no key yet
        p_MN = tl.exp2(score_MN * scale - level_M[:, None])
        shrink_M = tl.exp2(largest_M - level_M)
        weight_M = weight_M * shrink_M + tl.sum(p_MN, axis=1)
        v_ND = _keys(
            v, table_ptr, start, length, kv_head, page_stride, slot_stride, head_stride, D, BLOCK_N, BLOCK_D,
            PAGE_SIZE, ONE_PAGE, DESCRIBED, PAGE_ROWS, HEAD_ROWS, HEAD_COLUMNS, MASKED,
        )  # fmt: skip
        if MASKED and DESCRIBED:  # what lies beyond the last key may be no number, and 0 times that is none either
            v_ND = tl.where((start + tl.arange(0, BLOCK_N) < length)[:, None], v_ND, 0.0)
        p_MN = p_MN.to(v_ND.dtype)
        if UPCAST:
            p_MN, v_ND = p_MN.to(tl.float32), v_ND.to(tl.float32)
        sums_MD = tl.dot(p_MN, v_ND, sums_MD * shrink_M[:, None], input_precision="ieee")
        largest_M = raised_M
    return sums_MD, largest_M, weight_M


@jit(do_not_specialize=["num_requests", "table_stride"])
def _paged_prefill_kernel(
    q_ptr, k, v, starts_ptr, lengths_ptr, tables_ptr, y_ptr,
    num_requests, table_stride, q_stride, q_head_stride, page_stride, slot_stride, head_stride, y_stride,
    scale_log2, softcap_log2,
    GROUP: tl.constexpr, PACKED: tl.constexpr, SLICES: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr,
    UPCAST: tl.constexpr, ONE_PAGE: tl.constexpr, DESCRIBED: tl.constexpr, PAGE_ROWS: tl.constexpr,
    HEAD_ROWS: tl.constexpr, HEAD_COLUMNS: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = BLOCK_M // PACKED
    stack, tile = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    if SLICES > 1:  # heads side by side are in one slice of the cache
        stack = stack % SLICES * (tl.num_programs(0) // SLICES) + stack // SLICES
    request = _request_of(tile, starts_ptr, num_requests, TOKENS)
    begin = tl.load(starts_ptr + request)
    num_queries = tl.load(starts_ptr + request + 1) - begin
    token = (tile - begin // TOKENS - request) * TOKENS
    if (token >= num_queries) | (num_queries == 1):
        return
    length = tl.load(lengths_ptr + request)
    shift = length - num_queries

    line, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    query, member = token + line // PACKED, line % PACKED
    if PACKED == 1:
        kv_head, head = stack // GROUP, stack + member
        held = (query < num_queries)[:, None] & (column < D)[None, :]
    else:
        kv_head, head = stack, stack * GROUP + member
        held = ((query < num_queries) & (member < GROUP))[:, None] & (column < D)[None, :]
    row = (begin + query).to(tl.int64)
    q_MD = tl.load(
        q_ptr + row[:, None] * q_stride + head[:, None] * q_head_stride + column[None, :], mask=held, other=0.0
    )
    if UPCAST:
        q_MD = q_MD.to(tl.float32)

    position_M = shift + query
    end = tl.minimum(shift + token + TOKENS, length)
    clear_end = (shift + token + 1) // BLOCK_N * BLOCK_N
    table_ptr = tables_ptr + request.to(tl.int64) * table_stride
    sums_MD = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    largest_M = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    weight_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    clear = 0
    if WINDOW:
        first = tl.maximum(shift + token - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        clear = tl.maximum(tl.cdiv(shift + token + TOKENS - WINDOW, BLOCK_N) * BLOCK_N, first)
        clear = tl.minimum(clear, clear_end)
        sums_MD, largest_M, weight_M = _attended(
            sums_MD, largest_M, weight_M, q_MD, position_M, k, v, table_ptr, first, clear, length, kv_head,
            page_stride, slot_stride, head_stride, scale_log2, softcap_log2, D, BLOCK_N, BLOCK_D, PAGE_SIZE, WINDOW,
            CAPPED, UPCAST, ONE_PAGE, DESCRIBED, PAGE_ROWS, HEAD_ROWS, HEAD_COLUMNS, True,
        )  # fmt: skip
    sums_MD, largest_M, weight_M = _attended(
        sums_MD, largest_M, weight_M, q_MD, position_M, k, v, table_ptr, clear, clear_end, length, kv_head,
        page_stride, slot_stride, head_stride, scale_log2, softcap_log2, D, BLOCK_N, BLOCK_D, PAGE_SIZE, WINDOW,
        CAPPED, UPCAST, ONE_PAGE, DESCRIBED, PAGE_ROWS, HEAD_ROWS, HEAD_COLUMNS, False,
    )  # fmt: skip
    sums_MD, largest_M, weight_M = _attended(
        sums_MD, largest_M, weight_M, q_MD, position_M, k, v, table_ptr, clear_end, end, length, kv_head,
        page_stride, slot_stride, head_stride, scale_log2, softcap_log2, D, BLOCK_N, BLOCK_D, PAGE_SIZE, WINDOW,
        CAPPED, UPCAST, ONE_PAGE, DESCRIBED, PAGE_ROWS, HEAD_ROWS, HEAD_COLUMNS, True,
    )  # fmt: skip
    if WINDOW:
        weight_M = tl.where(weight_M > 0.0, weight_M, 1.0)  # rows beyond the last query may have seen no key
    y_MD = (sums_MD / weight_M[:, None]).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row[:, None] * y_stride + head[:, None] * D + column[None, :], y_MD, mask=held)


def prefill(
    tensors: tuple[torch.Tensor, ...], num_requests: int, groups: int, strides: tuple[int, ...],
    scales: tuple[float, float], sizes: dict[str, Any], *, rows: int, keys: int, warps: int, stages: int, packed: bool,
    described: bool, slices: int, **target: int,
) -> None:  # fmt: skip
    """Fills the rows of y of requests with more than one query.

    tensors: q, k, v (canonical [P, S, G, D]), query_starts, context_lengths, page_tables, y. strides: of the table's
    rows, of q's rows and heads, of pages, slots and heads, of y's rows. scales: of scores, soft cap (see the kernel).
    sizes: GROUP, D, BLOCK_D, PAGE_SIZE, WINDOW, CAPPED, UPCAST. target: options that only some targets know.
    """
    q, k, v, *others = tensors
    page_size, group = sizes["PAGE_SIZE"], sizes["GROUP"]
    one_page = page_size % keys == 0
    together = 1 << (group - 1).bit_length() if packed else 1
    rows = max(rows, together)
    geometry = _geometry(k) if described and one_page and sizes["D"] == sizes["BLOCK_D"] else None
    if geometry:
        k, v = (_descriptor(plane, geometry, keys) for plane in (k, v))
    page_rows, head_rows, head_columns = geometry[2:] if geometry else (0, 0, 0)
    stacks, num_tiles = groups if packed else groups * group, q.shape[0] // (rows // together) + num_requests
    _paged_prefill_kernel[(stacks, num_tiles)](
        q, k, v, *others, num_requests, *strides, *scales, **sizes, PACKED=together,
        SLICES=slices if stacks % slices == 0 else 1, BLOCK_M=rows, BLOCK_N=keys, ONE_PAGE=one_page,
        DESCRIBED=geometry is not None, PAGE_ROWS=page_rows, HEAD_ROWS=head_rows, HEAD_COLUMNS=head_columns,
        num_warps=warps, num_stages=stages, enable_fp_fusion=True, **target,
    )  # fmt: skip


def _geometry(plane: torch.Tensor) -> tuple[int, int, int, int, int] | None:
    """A plane [P, S, G, D] as one matrix: rows, columns; rows of a page and of a head, columns of a head. None: it does
    not lie densely in one of the two orders."""
    num_pages, page_size, groups, size = plane.shape
    if size * plane.element_size() % 16 or plane.data_ptr() % 16:
        return None
    if plane.stride() == (groups * page_size * size, size, page_size * size, 1):
        return num_pages * groups * page_size, size, groups * page_size, page_size, 0
    if plane.stride() == (groups * page_size * size, groups * size, size, 1):
        return num_pages * page_size, groups * size, page_size, 0, size
    return None


def _descriptor(plane: torch.Tensor, geometry: tuple[int, int, int, int, int], keys: int) -> Any:
    """Made on the host: one made in the kernel would need an allocator for the whole process."""
    made = import_module("triton.tools.tensor_descriptor").TensorDescriptor
    num_rows, num_columns = geometry[:2]
    return made(plane, [num_rows, num_columns], [num_columns, 1], [keys, plane.shape[3]])
