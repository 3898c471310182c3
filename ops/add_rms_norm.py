"""add_rms_norm: s = residual + x; y = rms_norm(s, weight). A composite; returns (y, s), both [T, D] in x's dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import rms_norm
from .contract import Arguments, Op, Signature
from .types import Cost, Site, Weight, Work
from .validation import COMPUTE_TOLERANCE, expect_dtype, expect_shape, random_tensor


def _label(x: torch.Tensor, residual: torch.Tensor, weight: Weight, *, eps: float) -> str:
    return weight.role


def _check(x: torch.Tensor, residual: torch.Tensor, weight: Weight, *, eps: float) -> Signature:
    expect_shape("add_rms_norm", "residual", residual, *x.shape)
    expect_dtype("add_rms_norm", "residual", residual, x.dtype)
    norm = rms_norm.OP.check(x, weight, eps=eps)
    return Signature(norm.dims, norm.dtypes, 2 * norm.outputs, norm.weights)


def _parts(ops: Any, x: torch.Tensor, residual: torch.Tensor, weight: Weight, *, eps: float) -> Any:
    total = residual + x
    return ops.rms_norm(total, weight, eps=eps), total


def _cost(site: Site, work: Work) -> Cost:
    elements = work.rows * site.dim("D")
    return Cost(4 * elements * site.dtypes["x"].itemsize, 5 * elements, torch.float32)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    (x, weight), params = rms_norm.OP.inputs(dims, dtype, device, generator)
    return (x, random_tensor((dims["T"], dims["D"]), dtype, device, generator), weight), params


OP = Op("add_rms_norm", _label, _check, _cost, _inputs, rms_norm.CASES, COMPUTE_TOLERANCE, parts=_parts, has_glue=True)
