"""norm_qkv_rope_store: from the residual to queries, and to keys and values in their pages: all before attention.

x: [T, K]; norm: [K]; weight: [(H + 2·G)·D, K], rows [q | k | v]; bias: [(H + 2·G)·D] or None; the rest as in
qkv_rope_store, of which eps serves both norms. Returns q [T, H, D]; k, v go to the pages.
A composite: norm_linear, qkv_rope_store. At decode the product turns and stores what it has in registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import norm_linear, qkv_rope_store
from .contract import Arguments, Case, Op, Signature
from .state import Pages
from .types import Cost, Site, Weight, Work
from .validation import COMPUTE_TOLERANCE, expect_weight, random_tensor, random_weight


def _label(
    x: torch.Tensor, norm: Weight, weight: Weight, bias: Weight | None, rotation: torch.Tensor, pages: Pages,
    slots: torch.Tensor, q_norm: Weight | None = None, k_norm: Weight | None = None, *, num_heads: int, eps: float,
) -> str:  # fmt: skip
    return pages.group.name


def _check(
    x: torch.Tensor, norm: Weight, weight: Weight, bias: Weight | None, rotation: torch.Tensor, pages: Pages,
    slots: torch.Tensor, q_norm: Weight | None = None, k_norm: Weight | None = None, *, num_heads: int, eps: float,
) -> Signature:  # fmt: skip
    product = norm_linear.OP.check(x, norm, weight, bias, eps=eps)
    groups, size = pages.group.planes[0].shape
    expect_weight("norm_qkv_rope_store", weight, (num_heads + 2 * groups) * size, x.shape[1])
    qkv = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device="meta")
    storing = qkv_rope_store.OP.check(qkv, rotation, pages, slots, q_norm, k_norm, num_heads=num_heads, eps=eps)
    weights = (*product.weights, *storing.weights)
    dtypes = {**storing.dtypes, **product.dtypes}
    return Signature({**product.dims, **storing.dims}, dtypes, storing.outputs, weights, storing.group)


def _parts(
    ops: Any, x: torch.Tensor, norm: Weight, weight: Weight, bias: Weight | None, rotation: torch.Tensor,
    pages: Pages, slots: torch.Tensor, q_norm: Weight | None = None, k_norm: Weight | None = None, *, num_heads: int,
    eps: float,
) -> torch.Tensor:  # fmt: skip
    qkv = ops.norm_linear(x, norm, weight, bias, eps=eps)
    q: torch.Tensor = ops.qkv_rope_store(qkv, rotation, pages, slots, q_norm, k_norm, num_heads=num_heads, eps=eps)
    return q


def _cost(site: Site, work: Work) -> Cost:
    """The product's; what it writes are the queries, keys and values themselves."""
    elements = work.rows * (site.dim("H") + 2 * site.dim("G")) * site.dim("D")
    return norm_linear.OP.cost(site, work) + Cost(0, 8 * elements, torch.float32)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    (qkv, *storing), params = qkv_rope_store.OP.inputs(dims, dtype, device, generator)
    x = random_tensor((dims["T"], dims["K"]), dtype, device, generator)
    norm = random_weight("norm", (dims["K"],), dtype, device, generator)
    weight = random_weight("weight", (qkv.shape[1], dims["K"]), dtype, device, generator)
    bias = random_weight("bias", (qkv.shape[1],), dtype, device, generator) if dims.get("bias") else None
    return (x, norm, weight, bias, *storing), params


def _case(name: str, full: tuple[int, ...], twin: tuple[int, ...], **more: bool) -> Case:
    names = ("T", "K", "H", "G", "D", "rotated", "page_size")
    return Case(name, {**dict(zip(names, full, strict=True)), **more}, {**dict(zip(names, twin, strict=True)), **more})


CASES = (
    _case("llama-3.1-8b-decode-1", (1, 4096, 32, 8, 128, 128, 16), (1, 136, 1, 1, 64, 64, 16)),
    _case("llama-3.1-8b-decode-32", (32, 4096, 32, 8, 128, 128, 16), (32, 136, 4, 1, 128, 128, 16)),
    _case("llama-3.1-70b-tp4-decode-8", (8, 8192, 16, 2, 128, 128, 16), (8, 128, 8, 1, 64, 64, 16)),
    _case("llama-3.1-8b-prefill", (2048, 4096, 32, 8, 128, 128, 16), (67, 64, 4, 1, 128, 128, 16)),
    _case("qwen3-0.6b-norm", (8, 1024, 16, 8, 128, 128, 16), (5, 64, 2, 1, 128, 128, 16), norm=True),
    _case("qwen2.5-0.5b-bias", (8, 896, 14, 2, 64, 64, 16), (3, 56, 7, 1, 64, 64, 16), bias=True),
    _case("odd", (17, 333, 6, 3, 10, 10, 8), (17, 33, 6, 3, 10, 10, 8)),
    _case("partly-turned", (7, 96, 6, 3, 10, 6, 8), (7, 40, 6, 3, 10, 6, 8)),
)


def _case_at(site: Site, rows: int) -> Mapping[str, Any]:
    return {**site.dims, "T": rows, "rotated": 2 * site.dim("R"), "page_size": 16}


OP = Op(
    "norm_qkv_rope_store", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE, parts=_parts,
    observe=qkv_rope_store.OP.observe, case_at=_case_at,
)  # fmt: skip
