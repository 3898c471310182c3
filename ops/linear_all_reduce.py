"""linear_all_reduce: all_reduce(linear(x, weight)). A composite: the sum over ranks may overlap with the product.

x: [T, K / ranks]; weight: [N, K / ranks], this rank's columns. Returns [T, N] in x's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import all_reduce, linear
from .contract import Arguments, Op, Signature
from .types import ONE_DEVICE, Cost, Mesh, Site, Weight, Work
from .validation import COMPUTE_TOLERANCE


def _label(x: torch.Tensor, weight: Weight, *, mesh: Mesh, axis: str) -> str:
    return weight.role


def _check(x: torch.Tensor, weight: Weight, *, mesh: Mesh, axis: str) -> Signature:
    product = linear.OP.check(x, weight)
    dims = {**product.dims, "D": weight.shape[0], "axis": axis, "ranks": mesh.size(axis)}
    return Signature(dims, product.dtypes, product.outputs, product.weights)


def _parts(ops: Any, x: torch.Tensor, weight: Weight, *, mesh: Mesh, axis: str) -> torch.Tensor:
    return ops.all_reduce(ops.linear(x, weight), mesh=mesh, axis=axis)


def _cost(site: Site, work: Work) -> Cost:
    return linear.linear_cost(site, work) + all_reduce.OP.cost(site, work)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    (x, weight, _), _ = linear.OP.inputs(dims, dtype, device, generator)
    return (x, weight), {"mesh": ONE_DEVICE, "axis": "tp"}


CASES = tuple(case for case in linear.GENERAL_CASES if not {"bias", "logits"} & set(case.dims))

OP = Op("linear_all_reduce", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE, parts=_parts)
