"""qkv_rope_store: between the QKV product and attention: split, q/k norm, rope, keys and values into the pages.

qkv: [T, (H + 2·G)·D], rows [q | k | v]; rotation: [T, 2·R] (op `rotation`); pages, slots: as in store_kv;
q_norm, k_norm: [D] or None (Qwen 3), applied per head before the rotation. Returns q [T, H, D]; k, v go to the pages.
A composite: rms_norm, rope, store_kv.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import store_kv
from .contract import Arguments, Case, Op, Signature
from .rope import random_rotation
from .state import Pages
from .types import Cost, Site, Weight, Work
from .validation import COMPUTE_TOLERANCE, expect_float, expect_shape, expect_weight, random_tensor, random_weight


def _label(
    qkv: torch.Tensor, rotation: torch.Tensor, pages: Pages, slots: torch.Tensor, q_norm: Weight | None = None,
    k_norm: Weight | None = None, *, num_heads: int, eps: float = 0.0,
) -> str:  # fmt: skip
    return pages.group.name


def _check(
    qkv: torch.Tensor, rotation: torch.Tensor, pages: Pages, slots: torch.Tensor, q_norm: Weight | None = None,
    k_norm: Weight | None = None, *, num_heads: int, eps: float = 0.0,
) -> Signature:  # fmt: skip
    groups, size = pages.group.planes[0].shape
    expect_float("qkv_rope_store", "qkv", qkv)
    expect_shape("qkv_rope_store", "qkv", qkv, None, (num_heads + 2 * groups) * size)
    expect_shape("qkv_rope_store", "rotation", rotation, qkv.shape[0], None)
    expect_shape("qkv_rope_store", "slots", slots, qkv.shape[0])
    norms = tuple(norm for norm in (q_norm, k_norm) if norm is not None)
    if len(norms) == 1:
        raise ValueError("qkv_rope_store: q_norm and k_norm are given together or not at all")
    for norm in norms:
        expect_weight("qkv_rope_store", norm, size)
    dims = {"H": num_heads, "G": groups, "D": size, "R": rotation.shape[1] // 2, "norm": bool(norms), "eps": eps}
    outputs = (((qkv.shape[0], num_heads, size), qkv.dtype),)
    dtypes = {name: norm.dtype for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)) if norm is not None}
    return Signature(dims, {"x": qkv.dtype, **dtypes}, outputs, norms, pages.group)


def _parts(
    ops: Any, qkv: torch.Tensor, rotation: torch.Tensor, pages: Pages, slots: torch.Tensor,
    q_norm: Weight | None = None, k_norm: Weight | None = None, *, num_heads: int, eps: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    groups, size = pages.group.planes[0].shape
    heads = qkv.view(qkv.shape[0], num_heads + 2 * groups, size)
    q, k, v = heads.split([num_heads, groups, groups], dim=1)
    if q_norm is not None:
        q, k = ops.rms_norm(q, q_norm, eps=eps), ops.rms_norm(k, k_norm, eps=eps)
    turned = ops.rope(torch.cat([q, k], dim=1), rotation)
    ops.store_kv(turned[:, num_heads:], v, pages, slots)
    return turned[:, :num_heads].contiguous()


def _cost(site: Site, work: Work) -> Cost:
    heads, size = site.dim("H") + 2 * site.dim("G"), site.dim("D")
    elements = work.rows * heads * size
    return Cost(2 * elements * site.dtypes["x"].itemsize, 8 * elements, torch.float32)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    (_, _, pages, slots), _ = store_kv.OP.inputs(dims, dtype, device, generator)
    width = (dims["H"] + 2 * dims["G"]) * dims["D"]
    qkv = random_tensor((dims["T"], width), dtype, device, generator)
    rotation = random_rotation(dims["T"], dims["rotated"], device, generator)
    normed = dims.get("norm", False)
    norms = [random_weight(name, (dims["D"],), dtype, device, generator) if normed else None for name in ("q", "k")]
    return (qkv, rotation, pages, slots, *norms), {"num_heads": dims["H"], "eps": 1e-6}


def _observe(result: Any, args: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    return (result, *store_kv.written(result, args))


def _case(name: str, full: tuple[int, ...], twin: tuple[int, ...], **more: bool) -> Case:
    names = ("T", "H", "G", "D", "rotated", "page_size")
    return Case(name, {**dict(zip(names, full, strict=True)), **more}, {**dict(zip(names, twin, strict=True)), **more})


CASES = (
    _case("llama-3.1-8b", (512, 32, 8, 128, 128, 16), (5, 4, 1, 128, 128, 16)),
    _case("qwen3-0.6b-norm", (64, 16, 8, 128, 128, 16), (5, 2, 1, 128, 128, 16), norm=True),
    _case("qwen2.5-0.5b", (33, 14, 2, 64, 64, 16), (3, 7, 1, 64, 64, 16)),
    _case("odd", (7, 6, 3, 10, 6, 8), (7, 6, 3, 10, 6, 8)),
    _case("llama-3.1-8b-decode", (32, 32, 8, 128, 128, 16), (5, 4, 1, 128, 128, 16)),
    _case("llama-3.1-8b-prefill", (8192, 32, 8, 128, 128, 16), (5, 4, 1, 128, 128, 16)),
    _case("llama-3.1-70b-tp4-prefill", (8192, 16, 2, 128, 128, 16), (5, 8, 1, 128, 128, 16)),
)


def _case_at(site: Site, rows: int) -> Mapping[str, Any]:
    return {**site.dims, "T": rows, "rotated": 2 * site.dim("R"), "page_size": 16}


OP = Op(
    "qkv_rope_store", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE, parts=_parts, observe=_observe,
    case_at=_case_at,
)  # fmt: skip
