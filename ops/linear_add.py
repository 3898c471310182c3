"""linear_add: y = residual + linear(x, weight, bias). A composite: the residual in the product's epilogue.

x: [T, K]; weight: [N, K]; residual: [T, N]. Returns a new [T, N] in x's dtype; the residual is not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import linear
from .contract import Arguments, Op, Signature
from .types import Cost, Site, Weight, Work
from .validation import COMPUTE_TOLERANCE, expect_dtype, expect_shape, random_tensor


def _label(x: torch.Tensor, weight: Weight, residual: torch.Tensor, bias: Weight | None = None) -> str:
    return weight.role


def _check(x: torch.Tensor, weight: Weight, residual: torch.Tensor, bias: Weight | None = None) -> Signature:
    product = linear.OP.check(x, weight, bias)
    expect_shape("linear_add", "residual", residual, x.shape[0], weight.shape[0])
    expect_dtype("linear_add", "residual", residual, x.dtype)
    return product


def _parts(ops: Any, x: torch.Tensor, weight: Weight, residual: torch.Tensor, bias: Weight | None = None) -> Any:
    return residual + ops.linear(x, weight, bias)


def _cost(site: Site, work: Work) -> Cost:
    added = work.rows * site.dim("N")
    return linear.linear_cost(site, work) + Cost(added * site.dtypes["x"].itemsize, added, site.dtypes["x"])


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    (x, weight, bias), _ = linear.OP.inputs(dims, dtype, device, generator)
    return (x, weight, random_tensor((dims["T"], dims["N"]), dtype, device, generator), bias), {}


CASES = (
    *(case for case in linear.GENERAL_CASES if "logits" not in case.dims),
    *linear.product_cases("o", "down"),
)

OP = Op("linear_add", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE, parts=_parts, has_glue=True)
