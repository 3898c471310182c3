# pyright: basic
"""qkv_rope_store in Triton: one launch between the QKV product and attention; k and v go straight to their pages.

A program takes one token and BLOCK_H of its heads, which may be of all three kinds: every element is loaded with its
partner of the rotation, normed where its head is, turned where it is turned, and stored where its head belongs. What
happens to a row depends on that row alone.

Letters: T tokens, H heads of a tile, D head size, R pairs that are turned.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.state import Pages
from ...ops.types import Determinism, Site, Weight
from .language import jit, tl
from .launching import options, power, warps
from .overlap import joined, overlaps, released

_HEADS = 8  # of a tile: enough programs for a single token, enough work for one


@jit()
def _qkv_rope_store_kernel(
    qkv_ptr, rotation_ptr, k_ptr, v_ptr, slots_ptr, q_norm_ptr, k_norm_ptr, q_ptr,
    qkv_stride, rotation_stride, page_stride, slot_stride, head_stride, eps,
    NUM_HEADS: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr, NORMED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    inside = column < D
    held = (head < NUM_HEADS + 2 * GROUPS)[:, None] & inside[None, :]
    turned = (head < NUM_HEADS + GROUPS)[:, None] & (column < 2 * R)[None, :]
    partner = tl.where(column < R, column + R, column - R)
    # Rotation and slots are older than the kernel before this one (see `overlap.py`).
    angle = tl.where(column < R, column, column - R)
    rotation = rotation_ptr + token * rotation_stride + angle
    cosine_D = tl.load(rotation, mask=column < 2 * R, other=1.0)
    sine_D = tl.load(rotation + R, mask=column < 2 * R, other=0.0)
    sine_D = tl.where(column < R, -sine_D, sine_D)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    joined(PDL)
    released(PDL)
    rows = qkv_ptr + token * qkv_stride + head[:, None] * D
    x_HD = tl.load(rows + column[None, :], mask=held, other=0.0).to(tl.float32)
    other_HD = tl.load(rows + partner[None, :], mask=held & turned, other=0.0).to(tl.float32)
    if NORMED:
        scale_H = tl.where(head < NUM_HEADS + GROUPS, tl.rsqrt(tl.sum(x_HD * x_HD, axis=1) / D + eps), 1.0)
        x_HD *= scale_H[:, None] * _norms(q_norm_ptr, k_norm_ptr, head, column, inside, NUM_HEADS, GROUPS)
        paired = column < 2 * R
        other_HD *= scale_H[:, None] * _norms(q_norm_ptr, k_norm_ptr, head, partner, paired, NUM_HEADS, GROUPS)

    y_HD = tl.where(turned, x_HD * cosine_D[None, :] + other_HD * sine_D[None, :], x_HD)

    query = q_ptr + (token * NUM_HEADS + head[:, None]) * D + column[None, :]
    tl.store(query, y_HD.to(q_ptr.dtype.element_ty), mask=(head < NUM_HEADS)[:, None] & inside[None, :])
    if slot >= 0:
        place = slot // PAGE_SIZE * page_stride + slot % PAGE_SIZE * slot_stride
        kv_head = head.to(tl.int64) - NUM_HEADS
        is_key, is_value = (kv_head >= 0) & (kv_head < GROUPS), (kv_head >= GROUPS) & (kv_head < 2 * GROUPS)
        key = k_ptr + place + kv_head[:, None] * head_stride + column[None, :]
        value = v_ptr + place + (kv_head - GROUPS)[:, None] * head_stride + column[None, :]
        tl.store(key, y_HD.to(k_ptr.dtype.element_ty), mask=is_key[:, None] & inside[None, :])
        tl.store(value, y_HD.to(v_ptr.dtype.element_ty), mask=is_value[:, None] & inside[None, :])


@jit()
def _norms(q_norm_ptr, k_norm_ptr, head, column, wanted, NUM_HEADS: tl.constexpr, GROUPS: tl.constexpr):
    """What each element of a tile is multiplied by: q's norm, k's, or one."""
    q_norm_D = tl.load(q_norm_ptr + column, mask=wanted, other=0.0).to(tl.float32)
    k_norm_D = tl.load(k_norm_ptr + column, mask=wanted, other=0.0).to(tl.float32)
    normed_HD = tl.where((head < NUM_HEADS)[:, None], q_norm_D[None, :], k_norm_D[None, :])
    return tl.where((head < NUM_HEADS + GROUPS)[:, None], normed_HD, 1.0)


def qkv_rope_store_triton(
    qkv: torch.Tensor, rotation: torch.Tensor, pages: Pages, slots: torch.Tensor, q_norm: Weight | None = None,
    k_norm: Weight | None = None, *, num_heads: int, eps: float = 0.0, block_h: int, num_warps: int, pdl: bool,
) -> torch.Tensor:  # fmt: skip
    qkv = qkv if qkv.stride(1) == 1 else qkv.contiguous()
    rotation = rotation if rotation.stride(1) == 1 else rotation.contiguous()
    k, v = pages.canonical("k"), pages.canonical("v")
    assert k.stride() == v.stride(), "the planes of a group lie alike"
    assert k.stride(3) == 1, "a head's values lie side by side"
    num_tokens, (groups, size) = qkv.shape[0], k.shape[2:]
    q = torch.empty((num_tokens, num_heads, size), dtype=qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return q
    norms = [norm.values if norm else qkv for norm in (q_norm, k_norm)]
    _qkv_rope_store_kernel[(num_tokens, -(-(num_heads + 2 * groups) // block_h))](
        qkv, rotation, k, v, slots, *norms, q, qkv.stride(0), rotation.stride(0), *k.stride()[:3], eps,
        NUM_HEADS=num_heads, GROUPS=groups, D=size, R=rotation.shape[1] // 2, BLOCK_H=block_h,
        BLOCK_D=power(size), PAGE_SIZE=pages.page_size, NORMED=q_norm is not None, PDL=pdl,
        **options(num_warps, pdl=pdl),
    )  # fmt: skip
    return q


def _launch(site: Site, profile: Profile, bucket: int) -> Launch:
    return _of(_HEADS, profile)


def _of(block_h: int, profile: Profile) -> Launch:
    return {"block_h": block_h, "num_warps": warps(16 * block_h, profile), "pdl": overlaps(profile)}


def _configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    """A head's values are summed in one order for each number of heads, whatever the bucket."""
    for block_h in (_HEADS // 2, _HEADS, 2 * _HEADS):
        yield _of(block_h, profile)


KERNELS = (
    Kernel(
        "qkv_rope_store_triton", op="qkv_rope_store", language="triton", run=qkv_rope_store_triton,
        determinism=Determinism.BATCH, priority=50, launch=_launch, configurations=_configurations,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
