# pyright: basic
"""Attention of a decode step in Triton: each program an equal, contiguous share of all keys that the step reads.

The step's work is a row of tiles of BLOCK_N keys: request by request, in each key head by key head. Program p of P
takes T/P tiles from about p·T/P on, whatever the lengths: the one long request of a batch is spread over as many
programs as its share of the bytes is worth. Where hardly larger shares would end with the heads, heads are filled up
with tiles of no keys until they do: a program that ends one head and begins another waits for its first loads twice.
A head that lies in one program is done there. Of a head that is cut each program leaves its part, and the last one to
arrive joins them in their order, so that bits do not depend on who was last; they do depend on where the cuts fall,
that is on the batch (`paged_attention.py` has the kernel where they do not).
Stream-K: Osama et al., arXiv:2301.03598; online softmax: Milakov and Gimelshein, arXiv:1805.02867; decoding:
Sanovar et al., arXiv:2405.10480.

All query heads that share a key head are the rows of one tile of the matrix unit.

Letters: M rows of a tile, N keys of a tile, D head size, B requests, C parts that are joined at once.
"""

from __future__ import annotations

from typing import Any

import torch

from .arrivals import counters, is_last
from .language import jit, tl
from .overlap import joined, options, released


@jit(do_not_specialize=["num_requests", "num_rows", "table_stride"])
def _paged_decode_kernel(
    q_ptr, k_ptr, v_ptr, starts_ptr, lengths_ptr, tables_ptr, y_ptr, sums_ptr, facts_ptr, arrived_ptr,
    num_requests, num_rows, table_stride, q_stride, q_head_stride, page_stride, slot_stride, head_stride, y_stride,
    scale_log2, softcap_log2,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # Lengths and tables are older than the kernel before this one (see `overlap.py`).
    program = tl.program_id(0)
    index_B = tl.arange(0, BLOCK_B)
    known_B = index_B < num_requests
    start_B = tl.load(starts_ptr + index_B, mask=known_B, other=0)
    decodes_B = tl.load(starts_ptr + index_B + 1, mask=known_B, other=0) - start_B == 1
    length_B = tl.where(decodes_B, tl.load(lengths_ptr + index_B, mask=known_B, other=0), 0)
    hidden_B = tl.maximum(length_B - WINDOW, 0) // BLOCK_N if WINDOW else length_B * 0
    tiles_B = tl.cdiv(length_B, BLOCK_N) - hidden_B
    total = tl.sum(tiles_B, axis=0) * GROUPS
    share, larger = total // tl.num_programs(0), total % tl.num_programs(0)  # so many programs take one tile more
    if total > tl.num_programs(0):
        piece = _piece(tiles_B, share, GROUPS)
        if piece > 0:
            tiles_B = tl.cdiv(tiles_B, piece) * piece
            total = tl.sum(tiles_B, axis=0) * GROUPS
            share, larger = piece, piece * 0
    until_B = tl.cumsum(tiles_B, axis=0) * GROUPS
    own, end = _begin(program, share, larger), tl.minimum(_begin(program + 1, share, larger), total)

    member, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    held = (member < GROUP)[:, None] & (column < D)[None, :]
    joined(PDL)
    released(PDL)
    for padding in range(tl.load(starts_ptr + num_requests) + program.to(tl.int64), num_rows, tl.num_programs(0)):
        for group in range(GROUPS):
            place = y_ptr + padding * y_stride + group * GROUP * D + member[:, None] * D + column[None, :]
            tl.store(place, tl.zeros((BLOCK_M, BLOCK_D), dtype=y_ptr.dtype.element_ty), mask=held)
    tile = own
    while tile < end:
        request = tl.sum((until_B <= tile).to(tl.int32), axis=0)
        chosen_B = index_B == request
        tiles = tl.sum(tl.where(chosen_B, tiles_B, 0), axis=0)
        before = tl.sum(tl.where(chosen_B, until_B, 0), axis=0) - tiles * GROUPS
        kv_head = (tile - before) // tiles
        head_tile = before + kv_head * tiles
        stop = tl.minimum(end, head_tile + tiles)
        length = tl.sum(tl.where(chosen_B, length_B, 0), axis=0)
        row = tl.sum(tl.where(chosen_B, start_B, 0), axis=0).to(tl.int64)
        skipped = tl.sum(tl.where(chosen_B, hidden_B, 0), axis=0)
        first = (skipped + tile - head_tile) * BLOCK_N
        last = tl.minimum((skipped + stop - head_tile) * BLOCK_N, length)

        head = kv_head * GROUP + member
        q_MD = tl.load(q_ptr + row * q_stride + head[:, None] * q_head_stride + column[None, :], mask=held, other=0.0)
        if UPCAST:
            q_MD = q_MD.to(tl.float32)
        shown = tl.maximum(length - WINDOW, 0) if WINDOW else 0
        sums_MD, largest_M, weight_M = attended(
            q_MD, k_ptr + kv_head.to(tl.int64) * head_stride, v_ptr + kv_head.to(tl.int64) * head_stride,
            tables_ptr + request.to(tl.int64) * table_stride, first, last, shown, page_stride, slot_stride, scale_log2,
            softcap_log2, D, BLOCK_M, BLOCK_N, BLOCK_D, PAGE_SIZE, PAGE_SIZE % BLOCK_N == 0, CAPPED, UPCAST,
        )  # fmt: skip
        target = y_ptr + row * y_stride + kv_head * GROUP * D
        if (tile == head_tile) & (stop == head_tile + tiles):
            y_MD = (sums_MD / weight_M[:, None]).to(y_ptr.dtype.element_ty)
            tl.store(target + member[:, None] * D + column[None, :], y_MD, mask=held)
        else:
            place = 2 * program + (tile != own)
            tl.store(sums_ptr + (place * GROUP + member[:, None]) * D + column[None, :], sums_MD, mask=held)
            tl.store(facts_ptr + (place * GROUP + member) * 2, largest_M, mask=member < GROUP)
            tl.store(facts_ptr + (place * GROUP + member) * 2 + 1, weight_M, mask=member < GROUP)
            low, high = _holder(head_tile, share, larger), _holder(head_tile + tiles - 1, share, larger)
            if is_last(arrived_ptr + low, high - low):
                _join(
                    target, sums_ptr, facts_ptr, low, high, head_tile, share, larger,
                    GROUP, D, BLOCK_C, BLOCK_G, BLOCK_D,
                )  # fmt: skip
        tile = stop


@jit()
def _piece(tiles_B, share, GROUPS: tl.constexpr):
    """The smallest number of tiles, of an equal share's and up to three more, in pieces of which programs suffice for
    all heads; 0: of none."""
    piece = 0
    for more in tl.static_range(3, -1, -1):
        pieces = tl.sum(tl.cdiv(tiles_B, share + more), axis=0) * GROUPS
        piece = tl.where(pieces <= tl.num_programs(0), share + more, piece)
    return piece


@jit()
def _begin(program, share, larger):
    """The first tile of a program."""
    return program * share + tl.minimum(program, larger)


@jit()
def _holder(tile, share, larger):
    """The program that has a tile."""
    ahead = larger * (share + 1)
    return tl.where(tile < ahead, tile // (share + 1), larger + (tile - ahead) // tl.maximum(share, 1))


@jit()
def _join(
    target, sums_ptr, facts_ptr, low, high, head_tile, share, larger,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The parts that programs [low, high] left of a head, added up and written."""
    member, column = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    sums_GD = tl.zeros((BLOCK_G, BLOCK_D), dtype=tl.float32)
    largest_G = tl.full((BLOCK_G,), float("-inf"), dtype=tl.float32)
    weight_G = tl.zeros((BLOCK_G,), dtype=tl.float32)
    for begin in range(low, high + 1, BLOCK_C):
        part = begin + tl.arange(0, BLOCK_C)
        place = 2 * part + (_begin(part, share, larger) < head_tile)
        fact_CG = place[:, None] * GROUP + member[None, :]
        held_CG = (part <= high)[:, None] & (member < GROUP)[None, :]
        most_CG = tl.load(facts_ptr + fact_CG * 2, mask=held_CG, other=float("-inf"), cache_modifier=".cg")
        heavy_CG = tl.load(facts_ptr + fact_CG * 2 + 1, mask=held_CG, other=0.0, cache_modifier=".cg")
        part_CGD = tl.load(
            sums_ptr + fact_CG[:, :, None] * D + column[None, None, :],
            mask=held_CG[:, :, None] & (column < D)[None, None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        raised_G = tl.maximum(largest_G, tl.max(most_CG, axis=0))
        level_G = tl.where(raised_G == float("-inf"), 0.0, raised_G)
        shrink_G, shrink_CG = tl.exp2(largest_G - level_G), tl.exp2(most_CG - level_G[None, :])
        weight_G = weight_G * shrink_G + tl.sum(heavy_CG * shrink_CG, axis=0)
        sums_GD = sums_GD * shrink_G[:, None] + tl.sum(part_CGD * shrink_CG[:, :, None], axis=0)
        largest_G = raised_G
    held = (member < GROUP)[:, None] & (column < D)[None, :]
    y_GD = (sums_GD / tl.where(member < GROUP, weight_G, 1.0)[:, None]).to(target.dtype.element_ty)
    tl.store(target + member[:, None] * D + column[None, :], y_GD, mask=held)


@jit()
def attended(
    q_MD, k_ptr, v_ptr, table_ptr, first, end, shown, page_stride, slot_stride, scale_log2, softcap_log2,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr,
    WHOLE: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The newest token's queries over keys [first, end): unnormalised sums, largest score (base 2), sum of weights.

    Keys before `shown` are not read: their pages may be gone. WHOLE: tiles lie in one page each, so that one number
    says where."""
    column, lane = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    sums_MD = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    largest_M = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    weight_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(first, end, BLOCK_N):
        key = start + lane
        inside = (key >= shown) & (key < end)
        if WHOLE:
            page = tl.load(table_ptr + start // PAGE_SIZE).to(tl.int64)
            offset_N = page * page_stride + (start % PAGE_SIZE + lane) * slot_stride
        else:
            page_N = tl.load(table_ptr + key // PAGE_SIZE, mask=inside, other=0).to(tl.int64)
            offset_N = page_N * page_stride + (key % PAGE_SIZE) * slot_stride
        held = inside[:, None] & (column < D)[None, :] if D < BLOCK_D else inside[:, None]
        k_ND = tl.load(k_ptr + offset_N[:, None] + column[None, :], mask=held, other=0.0)
        v_ND = tl.load(v_ptr + offset_N[:, None] + column[None, :], mask=held, other=0.0)
        if UPCAST:
            k_ND, v_ND = k_ND.to(tl.float32), v_ND.to(tl.float32)
        score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee") * scale_log2
        if CAPPED:  # scale_log2 has no log2(e) here, and 1 - 2 / (exp(2x) + 1) is tanh(x)
            score_MN = softcap_log2 * (1.0 - 2.0 / (tl.exp(2.0 * score_MN) + 1.0))
        score_MN = tl.where(inside[None, :], score_MN, float("-inf"))
        raised_M = tl.maximum(largest_M, tl.max(score_MN, axis=1))
        level_M = tl.where(raised_M == float("-inf"), 0.0, raised_M)  # of a tile that shows no key
        p_MN = tl.exp2(score_MN - level_M[:, None])
        shrink_M = tl.exp2(largest_M - level_M)
        weight_M = weight_M * shrink_M + tl.sum(p_MN, axis=1)
        sums_MD = tl.dot(p_MN.to(v_ND.dtype), v_ND, sums_MD * shrink_M[:, None], input_precision="ieee")
        largest_M = raised_M
    return sums_MD, largest_M, weight_M


def decode(
    tensors: tuple[torch.Tensor, ...], num_requests: int, groups: int, strides: tuple[int, ...],
    scales: tuple[float, float], sizes: dict[str, Any], *, keys: int, warps: int, stages: int, programs: int, pdl: bool,
) -> None:  # fmt: skip
    """Writes the rows of requests of one query, and zeros into rows behind the last request. tensors: q, k, v, starts,
    lengths, tables, y."""
    y = tensors[-1]
    group, size, block_d = sizes["GROUP"], sizes["D"], sizes["BLOCK_D"]
    block_g = 1 << (group - 1).bit_length()
    sums = torch.empty(2 * programs * group * size, dtype=torch.float32, device=y.device)
    facts = torch.empty(2 * programs * group * 2, dtype=torch.float32, device=y.device)
    _paged_decode_kernel[(programs,)](
        *tensors, sums, facts, counters(y.device), num_requests, y.shape[0], *strides, *scales, **sizes, GROUPS=groups,
        BLOCK_B=max(16, 1 << (num_requests - 1).bit_length()), BLOCK_M=max(16, block_g), BLOCK_N=keys, BLOCK_G=block_g,
        BLOCK_C=max(1, 64 * warps * 32 // (block_g * block_d)), PDL=pdl, num_warps=warps, num_stages=stages,
        enable_fp_fusion=True, **options(pdl),
    )  # fmt: skip
