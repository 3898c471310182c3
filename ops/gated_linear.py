"""gated_linear: y = silu_and_mul(linear(x, weight, bias)), of rms_norm(x, norm) if it is given: SwiGLU without its end.

x: [T, K]; weight: [2·I, K], the gate's rows then the up rows; norm: [K] or None; bias: [2·I] or None. Returns [T, I] in
x's dtype.
A composite: the activation in the product's epilogue, the norm in its prologue. arXiv:2002.05202.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import linear
from .contract import Arguments, Case, Op, Signature
from .types import Cost, Site, Weight, Work
from .validation import COMPUTE_TOLERANCE, expect_weight, random_weight


def _label(
    x: torch.Tensor, weight: Weight, norm: Weight | None = None, bias: Weight | None = None, *, eps: float = 0.0
) -> str:
    return weight.role


def _check(
    x: torch.Tensor, weight: Weight, norm: Weight | None = None, bias: Weight | None = None, *, eps: float = 0.0
) -> Signature:
    product = linear.OP.check(x, weight, bias)
    if weight.shape[0] % 2:
        raise ValueError(f"gated_linear: weight {weight.role} has {weight.shape[0]} rows, they must be [gate | up]")
    if norm is not None:
        expect_weight("gated_linear", norm, x.shape[1])
    dims = {**product.dims, "I": weight.shape[0] // 2, "norm": norm is not None, "eps": eps}
    outputs = (((x.shape[0], weight.shape[0] // 2), x.dtype),)
    dtypes = {**product.dtypes, **({"norm": norm.dtype} if norm else {})}
    return Signature(dims, dtypes, outputs, (*product.weights, *([norm] if norm else [])))


def _parts(
    ops: Any, x: torch.Tensor, weight: Weight, norm: Weight | None = None, bias: Weight | None = None, *,
    eps: float = 0.0,
) -> Any:  # fmt: skip
    if norm is not None:
        x = ops.rms_norm(x, norm, eps=eps)
    return ops.silu_and_mul(ops.linear(x, weight, bias))


def _cost(site: Site, work: Work) -> Cost:
    width, half = site.dim("K"), site.dim("I")
    moved = work.rows * (width + half) * site.dtypes["x"].itemsize
    return Cost(site.weight_bytes + moved, work.rows * half * (4 * width + 5), site.dtypes["x"])


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    (x, weight, bias), _ = linear.OP.inputs({**dims, "N": 2 * dims["I"]}, dtype, device, generator)
    norm = random_weight("norm", (dims["K"],), dtype, device, generator) if dims.get("norm") else None
    return (x, weight, norm, bias), {"eps": 1e-5}


def _gated(case: Case) -> Case:
    """A product's case, normed, its outputs as gate and up."""
    full, twin = (
        {"T": dims["T"], "I": dims["N"] // 2, "K": dims["K"], "norm": True} for dims in (case.dims, case.twin)
    )
    return Case(case.name, full, {**twin, "I": 80})  # whole panels of 16 rows


CASES = (
    Case(
        "llama-3.1-8b-decode", {"T": 1, "I": 14336, "K": 4096, "norm": True}, {"T": 1, "I": 32, "K": 1100, "norm": True}
    ),
    Case("qwen2.5-0.5b", {"T": 64, "I": 4864, "K": 896, "norm": True}, {"T": 9, "I": 304, "K": 56, "norm": True}),
    Case("llama-3.2-1b-plain", {"T": 128, "I": 8192, "K": 2048}, {"T": 17, "I": 64, "K": 48}),
    Case("llama-mlp-bias", {"T": 8, "I": 8192, "K": 2048, "bias": True}, {"T": 8, "I": 64, "K": 48, "bias": True}),
    Case("odd", {"T": 17, "I": 1003, "K": 333, "norm": True}, {"T": 17, "I": 35, "K": 33, "norm": True}),
    *map(_gated, linear.product_cases("gate_up")),
)  # fmt: skip

OP = Op("gated_linear", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE, parts=_parts)
