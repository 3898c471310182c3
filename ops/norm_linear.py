"""norm_linear: y = linear(rms_norm(x, norm), weight, bias). A composite: the norm as the prologue of a product.

x: [T, K]; norm: [K]; weight: [N, K]; bias: [N] or None. Returns [T, N] in x's dtype or `out_dtype`.
The normalised rows need never reach memory: at decode the product reads them from on-chip memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import linear
from .contract import Arguments, Op, Signature
from .types import Cost, Site, Weight, Work
from .validation import COMPUTE_TOLERANCE, expect_weight, random_weight


def _label(
    x: torch.Tensor, norm: Weight, weight: Weight, bias: Weight | None = None, *, eps: float,
    out_dtype: torch.dtype | None = None,
) -> str:  # fmt: skip
    return weight.role


def _check(
    x: torch.Tensor, norm: Weight, weight: Weight, bias: Weight | None = None, *, eps: float,
    out_dtype: torch.dtype | None = None,
) -> Signature:  # fmt: skip
    product = linear.OP.check(x, weight, bias, out_dtype=out_dtype)
    expect_weight("norm_linear", norm, x.shape[1])
    dtypes = {**product.dtypes, "norm": norm.dtype}
    return Signature({**product.dims, "eps": eps}, dtypes, product.outputs, (norm, *product.weights))


def _parts(
    ops: Any, x: torch.Tensor, norm: Weight, weight: Weight, bias: Weight | None = None, *, eps: float,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    return ops.linear(ops.rms_norm(x, norm, eps=eps), weight, bias, out_dtype=out_dtype)


def _cost(site: Site, work: Work) -> Cost:
    norm = Cost(site.dim("K") * site.dtypes["x"].itemsize, 4 * work.rows * site.dim("K"), site.dtypes["x"])
    return linear.linear_cost(site, work) + norm


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    (x, weight, bias), params = linear.OP.inputs(dims, dtype, device, generator)
    norm = random_weight("norm", (dims["K"],), dtype, device, generator)
    return (x, norm, weight, bias), {**params, "eps": 1e-5}


CASES = (*linear.GENERAL_CASES, *linear.product_cases("qkv"))

OP = Op("norm_linear", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE, parts=_parts, case_at=linear.case_at)
