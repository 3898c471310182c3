"""linear: y_tn = Σ_k x_tk · w_nk (+ b_n), for every storage format of the weight.

x: [T, K] float; weight: [N, K]; bias: [N] or None. Returns [T, N] in x's dtype, or in `out_dtype` (logits are wanted
in float32, without a rounding in between). ValueError: sizes that do not meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .contract import Arguments, Case, Op, Signature
from .types import Cost, Determinism, Site, Weight, Work, accumulator
from .validation import (
    COMPUTE_TOLERANCE,
    expect_float,
    expect_shape,
    expect_weight,
    random_tensor,
    random_weight,
)


def _label(x: torch.Tensor, weight: Weight, bias: Weight | None = None, *, out_dtype: torch.dtype | None = None) -> str:
    return weight.role


def _check(
    x: torch.Tensor, weight: Weight, bias: Weight | None = None, *, out_dtype: torch.dtype | None = None
) -> Signature:
    expect_float("linear", "x", x)
    expect_shape("linear", "x", x, None, None)
    expect_weight("linear", weight, None, x.shape[1])
    if bias is not None:
        expect_weight("linear", bias, weight.shape[0])
    num_outputs, out = weight.shape[0], out_dtype or x.dtype
    dims = {"N": num_outputs, "K": x.shape[1], "bias": bias is not None}
    dtypes = {"x": x.dtype, "weight": weight.dtype, "y": out, **({"bias": bias.dtype} if bias else {})}
    return Signature(dims, dtypes, (((x.shape[0], num_outputs), out),), (weight, *([bias] if bias else [])))


def product(x: torch.Tensor, weight: Weight, bias: Weight | None) -> torch.Tensor:
    """x·Wᵀ (+ b) in at least float32, not rounded back; shared by the composites' descriptions."""
    wide = accumulator(x)
    y = x.to(wide) @ weight.logical().to(wide).T
    return y if bias is None else y + bias.values.to(wide)


def _reference(
    x: torch.Tensor, weight: Weight, bias: Weight | None = None, *, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    return product(x, weight, bias).to(out_dtype if out_dtype and x.dtype != torch.float64 else x.dtype)


def linear_cost(site: Site, work: Work) -> Cost:
    """The weight once, the operands once, two operations a multiply-add."""
    num_outputs, width = site.dim("N"), site.dim("K")
    moved = work.rows * (width * site.dtypes["x"].itemsize + num_outputs * site.dtypes["y"].itemsize)
    return Cost(site.weight_bytes + moved, 2 * work.rows * num_outputs * width, site.dtypes["x"])


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    x = random_tensor((dims["T"], dims["K"]), dtype, device, generator)
    weight = random_weight("weight", (dims["N"], dims["K"]), dtype, device, generator)
    bias = random_weight("bias", (dims["N"],), dtype, device, generator) if dims.get("bias") else None
    return (x, weight, bias), {"out_dtype": torch.float32} if dims.get("logits") else {}


_PRODUCTS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "llama-3.1-8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)},
    "llama-3.1-70b-tp4": {"qkv": (2560, 8192), "o": (8192, 2048), "gate_up": (14336, 8192), "down": (8192, 7168)},
}
"""Outputs and inputs of a decoder layer's products, on one device."""
_STEPS = {
    "decode-1": (1, 1, 136),
    "decode-8": (8, 8, 1160),
    "decode-32": (32, 32, 136),
    "prefill-2048": (2048, 133, 136),
}
"""Rows of a case and of its twin, and the twin's inputs: in one of them more blocks than any pipeline has stages."""


def product_cases(*roles: str) -> tuple[Case, ...]:
    """Products of real models, decoding and reading prompts. Their twins have odd remainders of usual tiles."""
    return tuple(
        Case(f"{model}-{role}-{step}", {"T": rows, "N": products[role][0], "K": products[role][1]},
             {"T": twin_rows, "N": 136, "K": width})
        for model, products in _PRODUCTS.items() for role in roles for step, (rows, twin_rows, width) in _STEPS.items()
    )  # fmt: skip


def case_at(site: Site, rows: int) -> Mapping[str, Any]:
    """A case like a product's site: logits are written in float32."""
    return {**site.dims, "T": rows, "logits": site.dtypes["y"] != site.dtypes["x"]}


GENERAL_CASES = (
    Case("llama-3.1-8b-o-decode", {"T": 1, "N": 4096, "K": 4096}, {"T": 1, "N": 32, "K": 1100}),
    Case("llama-3.1-8b-qkv-prefill", {"T": 512, "N": 6144, "K": 4096}, {"T": 33, "N": 96, "K": 256}),
    Case(
        "qwen2.5-0.5b-qkv-bias", {"T": 8, "N": 1152, "K": 896, "bias": True}, {"T": 8, "N": 72, "K": 56, "bias": True}
    ),
    Case(
        "llama-3.2-1b-logits",
        {"T": 4, "N": 128256, "K": 2048, "logits": True},
        {"T": 3, "N": 130, "K": 64, "logits": True},
    ),
    Case("odd", {"T": 17, "N": 1003, "K": 333}, {"T": 17, "N": 35, "K": 33}),
)
CASES = (*GENERAL_CASES, *product_cases("qkv", "o", "gate_up", "down"))

OP = Op(
    "linear", _label, _check, linear_cost, _inputs, CASES, COMPUTE_TOLERANCE,
    reference=_reference, determinism=Determinism.RUN, case_at=case_at,
)  # fmt: skip
