# pyright: basic
"""rotation in Triton: cosines and sines of a block of a step's angles. Letters: T tokens, R turned pairs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.types import Determinism, Site
from .language import jit, tl
from .launching import options, power, warps
from .overlap import joined, overlaps, released

_THREADS = 128
_ANGLES_PER_THREAD = 4  # as many cosines, and sines, make a 16-byte store


@jit(do_not_specialize=["num_tokens"])
def _rotation_kernel(
    positions_ptr, frequencies_ptr, y_ptr, num_tokens, position_stride, scaling,
    R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token, pair = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_R)
    frequency_R = tl.load(frequencies_ptr + pair, mask=pair < R, other=0.0)
    joined(PDL)
    released(PDL)
    position_T = tl.load(positions_ptr + token * position_stride, mask=token < num_tokens, other=0)
    angle_TR = position_T.to(tl.float32)[:, None] * frequency_R[None, :]
    inside = (token < num_tokens)[:, None] & (pair < R)[None, :]
    target = y_ptr + token[:, None] * (2 * R) + pair[None, :]
    tl.store(target, tl.cos(angle_TR) * scaling, mask=inside)
    tl.store(target + R, tl.sin(angle_TR) * scaling, mask=inside)


def rotation_triton(
    positions: torch.Tensor, frequencies: torch.Tensor, *, scaling: float = 1.0, block_t: int, num_warps: int, pdl: bool
) -> torch.Tensor:
    num_tokens, pairs = positions.shape[1], frequencies.shape[0]
    y = torch.empty((num_tokens, 2 * pairs), dtype=torch.float32, device=positions.device)
    if num_tokens and pairs:
        _rotation_kernel[(-(-num_tokens // block_t),)](
            positions, frequencies.contiguous(), y, num_tokens, positions.stride(1), float(scaling),
            R=pairs, BLOCK_T=block_t, BLOCK_R=power(pairs), PDL=pdl, **options(num_warps, pdl=pdl),
        )  # fmt: skip
    return y


def _launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """Tokens of a program: as many as make full stores, fewer where the bucket has too few for the device's units."""
    most = max(1, _THREADS * _ANGLES_PER_THREAD // power(site.dim("R")))
    return _of(min(most, max(1, power(bucket // (profile.compute.units or 1)))), profile)


def _of(block_t: int, profile: Profile) -> Launch:
    return {"block_t": block_t, "num_warps": warps(_THREADS, profile), "pdl": overlaps(profile)}


def _configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    for block_t in (1, 2, 4, 8, 16):
        yield _of(block_t, profile)


KERNELS = (
    Kernel(
        "rotation_triton", op="rotation", language="triton", run=rotation_triton, determinism=Determinism.BATCH,
        priority=50, launch=_launch, configurations=_configurations, dtypes=frozenset({torch.float32}),
    ),
)  # fmt: skip
