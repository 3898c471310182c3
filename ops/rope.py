"""rope: the first 2·R dimensions of each head turned, in halves: (a, b) -> (a·cos - b·sin, b·cos + a·sin).

arXiv:2104.09864, in the half-split order of Hugging Face checkpoints. x: [T, H, D] float; rotation: [T, 2·R] float32
as the op `rotation` returns it, 2·R ≤ D; dimensions beyond 2·R pass unchanged. Returns [T, H, D] in x's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .contract import Arguments, Case, Op, Signature
from .types import Cost, Site, Work, accumulator
from .validation import COMPUTE_TOLERANCE, expect_float, expect_shape, random_tensor


def _label(x: torch.Tensor, rotation: torch.Tensor) -> str:
    return f"heads_{x.shape[1]}x{x.shape[2]}"


def _check(x: torch.Tensor, rotation: torch.Tensor) -> Signature:
    expect_float("rope", "x", x)
    expect_shape("rope", "x", x, None, None, None)
    expect_shape("rope", "rotation", rotation, x.shape[0], None)
    if rotation.shape[1] % 2 or rotation.shape[1] > x.shape[2]:
        raise ValueError(f"rope: {rotation.shape[1]} rotated dimensions of heads of {x.shape[2]}: even, and no more")
    dims = {"H": x.shape[1], "D": x.shape[2], "R": rotation.shape[1] // 2}
    return Signature(dims, {"x": x.dtype}, ((tuple(x.shape), x.dtype),))


def _reference(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    half = rotation.shape[1] // 2
    wide = x.to(accumulator(x, rotation))
    cosine, sine = rotation[:, None, :half], rotation[:, None, half:]
    first, second, rest = wide.split([half, half, x.shape[2] - 2 * half], dim=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine, rest]
    return torch.cat(turned, dim=-1).to(x.dtype)


def _cost(site: Site, work: Work) -> Cost:
    elements = work.rows * site.dim("H") * site.dim("D")
    return Cost(2 * elements * site.dtypes["x"].itemsize, 3 * elements, torch.float32)


def random_rotation(num_tokens: int, rotated: int, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    angles = 6.28 * torch.rand((num_tokens, rotated // 2), generator=generator)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(device)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    x = random_tensor((dims["T"], dims["H"], dims["D"]), dtype, device, generator)
    return (x, random_rotation(dims["T"], dims["rotated"], device, generator)), {}


CASES = (
    Case("llama-3.1-8b", {"T": 512, "H": 40, "D": 128, "rotated": 128}, {"T": 5, "H": 5, "D": 128, "rotated": 128}),
    Case("partial", {"T": 33, "H": 4, "D": 80, "rotated": 32}, {"T": 5, "H": 4, "D": 80, "rotated": 32}),
    Case("odd", {"T": 7, "H": 3, "D": 10, "rotated": 6}, {"T": 7, "H": 3, "D": 10, "rotated": 6}),
)


def _case_at(site: Site, rows: int) -> Mapping[str, Any]:
    return {**site.dims, "T": rows, "rotated": 2 * site.dim("R")}


OP = Op(
    "rope", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE, reference=_reference, case_at=_case_at,
)  # fmt: skip
