# pyright: basic
"""norm_qkv_rope_store in Triton for few rows: rope and the stores are the epilogue of the product (`turned.py`)."""

from __future__ import annotations

from typing import Any

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.state import Pages
from ...ops.types import Determinism, Reason, Site, Weight
from . import product_launch
from .product import Stored, product


def norm_qkv_rope_store_triton(
    x: torch.Tensor, norm: Weight, weight: Weight, bias: Weight | None, rotation: torch.Tensor, pages: Pages,
    slots: torch.Tensor, q_norm: Weight | None = None, k_norm: Weight | None = None, *, num_heads: int, eps: float,
    **launch: Any,
) -> torch.Tensor:  # fmt: skip
    assert q_norm is k_norm is None, "a site without norms of heads was bound"
    q = product(x, weight, norm, bias, eps=eps, stored=Stored(rotation, pages, slots, num_heads), **launch)
    return q.view(x.shape[0], num_heads, -1)


def _refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    if site.dims["norm"]:
        return Reason("shape", "norms no heads: a program holds no whole one")
    if 2 * site.dim("R") != site.dim("D"):
        return Reason("shape", f"turns whole heads of {site.dim('D')}, not {2 * site.dim('R')} of them")
    return product_launch.refuses(site, profile, bucket)


def _refuses_launch(site: Site, profile: Profile, launch: Launch) -> Reason | None:
    if launch["block_n"] < 2:
        return Reason("shape", "takes outputs in pairs: block_n is at least 2")
    return product_launch.fits(site, profile, launch)


KERNELS = (
    Kernel(
        "norm_qkv_rope_store_triton", op="norm_qkv_rope_store", language="triton", run=norm_qkv_rope_store_triton,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}), determinism=Determinism.RUN, priority=60,
        max_rows=product_launch.MAX_ROWS, refuses=_refuses, launch=product_launch.launch,
        configurations=product_launch.configurations, refuses_launch=_refuses_launch,
    ),
)  # fmt: skip
