# pyright: basic
"""embedding in Triton: rows of the table copied, a program a block of one row. Letters: T tokens, D values of a row."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.types import Determinism, Site, Weight
from .language import jit, tl
from .launching import VECTOR_BYTES, options, power, warps
from .overlap import joined, overlaps, released

_VECTORS = 2  # 16-byte loads that a thread has in flight
_MIN_THREADS, _MAX_THREADS = 32, 128


@jit()
def _embedding_kernel(
    ids_ptr, weight_ptr, y_ptr, id_stride, weight_stride, D: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr
):
    joined(PDL)
    released(PDL)
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.load(ids_ptr + token * id_stride).to(tl.int64)
    values_D = tl.load(weight_ptr + row * weight_stride + column, mask=column < D)
    tl.store(y_ptr + token * D + column, values_D, mask=column < D)


def embedding_triton(ids: torch.Tensor, weight: Weight, *, block_d: int, num_warps: int, pdl: bool) -> torch.Tensor:
    table, width = weight.values, weight.shape[1]
    y = torch.empty((ids.shape[0], width), dtype=table.dtype, device=ids.device)
    if ids.shape[0]:
        _embedding_kernel[(ids.shape[0], -(-width // block_d))](
            ids, table, y, ids.stride(0), table.stride(0), D=width, BLOCK_D=block_d, PDL=pdl,
            **options(num_warps, pdl=pdl),
        )  # fmt: skip
    return y


def _launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """A row a program, a long one more; where that leaves units of the device idle, still more, one load a thread."""
    return _of(site, profile, _VECTORS if bucket >= (profile.compute.units or 1) else 1)


def _of(site: Site, profile: Profile, vectors: int) -> Launch:
    itemsize = site.dtypes["x"].itemsize
    per_thread = vectors * VECTOR_BYTES // itemsize
    least = max(_MIN_THREADS, profile.lane_width)
    threads = min(_MAX_THREADS, max(least, power(site.dim("D")) // per_thread))
    return {"block_d": threads * per_thread, "num_warps": warps(threads, profile), "pdl": overlaps(profile)}


def _configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    for vectors in (1, _VECTORS, 2 * _VECTORS):
        yield _of(site, profile, vectors)


KERNELS = (
    Kernel(
        "embedding_triton", op="embedding", language="triton", run=embedding_triton, determinism=Determinism.BATCH,
        priority=50, launch=_launch, configurations=_configurations,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
