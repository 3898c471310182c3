"""What the ops' validations have in common: one line that says what was given and what would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .layouts import dense
from .types import Weight, dtype_name

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

COMPUTE_TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""Of ops that multiply and sum: a few units in the last place of the result's dtype."""

EXACT: Mapping[torch.dtype, float] = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 0.0}
"""Of ops that only move values."""


def expect_shape(op: str, name: str, tensor: torch.Tensor, *sizes: int | None) -> None:
    """The tensor has these sizes; None takes any."""
    fits = tensor.ndim == len(sizes) and all(
        size in (None, given) for size, given in zip(sizes, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(f"{op}: {name} is {list(tensor.shape)}, it must be [{wanted}]")


def expect_float(op: str, name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in FLOATS:
        allowed = ", ".join(dtype_name(dtype) for dtype in FLOATS)
        raise ValueError(f"{op}: {name} is {dtype_name(tensor.dtype)}, it must be one of {allowed}")


def expect_dtype(op: str, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{op}: {name} is {dtype_name(tensor.dtype)}, it must be {dtype_name(dtype)}")


def expect_weight(op: str, weight: Weight, *sizes: int | None) -> None:
    fits = len(weight.shape) == len(sizes) and all(
        size in (None, given) for size, given in zip(sizes, weight.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(f"{op}: weight {weight.role} is {list(weight.shape)}, it must be [{wanted}]")


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Any:
    """Normal values drawn on the CPU in float32, so that every device and dtype gets the same ones."""
    return _drawn(shape, device, generator).to(device=device, dtype=dtype)


def _drawn(shape: tuple[int, ...], device: torch.device, generator: torch.Generator) -> torch.Tensor:
    """On `meta` there is nothing to draw."""
    if device.type == "meta":
        return torch.empty(shape, device=device)
    return torch.randn(shape, generator=generator)


def random_weight(
    role: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Weight:
    """Weights of the size that a trained layer has: variance 1 / fan-in; a vector (a norm's) lies around 1."""
    values = _drawn(shape, device, generator)
    values = 1.0 + 0.1 * values if len(shape) == 1 else values * shape[-1] ** -0.5
    return dense(role, values.to(device=device, dtype=dtype))
