# pyright: basic
"""paged_attention in Triton: one ragged family for prefill and decode, read from the pages with an online softmax.

Milakov and Gimelshein, arXiv:1805.02867; Dao, FlashAttention-2, arXiv:2307.08691; the splits of a decode step's keys
as in Flash-Decoding (Dao et al., 2023). Nothing is read on the host: grids follow from shapes and `num_queries`.

Letters: M rows of a tile (tokens × the query heads that share a key head), N keys of a tile, D head size, B requests,
S splits. Three kernels:

decode   a request of one query: its keys in at most S splits, whose length follows from the request's own keys alone.
         A program works through every W-th of them: W only says how many programs share the splits, not their sums.
combine  joins the splits of a request, in their order; of one split it has nothing to do.
prefill  a request of more queries: one program a tile of tokens, over all keys that the tile sees.

A request takes the same path, tiles and order of sums in whatever batch it stands: its bits do not depend on others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ...ops.contract import Kernel, Launch
from ...ops.state import Attending, Pages
from ...ops.types import Determinism
from .attention_launch import launch, of_prefill, padded, refuses, shared_launch
from .language import INTERPRETED, jit, tl
from .paged_decode import attended, decode
from .paged_prefill import prefill

_MIN_SPLIT = 256  # keys: shorter splits cost more in combining than they gain in programs


@jit(do_not_specialize=["table_stride"])
def _paged_attention_decode_kernel(
    q_ptr, k_ptr, v_ptr, starts_ptr, lengths_ptr, tables_ptr, y_ptr, split_sums_ptr, split_facts_ptr,
    table_stride, q_stride, q_head_stride, page_stride, slot_stride, head_stride, y_stride, scale_log2, softcap_log2,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
    MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    request, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = tl.load(starts_ptr + request).to(tl.int64)
    if tl.load(starts_ptr + request + 1) - row != 1:
        return
    length = tl.load(lengths_ptr + request)
    first = tl.maximum(length - WINDOW, 0) if WINDOW else 0
    split_keys, num_splits = _splits(length - first, BLOCK_N, MIN_SPLIT, MAX_SPLITS)
    member, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    head = kv_head * GROUP + member
    held = (member < GROUP)[:, None] & (column < D)[None, :]
    q_MD = tl.load(q_ptr + row * q_stride + head[:, None] * q_head_stride + column[None, :], mask=held, other=0.0)
    if UPCAST:
        q_MD = q_MD.to(tl.float32)
    for split in range(tl.program_id(2), num_splits, tl.num_programs(2)):
        begin = first + split * split_keys
        sums_MD, largest_M, weight_M = attended(
            q_MD, k_ptr + kv_head * head_stride, v_ptr + kv_head * head_stride, tables_ptr + request * table_stride,
            begin, tl.minimum(begin + split_keys, length), first, page_stride, slot_stride, scale_log2, softcap_log2,
            D, BLOCK_M, BLOCK_N, BLOCK_D, PAGE_SIZE, False, CAPPED, UPCAST,
        )  # fmt: skip
        if num_splits == 1:
            y_MD = (sums_MD / weight_M[:, None]).to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + row * y_stride + head[:, None] * D + column[None, :], y_MD, mask=held)
        else:
            heads = tl.num_programs(1) * GROUP
            place_M = (request * heads + head) * MAX_SPLITS + split
            tl.store(split_sums_ptr + place_M[:, None] * D + column[None, :], sums_MD, mask=held)
            tl.store(split_facts_ptr + place_M * 2, largest_M, mask=member < GROUP)
            tl.store(split_facts_ptr + place_M * 2 + 1, weight_M, mask=member < GROUP)


@jit()
def _splits(num_keys, BLOCK_N: tl.constexpr, MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Keys of a split, whole tiles of them, and how many splits there are."""
    tiles = tl.cdiv(tl.cdiv(num_keys, MAX_SPLITS), BLOCK_N)
    split_keys = tl.maximum(tiles * BLOCK_N, MIN_SPLIT)
    return split_keys, tl.cdiv(num_keys, split_keys)


@jit()
def _paged_attention_combine_kernel(
    split_sums_ptr, split_facts_ptr, starts_ptr, lengths_ptr, y_ptr, y_stride,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr,
    MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    request, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(starts_ptr + request).to(tl.int64)
    if tl.load(starts_ptr + request + 1) - row != 1:
        return
    length = tl.load(lengths_ptr + request)
    first = tl.maximum(length - WINDOW, 0) if WINDOW else 0
    _, num_splits = _splits(length - first, BLOCK_N, MIN_SPLIT, MAX_SPLITS)
    if num_splits == 1:
        return
    split, column = tl.arange(0, MAX_SPLITS), tl.arange(0, BLOCK_D)
    place_S = (request * tl.num_programs(1) + head) * MAX_SPLITS + split
    largest_S = tl.load(split_facts_ptr + place_S * 2, mask=split < num_splits, other=float("-inf"))
    weight_S = tl.load(split_facts_ptr + place_S * 2 + 1, mask=split < num_splits, other=0.0)
    held = (split < num_splits)[:, None] & (column < D)[None, :]
    sums_SD = tl.load(split_sums_ptr + place_S[:, None] * D + column[None, :], mask=held, other=0.0)
    shrink_S = tl.exp2(largest_S - tl.max(largest_S, axis=0))
    y_D = tl.sum(sums_SD * shrink_S[:, None], axis=0) / tl.sum(weight_S * shrink_S, axis=0)
    tl.store(y_ptr + row * y_stride + head * D + column, y_D.to(y_ptr.dtype.element_ty), mask=column < D)


@dataclass(frozen=True)
class _Call:
    """What the launches of one call share. strides: of q's rows and heads, of pages, slots and heads, of y's rows."""

    num_requests: int
    groups: int
    tensors: tuple[torch.Tensor, ...]
    strides: tuple[int, ...]
    scales: tuple[float, float]
    sizes: dict[str, Any]

    @property
    def group(self) -> int:
        return int(self.sizes["GROUP"])


def paged_attention_triton(
    q: torch.Tensor, pages: Pages, attending: Attending, *, scale: float, softcap: float = 0.0, keys: int, warps: int,
    stages: int, programs: int, pdl: bool, **of_prefill: int,
) -> torch.Tensor:  # fmt: skip
    """Equal shares of a decode step's keys for all programs."""
    assert attending.ancestors is None, "a site without trees was bound"
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    call = _call(q if q.stride(2) == 1 else q.contiguous(), pages, attending, y, scale, softcap)
    if not call.num_requests:
        return y.zero_()
    decode(
        call.tensors, call.num_requests, call.groups, call.strides, call.scales, call.sizes,
        keys=keys, warps=warps, stages=stages, programs=programs, pdl=pdl,
    )  # fmt: skip
    if attending.num_queries > 1:
        _prefill(call, of_prefill)
    return y


def paged_attention_triton_invariant(
    q: torch.Tensor, pages: Pages, attending: Attending, *, scale: float, softcap: float = 0.0, decode_keys: int,
    decode_warps: int, decode_stages: int, decode_programs: int, max_splits: int, **of_prefill: int,
) -> torch.Tensor:  # fmt: skip
    """A request's keys in splits that follow from its own length."""
    assert attending.ancestors is None, "a site without trees was bound"
    y = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    call = _call(q if q.stride(2) == 1 else q.contiguous(), pages, attending, y, scale, softcap)
    if call.num_requests:
        _decode(call, decode_keys, decode_warps, decode_stages, decode_programs, max_splits)
    if call.num_requests and attending.num_queries > 1:
        _prefill(call, of_prefill)
    return y


def _call(q: torch.Tensor, pages: Pages, attending: Attending, y: torch.Tensor, scale: float, softcap: float) -> _Call:
    k, v = pages.canonical("k"), pages.canonical("v")
    assert k.stride() == v.stride(), "the planes of a group lie alike"
    assert k.stride(3) == 1, "a head's values lie side by side"
    log2e = math.log2(math.e)
    sizes = {
        "GROUP": q.shape[1] // k.shape[2], "D": q.shape[2], "BLOCK_D": padded(q.shape[2]),
        "PAGE_SIZE": pages.page_size, "WINDOW": pages.group.window, "CAPPED": softcap > 0,
        "UPCAST": INTERPRETED and q.dtype == torch.bfloat16,  # the interpreter takes bfloat16 operands for integers
    }  # fmt: skip
    return _Call(
        attending.context_lengths.shape[0],
        k.shape[2],
        (q, k, v, attending.query_starts, attending.context_lengths, attending.page_tables, y),
        (attending.page_tables.stride(0), *q.stride()[:2], *k.stride()[:3], y.stride(0)),
        (scale / softcap, softcap * log2e) if softcap else (scale * log2e, 0.0),
        sizes,
    )


def _decode(call: _Call, keys: int, warps: int, stages: int, programs: int, max_splits: int) -> None:
    *_, starts, lengths, tables, y = call.tensors
    most_splits = min(max_splits, -(-tables.shape[1] * call.sizes["PAGE_SIZE"] // _MIN_SPLIT))
    pairs = (call.num_requests, y.shape[1], max_splits)
    sums = torch.empty((*pairs, y.shape[2]), dtype=torch.float32, device=y.device)
    facts = torch.empty((*pairs, 2), dtype=torch.float32, device=y.device)
    splitting = {"BLOCK_N": keys, "MIN_SPLIT": _MIN_SPLIT, "MAX_SPLITS": max_splits}
    sharing = min(most_splits, -(-programs // (call.num_requests * call.groups)))
    _paged_attention_decode_kernel[(call.num_requests, call.groups, sharing)](
        *call.tensors, sums, facts, *call.strides, *call.scales, **call.sizes, **splitting,
        BLOCK_M=padded(call.group), num_warps=warps, num_stages=stages, enable_fp_fusion=True,
    )  # fmt: skip
    if most_splits == 1:
        return
    shared = {name: call.sizes[name] for name in ("D", "BLOCK_D", "WINDOW")}
    _paged_attention_combine_kernel[(call.num_requests, y.shape[1])](
        sums, facts, starts, lengths, y, y.stride(0), **shared, **splitting, num_warps=warps, enable_fp_fusion=True
    )


def _prefill(call: _Call, own: Launch) -> None:
    prefill(
        call.tensors, call.num_requests, call.groups, call.strides, call.scales, call.sizes, **of_prefill(own)
    )  # fmt: skip


KERNELS = (
    Kernel(
        "paged_attention_triton", op="paged_attention", language="triton", run=paged_attention_triton,
        determinism=Determinism.RUN, priority=50, refuses=refuses, launch=shared_launch,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
    Kernel(
        "paged_attention_triton_invariant", op="paged_attention", language="triton",
        run=paged_attention_triton_invariant, determinism=Determinism.BATCH, priority=45, refuses=refuses,
        launch=launch, dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
