# pyright: basic
"""silu_and_mul in Triton: a program takes a block of one row's gates and ups. Letters: T rows, I values of a row."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.types import Determinism, Site
from .language import jit, tl
from .launching import VECTOR_BYTES, options, power, warps
from .overlap import joined, overlaps, released

_VALUES_PER_THREAD = 16  # of gates, and as many ups: four 16-byte loads in flight with two-byte values
_MAX_BLOCK = 4096


@jit()
def _silu_and_mul_kernel(x_ptr, y_ptr, x_stride, WIDTH: tl.constexpr, BLOCK_I: tl.constexpr, PDL: tl.constexpr):
    joined(PDL)
    released(PDL)
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = column < WIDTH
    gates = x_ptr + row * x_stride + column
    gate_I = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    up_I = tl.load(gates + WIDTH, mask=inside, other=0.0).to(tl.float32)
    y_I = gate_I / (1.0 + tl.exp(-gate_I)) * up_I
    tl.store(y_ptr + row * WIDTH + column, y_I.to(y_ptr.dtype.element_ty), mask=inside)


def silu_and_mul_triton(x: torch.Tensor, *, block_i: int, num_warps: int, pdl: bool) -> torch.Tensor:
    x = x if x.stride(1) == 1 else x.contiguous()
    num_rows, width = x.shape[0], x.shape[1] // 2
    y = torch.empty((num_rows, width), dtype=x.dtype, device=x.device)
    if num_rows and width:
        _silu_and_mul_kernel[(num_rows, -(-width // block_i))](
            x, y, x.stride(0), WIDTH=width, BLOCK_I=block_i, PDL=pdl, **options(num_warps, pdl=pdl)
        )
    return y


def _launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """The longest block that still gives every unit of the device two programs, if the bucket has the rows for it."""
    units, blocks = profile.compute.units or 1, _blocks(site, profile)
    filling = (block for block in reversed(blocks) if min(bucket, units) * -(-site.dim("I") // block) >= 2 * units)
    return _of(next(filling, blocks[0]), profile)


def _blocks(site: Site, profile: Profile) -> list[int]:
    """From one vector for each lane of a warp up to a whole row."""
    least = profile.lane_width * VECTOR_BYTES // site.dtypes["x"].itemsize
    most = min(_MAX_BLOCK, max(least, power(site.dim("I"))))
    return [least << doubled for doubled in range((most // least).bit_length())]


def _of(block: int, profile: Profile) -> Launch:
    return {"block_i": block, "num_warps": warps(block // _VALUES_PER_THREAD, profile), "pdl": overlaps(profile)}


def _configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    for block in _blocks(site, profile):
        yield _of(block, profile)


KERNELS = (
    Kernel(
        "silu_and_mul_triton", op="silu_and_mul", language="triton", run=silu_and_mul_triton,
        determinism=Determinism.BATCH, priority=50, launch=_launch, configurations=_configurations,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
