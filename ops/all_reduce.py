"""all_reduce: the sum over an axis of the mesh, on every rank of it.

The reference maps the list of all ranks' tensors to the list of their results, summed in rank order in at least
float32, so that a parallel model is tested in one process; on one device (axis of size 1) a tensor maps to itself.
x: one tensor, or a list with one tensor of equal shape a rank. ValueError: a single tensor, and more ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .contract import Arguments, Case, Op, Signature
from .types import ONE_DEVICE, Cost, Mesh, Scalar, Site, Work, accumulator
from .validation import COMPUTE_TOLERANCE, expect_float, random_tensor


def _label(x: torch.Tensor, *, mesh: Mesh, axis: str) -> str:
    return f"{axis}_{x.shape[-1]}"


def _check(x: torch.Tensor, *, mesh: Mesh, axis: str) -> Signature:
    expect_float("all_reduce", "x", x)
    dims: dict[str, Scalar] = {"D": x.shape[-1], "axis": axis, "ranks": mesh.size(axis)}
    return Signature(dims, {"x": x.dtype}, ((tuple(x.shape), x.dtype),))


def _reference(x: Any, *, mesh: Mesh, axis: str) -> Any:
    if isinstance(x, torch.Tensor):
        if mesh.size(axis) != 1:
            raise ValueError(f"all_reduce: axis {axis} has {mesh.size(axis)} ranks: give the list of their tensors")
        return x
    total = torch.stack([tensor.to(accumulator(tensor)) for tensor in x]).sum(0)
    return [total.to(tensor.dtype) for tensor in x]


def _cost(site: Site, work: Work) -> Cost:
    """A ring moves 2·(n - 1)/n of the tensor over the link; its adds run at memory speed."""
    ranks, elements = site.dim("ranks"), work.rows * site.dim("D")
    moved = 2 * (ranks - 1) * elements * site.dtypes["x"].itemsize // ranks
    return Cost(moved, (ranks - 1) * elements // ranks, torch.float32)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    return (random_tensor((dims["T"], dims["D"]), dtype, device, generator),), {"mesh": ONE_DEVICE, "axis": "tp"}


CASES = (Case("llama-3.1-8b", {"T": 64, "D": 4096}, {"T": 3, "D": 64}),)

OP = Op("all_reduce", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE, reference=_reference)
