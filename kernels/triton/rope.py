# pyright: basic
"""rope in Triton: a program turns a block of one token's heads; each value is read once, with its partner beside it.

Letters: T tokens, H heads of a block, D head size, R pairs that are turned, P values of a head that pass unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.types import Determinism, Site
from .language import jit, tl
from .launching import VECTOR_BYTES, options, power, warps
from .overlap import joined, overlaps, released

_THREADS = 128


@jit()
def _rope_kernel(
    x_ptr, rotation_ptr, y_ptr, x_stride, x_head_stride, rotation_stride, H: tl.constexpr, D: tl.constexpr,
    R: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    joined(PDL)
    released(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    rows = x_ptr + token * x_stride + head[:, None] * x_head_stride
    targets = y_ptr + (token * H + head[:, None]) * D
    if R > 0:
        pair = tl.arange(0, BLOCK_R)
        inside = (head < H)[:, None] & (pair < R)[None, :]
        rotation = rotation_ptr + token * rotation_stride + pair
        cosine_R = tl.load(rotation, mask=pair < R, other=1.0)[None, :]
        sine_R = tl.load(rotation + R, mask=pair < R, other=0.0)[None, :]
        first_HR = tl.load(rows + pair[None, :], mask=inside, other=0.0).to(tl.float32)
        second_HR = tl.load(rows + R + pair[None, :], mask=inside, other=0.0).to(tl.float32)
        turned_HR = first_HR * cosine_R - second_HR * sine_R
        tl.store(targets + pair[None, :], turned_HR.to(y_ptr.dtype.element_ty), mask=inside)
        turned_HR = second_HR * cosine_R + first_HR * sine_R
        tl.store(targets + R + pair[None, :], turned_HR.to(y_ptr.dtype.element_ty), mask=inside)
    if 2 * R < D:
        column = 2 * R + tl.arange(0, BLOCK_P)
        inside = (head < H)[:, None] & (column < D)[None, :]
        passed_HP = tl.load(rows + column[None, :], mask=inside, other=0.0)
        tl.store(targets + column[None, :], passed_HP, mask=inside)


def rope_triton(x: torch.Tensor, rotation: torch.Tensor, *, block_h: int, num_warps: int, pdl: bool) -> torch.Tensor:
    x = x if x.stride(2) == 1 else x.contiguous()
    rotation = rotation if rotation.stride(1) == 1 else rotation.contiguous()
    (num_tokens, heads, size), pairs = x.shape, rotation.shape[1] // 2
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        _rope_kernel[(num_tokens, -(-heads // block_h))](
            x, rotation, y, *x.stride()[:2], rotation.stride(0), H=heads, D=size, R=pairs, BLOCK_H=block_h,
            BLOCK_R=power(max(1, pairs)), BLOCK_P=power(max(1, size - 2 * pairs)), PDL=pdl,
            **options(num_warps, pdl=pdl),
        )  # fmt: skip
    return y


def _launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """As many heads as give each thread one vector of each half; all of them in one program if they are not more."""
    return _of(site, profile, 1)


def _of(site: Site, profile: Profile, vectors: int) -> Launch:
    half_bytes = power(max(1, site.dim("R"))) * site.dtypes["x"].itemsize
    block_h = max(1, vectors * _THREADS * VECTOR_BYTES // half_bytes)
    return {
        "block_h": min(power(site.dim("H")), block_h),
        "num_warps": warps(_THREADS, profile),
        "pdl": overlaps(profile),
    }


def _configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    for vectors in (1, 2, 4):
        yield _of(site, profile, vectors)


KERNELS = (
    Kernel(
        "rope_triton", op="rope", language="triton", run=rope_triton, determinism=Determinism.BATCH, priority=50,
        launch=_launch, configurations=_configurations,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
