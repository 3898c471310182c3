# pyright: basic
"""The products of a decode step in Triton: few rows, so a weight's bytes are all that counts; each is read once.

y = x · Wᵀ, with what composites ask for around it: the norm of x as prologue, bias, residual or SwiGLU as epilogue, or
rope and the stores into the pages (`turned.py`). One row has a kernel of its own (`product_row.py`), a few dozen share
one (`product_tile.py`).

The norm folds in behind: (x·g) · Wᵀ, times 1/rms of the row, whose squares are summed in the same pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ...ops.state import Pages
from ...ops.types import Weight
from .arrivals import counters
from .language import INTERPRETED
from .overlap import options
from .product_launch import loads_early
from .product_row import product_row_kernel
from .product_tile import product_tile_kernel


class Stored(NamedTuple):
    """Where the outputs of a QKV product go instead of into rows: see the op `qkv_rope_store`."""

    rotation: torch.Tensor
    pages: Pages
    slots: torch.Tensor
    num_heads: int


def product(
    x: torch.Tensor, weight: Weight, norm: Weight | None = None, bias: Weight | None = None,
    residual: torch.Tensor | None = None, *, eps: float = 0.0, gated: bool = False,
    out_dtype: torch.dtype | None = None, stored: Stored | None = None,
    block_t: int, block_n: int, block_k: int, splits: int, early: int, num_warps: int, num_stages: int, pdl: bool,
    unrolled: bool = False,
) -> torch.Tensor:  # fmt: skip
    """[T, N], of a gated weight [T, N / 2], of a stored product its queries [T, H·D]; in out_dtype or x's.

    block_t: rows of a tile, 0 for the kernel for one row; early: how much of K a program loads before it waits;
    unrolled: whether the kernel for one row does without a loop."""
    x = x if x.stride(1) == 1 else x.contiguous()
    (num_rows, width), values = x.shape, weight.values
    num_outputs = values.shape[0] // 2 if gated else values.shape[0]
    placing, places, numbers = _placing(stored, x)
    y_width = 2 * placing["PAIRS"] * placing["NUM_HEADS"] if stored else num_outputs
    y = torch.empty((num_rows, y_width), dtype=out_dtype or x.dtype, device=x.device)
    if num_rows == 0:
        return y
    tensors = [x, norm.values if norm else x, values, bias.values if bias else x, x if residual is None else residual]
    shared: dict[str, Any] = {
        "NORMED": norm is not None, "GATED": gated, "HAS_BIAS": bias is not None, "ADDED": residual is not None,
        "EVEN_K": width % block_k == 0, "BLOCK_N": block_n, "BLOCK_K": block_k, "PDL": pdl, "num_warps": num_warps,
        "enable_fp_fusion": True, **placing, **options(pdl),
    }  # fmt: skip
    tiles = -(-num_outputs // block_n)
    if block_t == 0:
        assert num_rows == 1, "block_t=0 is of the kernel for one row"
        product_row_kernel[(tiles,)](
            *tensors, y, *places, num_outputs, width, values.stride(0), *numbers, eps,
            TILES=-(-width // block_k) if unrolled else 0, **shared,
        )  # fmt: skip
        return y
    shares = {"splits": splits, "block_k": block_k, "early": early}
    assert early == 0 or loads_early(width, shares), "every share has whole blocks, and what is loaded early"
    heights = -(-num_rows // block_t)
    size = tiles * heights * splits * ((2 if gated else 1) * block_n + 1) * block_t if splits > 1 else 1
    parts = torch.empty(size, dtype=torch.float32, device=x.device)
    product_tile_kernel[(tiles, splits, heights)](
        *tensors, y, *places, parts, counters(x.device), num_rows, num_outputs, width, x.stride(0), values.stride(0),
        0 if residual is None else residual.stride(0), y.stride(0), *numbers, eps, BLOCK_T=block_t,
        SPLITS=splits, EARLY=early, TWO_PASSES=norm is not None and x.dtype == torch.float16,
        INTERPRET=INTERPRETED, num_stages=num_stages, **shared,
    )  # fmt: skip
    return y


def _placing(stored: Stored | None, x: torch.Tensor) -> tuple[dict[str, int], list[torch.Tensor], list[int]]:
    """Constants, tensors and strides of what the outputs are turned by and where they go."""
    if stored is None:
        return {"PAIRS": 0, "NUM_HEADS": 0, "GROUPS": 0, "PAGE_SIZE": 1}, [x, x, x, x], [0, 0, 0, 0]
    k, v = stored.pages.canonical("k"), stored.pages.canonical("v")
    assert k.stride() == v.stride(), "the planes of a group lie alike"
    assert k.stride(3) == 1, "a head's values lie side by side"
    sizes = {"PAIRS": k.shape[3] // 2, "NUM_HEADS": stored.num_heads, "GROUPS": k.shape[2]}
    rotation = stored.rotation if stored.rotation.stride(1) == 1 else stored.rotation.contiguous()
    tensors = [rotation, k, v, stored.slots]
    return {**sizes, "PAGE_SIZE": stored.pages.page_size}, tensors, [rotation.stride(0), *k.stride()[:3]]
