"""all_reduce_add_norm: s = residual + all_reduce(x); y = rms_norm(s, weight). A composite; returns (y, s).

x: [T, D], this rank's partial sums; residual: [T, D]; weight: [D]. What stands between the products of a layer when
they are split over ranks: one kernel exchanges, adds and normalises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import add_rms_norm, all_reduce
from .contract import Arguments, Op, Signature
from .types import ONE_DEVICE, Cost, Mesh, Site, Weight, Work
from .validation import COMPUTE_TOLERANCE


def _label(x: torch.Tensor, residual: torch.Tensor, weight: Weight, *, eps: float, mesh: Mesh, axis: str) -> str:
    return weight.role


def _check(x: torch.Tensor, residual: torch.Tensor, weight: Weight, *, eps: float, mesh: Mesh, axis: str) -> Signature:
    normed = add_rms_norm.OP.check(x, residual, weight, eps=eps)
    dims = {**normed.dims, "axis": axis, "ranks": mesh.size(axis)}
    return Signature(dims, normed.dtypes, normed.outputs, normed.weights)


def _parts(
    ops: Any, x: torch.Tensor, residual: torch.Tensor, weight: Weight, *, eps: float, mesh: Mesh, axis: str
) -> Any:
    return ops.add_rms_norm(ops.all_reduce(x, mesh=mesh, axis=axis), residual, weight, eps=eps)


def _cost(site: Site, work: Work) -> Cost:
    return all_reduce.OP.cost(site, work) + add_rms_norm.OP.cost(site, work)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    args, params = add_rms_norm.OP.inputs(dims, dtype, device, generator)
    return args, {**params, "mesh": ONE_DEVICE, "axis": "tp"}


OP = Op("all_reduce_add_norm", _label, _check, _cost, _inputs, add_rms_norm.OP.cases, COMPUTE_TOLERANCE, parts=_parts)
