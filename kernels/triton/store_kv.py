# pyright: basic
"""store_kv in Triton: a program copies a block of one token's key and value heads to their pages.

Letters: T tokens, G key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.state import Pages
from ...ops.types import Determinism, Site
from .language import jit, tl
from .launching import VECTOR_BYTES, options, power, warps
from .overlap import joined, overlaps, released

_THREADS = 128


@jit()
def _store_kv_kernel(
    k_ptr, v_ptr, slots_ptr, k_plane_ptr, v_plane_ptr, k_stride, k_head_stride, v_stride, v_head_stride,
    page_stride, slot_stride, head_stride, G: tl.constexpr, D: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    joined(PDL)
    released(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot >= 0:
        inside = (head < G) & (column < D)
        k_GD = tl.load(k_ptr + token * k_stride + head * k_head_stride + column, mask=inside)
        v_GD = tl.load(v_ptr + token * v_stride + head * v_head_stride + column, mask=inside)
        place = slot // PAGE_SIZE * page_stride + slot % PAGE_SIZE * slot_stride + head * head_stride + column
        tl.store(k_plane_ptr + place, k_GD.to(k_plane_ptr.dtype.element_ty), mask=inside)
        tl.store(v_plane_ptr + place, v_GD.to(v_plane_ptr.dtype.element_ty), mask=inside)


def store_kv_triton(
    k: torch.Tensor, v: torch.Tensor, pages: Pages, slots: torch.Tensor, *, block_g: int, num_warps: int, pdl: bool
) -> None:
    k, v = (each if each.stride(2) == 1 else each.contiguous() for each in (k, v))
    k_plane, v_plane = pages.canonical("k"), pages.canonical("v")
    assert k_plane.stride() == v_plane.stride(), "the planes of a group lie alike"
    assert k_plane.stride(3) == 1, "a head's values lie side by side"
    num_tokens, groups, size = k.shape
    if num_tokens == 0:
        return
    _store_kv_kernel[(num_tokens, -(-groups // block_g))](
        k, v, slots.contiguous(), k_plane, v_plane, *k.stride()[:2], *v.stride()[:2], *k_plane.stride()[:3],
        G=groups, D=size, PAGE_SIZE=pages.page_size, BLOCK_G=block_g, BLOCK_D=power(size), PDL=pdl,
        **options(num_warps, pdl=pdl),
    )  # fmt: skip


def _launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """As many heads as give each thread a vector of keys and one of values; all in one program if they are not more."""
    return _of(site, profile, 1)


def _of(site: Site, profile: Profile, vectors: int) -> Launch:
    row_bytes = power(site.dim("D")) * site.dtypes["x"].itemsize
    block_g = max(1, vectors * _THREADS * VECTOR_BYTES // row_bytes)
    return {
        "block_g": min(power(site.dim("G")), block_g),
        "num_warps": warps(_THREADS, profile),
        "pdl": overlaps(profile),
    }


def _configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    for vectors in (1, 2, 4):
        yield _of(site, profile, vectors)


KERNELS = (
    Kernel(
        "store_kv_triton", op="store_kv", language="triton", run=store_kv_triton, determinism=Determinism.BATCH,
        priority=50, launch=_launch, configurations=_configurations,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
