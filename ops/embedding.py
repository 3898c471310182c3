"""embedding: y_td = w_{id_t, d}.

ids: [T] int32 or int64 in [0, V); weight: [V, D]. Returns [T, D] in the weight's dtype.

An id outside the table is the caller's error: it is checked where ids enter the engine, not here (a device value).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .contract import Arguments, Case, Op, Signature
from .types import Cost, Site, Weight, Work
from .validation import EXACT, expect_shape, random_weight


def _label(ids: torch.Tensor, weight: Weight) -> str:
    return weight.role


def _check(ids: torch.Tensor, weight: Weight) -> Signature:
    expect_shape("embedding", "ids", ids, None)
    if ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"embedding: ids are {ids.dtype}, they must be int32 or int64")
    dims = {"V": weight.shape[0], "D": weight.shape[1]}
    return Signature(dims, {"x": weight.dtype}, (((ids.shape[0], weight.shape[1]), weight.dtype),), (weight,))


def _reference(ids: torch.Tensor, weight: Weight) -> torch.Tensor:
    return weight.logical()[ids.long()]


def _cost(site: Site, work: Work) -> Cost:
    return Cost(2 * work.rows * site.dim("D") * site.dtypes["x"].itemsize, 0, site.dtypes["x"])


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    ids = torch.randint(0, dims["V"], (dims["T"],), generator=generator)
    ids[0], ids[-1] = 0, dims["V"] - 1
    return (ids.to(device), random_weight("embedding", (dims["V"], dims["D"]), dtype, device, generator)), {}


CASES = (
    Case("llama-3.2-1b", {"T": 512, "V": 128256, "D": 2048}, {"T": 9, "V": 130, "D": 64}),
    Case("odd", {"T": 7, "V": 1003, "D": 333}, {"T": 7, "V": 35, "D": 33}),
    Case("llama-3.1-8b-prefill", {"T": 8192, "V": 128256, "D": 4096}, {"T": 9, "V": 130, "D": 64}),
)

OP = Op("embedding", _label, _check, _cost, _inputs, CASES, EXACT, reference=_reference)
