# pyright: basic
"""qkv_rope_store in Triton: one launch between the QKV product and attention; k and v go straight to their pages.

A program takes one token and BLOCK_H of its heads, which may be of all three kinds. Every value is loaded once: the
pairs that a rotation turns as two halves, what is beyond them as a third piece. A piece is normed where its head is,
turned where it is turned, and stored where its head belongs. What happens to a row depends on that row alone.

Letters: T tokens, H heads of a tile, D head size, R pairs that are turned, P values of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as every

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.state import Pages
from ...ops.types import Determinism, Site, Weight
from .language import jit, tl
from .launching import VECTOR_BYTES, options, power, warps
from .overlap import joined, overlaps, released

_HEADS, _MAX_HEADS = 8, 64  # of a tile: enough programs for a single token; where tokens are many
_TOKENS_PER_UNIT = 2  # from which on they are
_VALUES_PER_WARP = 4096  # of many tokens: several loads a thread


@jit()
def _qkv_rope_store_kernel(
    qkv_ptr, rotation_ptr, k_ptr, v_ptr, slots_ptr, q_norm_ptr, k_norm_ptr, q_ptr,
    qkv_stride, rotation_stride, page_stride, slot_stride, head_stride, eps,
    NUM_HEADS: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, PAGE_SIZE: tl.constexpr, NORMED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, pair, rest = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    known, is_turned = head < NUM_HEADS + 2 * GROUPS, head < NUM_HEADS + GROUPS
    # Rotation and slots are older than the kernel before this one (see `overlap.py`).
    angle = rotation_ptr + token * rotation_stride + pair
    cosine_R = tl.load(angle, mask=pair < R, other=1.0)
    sine_R = tl.load(angle + R, mask=pair < R, other=0.0)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    joined(PDL)
    released(PDL)
    rows = qkv_ptr + token * qkv_stride + head[:, None] * D
    paired = known[:, None] & (pair < R)[None, :]
    low_HR = tl.load(rows + pair[None, :], mask=paired, other=0.0).to(tl.float32)
    high_HR = tl.load(rows + R + pair[None, :], mask=paired, other=0.0).to(tl.float32)
    held = known[:, None] & (2 * R + rest < D)[None, :]
    rest_HP = tl.load(rows + 2 * R + rest[None, :], mask=held, other=0.0).to(tl.float32) if 2 * R < D else 0.0
    if NORMED:
        squares_H = tl.sum(low_HR * low_HR, axis=1) + tl.sum(high_HR * high_HR, axis=1)
        if 2 * R < D:
            squares_H += tl.sum(rest_HP * rest_HP, axis=1)
        scale_H = tl.where(is_turned, tl.rsqrt(squares_H / D + eps), 1.0)
        low_HR *= scale_H[:, None] * _norms(q_norm_ptr, k_norm_ptr, head, pair, pair < R, NUM_HEADS, GROUPS)
        high_HR *= scale_H[:, None] * _norms(q_norm_ptr, k_norm_ptr, head, R + pair, pair < R, NUM_HEADS, GROUPS)
        if 2 * R < D:
            column = 2 * R + rest
            rest_HP *= scale_H[:, None] * _norms(q_norm_ptr, k_norm_ptr, head, column, column < D, NUM_HEADS, GROUPS)
    turned_HR = low_HR * cosine_R[None, :] - high_HR * sine_R[None, :]
    first_HR = tl.where(is_turned[:, None], turned_HR, low_HR)
    turned_HR = high_HR * cosine_R[None, :] + low_HR * sine_R[None, :]
    second_HR = tl.where(is_turned[:, None], turned_HR, high_HR)

    place = slot // PAGE_SIZE * page_stride + slot % PAGE_SIZE * slot_stride
    targets = (q_ptr + token * NUM_HEADS * D, k_ptr + place, v_ptr + place, head_stride)
    _stored(first_HR, pair, paired, head, slot, targets, NUM_HEADS, GROUPS, D)
    _stored(second_HR, R + pair, paired, head, slot, targets, NUM_HEADS, GROUPS, D)
    if 2 * R < D:
        _stored(rest_HP, 2 * R + rest, held, head, slot, targets, NUM_HEADS, GROUPS, D)


@jit()
def _norms(q_norm_ptr, k_norm_ptr, head, column, wanted, NUM_HEADS: tl.constexpr, GROUPS: tl.constexpr):
    """What each element of a piece is multiplied by: q's norm, k's, or one."""
    q_norm_P = tl.load(q_norm_ptr + column, mask=wanted, other=0.0).to(tl.float32)
    k_norm_P = tl.load(k_norm_ptr + column, mask=wanted, other=0.0).to(tl.float32)
    normed_HP = tl.where((head < NUM_HEADS)[:, None], q_norm_P[None, :], k_norm_P[None, :])
    return tl.where((head < NUM_HEADS + GROUPS)[:, None], normed_HP, 1.0)


@jit()
def _stored(y_HP, column, held, head, slot, targets, NUM_HEADS: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr):
    """A piece of each head, to the queries or to the token's place in the pages, if it has one."""
    q_ptr, k_ptr, v_ptr, head_stride = targets
    kv_head = head.to(tl.int64) - NUM_HEADS
    query = q_ptr + head[:, None] * D + column[None, :]
    tl.store(query, y_HP.to(q_ptr.dtype.element_ty), mask=held & (head < NUM_HEADS)[:, None])
    if slot >= 0:
        is_key, is_value = (kv_head >= 0) & (kv_head < GROUPS), kv_head >= GROUPS
        key = k_ptr + kv_head[:, None] * head_stride + column[None, :]
        value = v_ptr + (kv_head - GROUPS)[:, None] * head_stride + column[None, :]
        tl.store(key, y_HP.to(k_ptr.dtype.element_ty), mask=held & is_key[:, None])
        tl.store(value, y_HP.to(v_ptr.dtype.element_ty), mask=held & is_value[:, None])


def qkv_rope_store_triton(
    qkv: torch.Tensor, rotation: torch.Tensor, pages: Pages, slots: torch.Tensor, q_norm: Weight | None = None,
    k_norm: Weight | None = None, *, num_heads: int, eps: float = 0.0, block_h: int, num_warps: int, pdl: bool,
) -> torch.Tensor:  # fmt: skip
    qkv = qkv if qkv.stride(1) == 1 else qkv.contiguous()
    rotation = rotation if rotation.stride(1) == 1 else rotation.contiguous()
    k, v = pages.canonical("k"), pages.canonical("v")
    assert k.stride() == v.stride(), "the planes of a group lie alike"
    assert k.stride(3) == 1, "a head's values lie side by side"
    num_tokens, pairs, (groups, size) = qkv.shape[0], rotation.shape[1] // 2, k.shape[2:]
    q = torch.empty((num_tokens, num_heads, size), dtype=qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return q
    norms = [norm.values if norm else qkv for norm in (q_norm, k_norm)]
    _qkv_rope_store_kernel[(num_tokens, -(-(num_heads + 2 * groups) // block_h))](
        qkv, rotation, k, v, slots, *norms, q, qkv.stride(0), rotation.stride(0), *k.stride()[:3], eps,
        NUM_HEADS=num_heads, GROUPS=groups, D=size, R=pairs, BLOCK_H=block_h, BLOCK_R=power(max(1, pairs)),
        BLOCK_P=power(max(1, size - 2 * pairs)), PAGE_SIZE=pages.page_size, NORMED=q_norm is not None, PDL=pdl,
        **options(num_warps, pdl=pdl),
    )  # fmt: skip
    return q


def _launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """Few heads a program, a vector of each half a thread, until the tokens alone are programs enough: then all heads,
    and several vectors."""
    most = min(_MAX_HEADS, power(_num_heads(site)))
    if bucket > _TOKENS_PER_UNIT * (profile.compute.units or 1):
        return _of(most, max(1, most * power(site.dim("D")) // _VALUES_PER_WARP), profile)
    block_h = min(_HEADS, most)
    return _of(block_h, warps(_threads_per_head(site) * block_h, profile), profile)


def _num_heads(site: Site) -> int:
    return site.dim("H") + 2 * site.dim("G")


def _threads_per_head(site: Site) -> int:
    """So many that each has 16 bytes of a head's half."""
    return max(1, power(max(1, site.dim("R"))) * site.dtypes["x"].itemsize // VECTOR_BYTES)


def _of(block_h: int, num_warps: int, profile: Profile) -> Launch:
    return {"block_h": block_h, "num_warps": num_warps, "pdl": overlaps(profile)}


def _configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    for block_h, num_warps in every((4, _HEADS, 16, 32, _MAX_HEADS), (1, 2, 4, 8)):
        threads_per_head = num_warps * profile.lane_width / block_h
        if block_h < 2 * _num_heads(site) and 1 <= threads_per_head <= 2 * _threads_per_head(site):
            yield _of(block_h, num_warps, profile)


KERNELS = (
    Kernel(
        "qkv_rope_store_triton", op="qkv_rope_store", language="triton", run=qkv_rope_store_triton,
        determinism=Determinism.BATCH, priority=50, launch=_launch, configurations=_configurations,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
