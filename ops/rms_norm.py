"""rms_norm: y_td = w_d · x_td / sqrt(mean_d(x_td²) + eps).

Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467. x: [..., D] float, w: [D]; the mean is over
the last axis. Returns [..., D] in x's dtype. ValueError: a weight that is not [D].
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from .contract import Arguments, Case, Op, Signature
from .types import Cost, Site, Weight, Work, accumulator
from .validation import COMPUTE_TOLERANCE, expect_float, expect_weight, random_tensor, random_weight


def _label(x: torch.Tensor, weight: Weight, *, eps: float) -> str:
    return weight.role


def _check(x: torch.Tensor, weight: Weight, *, eps: float) -> Signature:
    expect_float("rms_norm", "x", x)
    expect_weight("rms_norm", weight, x.shape[-1])
    dims = {"D": x.shape[-1], "repeats": prod(x.shape[1:-1]), "eps": eps}
    return Signature(dims, {"x": x.dtype, "norm": weight.dtype}, ((tuple(x.shape), x.dtype),), (weight,))


def normalised(x: torch.Tensor, values: torch.Tensor, eps: float) -> torch.Tensor:
    """The formula on plain tensors, in at least float32; shared by the ops that begin or end with a norm."""
    wide = x.to(accumulator(x))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * values.to(wide.dtype)).to(x.dtype)


def _reference(x: torch.Tensor, weight: Weight, *, eps: float) -> torch.Tensor:
    return normalised(x, weight.values, eps)


def _cost(site: Site, work: Work) -> Cost:
    elements = work.rows * site.dim("repeats") * site.dim("D")
    return Cost(2 * elements * site.dtypes["x"].itemsize, 4 * elements, torch.float32)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    x = random_tensor((dims["T"], dims["D"]), dtype, device, generator)
    return (x, random_weight("norm", (dims["D"],), dtype, device, generator)), {"eps": 1e-5}


CASES = (
    Case("llama-3.1-8b", {"T": 512, "D": 4096}, {"T": 5, "D": 4096}),
    Case("qwen2.5-0.5b", {"T": 64, "D": 896}, {"T": 3, "D": 896}),
    Case("odd", {"T": 63, "D": 1001}, {"T": 7, "D": 101}),
    *(
        Case(f"{model}-{rows}", {"T": rows, "D": width}, {"T": 1, "D": 4096})
        for model, width in (("llama-3.1-8b", 4096), ("llama-3.1-70b", 8192))
        for rows in (1, 8, 32, 2048)
    ),  # the rows of linear's cases: a composite is held against its parts at one number of rows
    Case("llama-3.1-8b-prefill", {"T": 8192, "D": 4096}, {"T": 5, "D": 4096}),
)

OP = Op("rms_norm", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE, reference=_reference)
