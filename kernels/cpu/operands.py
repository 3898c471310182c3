"""Tensors as the C functions take them: pointers, and row strides in elements.

These run several times a layer and step, so they take the cheap way first and copy only what C could not read.
"""

from __future__ import annotations

import torch

from ...ops.state import Pages
from ...ops.types import Weight


def rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """x [M, K] with a contiguous last axis, and the elements from row to row; itself where it has that already."""
    stride, unit = x.stride()
    width = x.shape[1]
    if unit == 1 and stride >= width:
        return x, stride
    return x.contiguous(), width


def heads(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """x [T, H, D] with contiguous [H, D], and the elements from token to token."""
    stride, middle, unit = x.stride()
    _, num_heads, size = x.shape
    if unit == 1 and middle == size and stride >= num_heads * size:
        return x, stride
    return x.contiguous(), num_heads * size


def vector(weight: Weight) -> torch.Tensor:
    """The values of a [N] weight, contiguous."""
    return weight.values.contiguous()


def planes(pages: Pages) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Planes k and v in the order PHSD, and the elements from page to page.

    ValueError: planes that are not, which the engine's allocation rules out; a copy would lose what is stored.
    """
    k, v = pages.planes["k"], pages.planes["v"]
    strides = k.stride()
    _, _, page_size, size = k.shape
    if strides != v.stride() or strides[1:] != (page_size * size, size, 1):
        raise ValueError(f"pages of {pages.group.name}: k and v must lie alike, each page contiguous in the order HSD")
    return k, v, strides[0]
