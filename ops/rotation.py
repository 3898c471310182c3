"""rotation: the cosines and sines by which a step's queries and keys are turned, computed once a step.

angle_tr = p_at · f_r, returned as [T, 2·R]: R cosines, then R sines, times `scaling`, in float32.
Su et al., RoFormer, arXiv:2104.09864. positions: [A, T] integer, A position axes (1 for text); frequencies: [R] float32
(`frequencies` below makes them from a checkpoint's parameters). ValueError: more axes than one (a model with several
axes brings an op that says which frequency belongs to which).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from .contract import Arguments, Case, Op, Signature
from .types import Cost, Site, Work
from .validation import expect_shape


def frequencies(rotated: int, theta: float, scaling: Mapping[str, Any] | None = None) -> tuple[torch.Tensor, float]:
    """Inverse frequencies [rotated / 2] in float32, and the factor on cosines and sines.

    rotated: how many of a head's dimensions are turned. scaling: the checkpoint's `rope_scaling` with `rope_type`
    default | linear (arXiv:2306.15595) | llama3 (Llama 3.1's model card) | yarn (arXiv:2309.00071).
    ValueError: another type, or a parameter missing.
    """
    base = 1.0 / theta ** (torch.arange(0, rotated, 2, dtype=torch.int64).float() / rotated)
    parameters = dict(scaling or {})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    makers = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
    if kind not in makers:
        raise ValueError(f"rope scaling {kind!r} is not known: there are {', '.join(makers)}")
    try:
        return makers[kind](base, theta, parameters)
    except KeyError as missing:
        raise ValueError(f"rope scaling {kind!r} needs {missing.args[0]} in the checkpoint's rope_scaling") from None


def _default(base: torch.Tensor, theta: float, parameters: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    return base, 1.0


def _linear(base: torch.Tensor, theta: float, parameters: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    return base / parameters["factor"], 1.0


def _llama3(base: torch.Tensor, theta: float, parameters: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    wavelength = 2 * math.pi / base
    blend = (original / wavelength - low) / (high - low)
    blended = (1 - blend) * base / factor + blend * base
    stretched = torch.where(wavelength > original / low, base / factor, base)
    between = (wavelength >= original / high) & (wavelength <= original / low)
    return torch.where(between, blended, stretched), 1.0


def _yarn(base: torch.Tensor, theta: float, parameters: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    """Interpolated where a dimension turns seldom, kept where it turns often, a linear ramp between."""
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    rotated = 2 * base.numel()

    def dimension(turns: float) -> float:
        return rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(parameters.get("beta_fast") or 32), dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    ramp = ((torch.arange(rotated // 2).float() - low) / (high - low or 1e-3)).clamp(0, 1)
    return base / factor * ramp + base * (1 - ramp), _yarn_scaling(factor, parameters)


def _yarn_scaling(factor: float, parameters: Mapping[str, Any]) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return magnitude(parameters["mscale"]) / magnitude(parameters["mscale_all_dim"])
    return magnitude(1.0)


def _label(positions: torch.Tensor, frequencies: torch.Tensor, *, scaling: float = 1.0) -> str:
    return f"rotated_{2 * frequencies.shape[0]}"


def _check(positions: torch.Tensor, frequencies: torch.Tensor, *, scaling: float = 1.0) -> Signature:
    expect_shape("rotation", "positions", positions, 1, None)
    expect_shape("rotation", "frequencies", frequencies, None)
    dims = {"R": frequencies.shape[0], "scaling": scaling}
    outputs = (((positions.shape[1], 2 * frequencies.shape[0]), torch.float32),)
    return Signature(dims, {"x": torch.float32}, outputs)


def _reference(positions: torch.Tensor, frequencies: torch.Tensor, *, scaling: float = 1.0) -> torch.Tensor:
    angles = positions[0].to(frequencies.dtype)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * scaling


def _cost(site: Site, work: Work) -> Cost:
    elements = work.rows * 2 * site.dim("R")
    return Cost(4 * elements, 20 * elements, torch.float32)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    positions = torch.randint(0, dims["context"], (1, dims["T"]), generator=generator)
    return (positions.to(device), frequencies(dims["rotated"], 500_000.0)[0].to(device)), {"scaling": 1.0}


CASES = (
    Case("llama-3.1-8b", {"T": 512, "rotated": 128, "context": 8192}, {"T": 5, "rotated": 128, "context": 8192}),
    Case("odd", {"T": 7, "rotated": 6, "context": 100}, {"T": 7, "rotated": 6, "context": 100}),
)


def _case_at(site: Site, rows: int) -> Mapping[str, Any]:
    return {"T": rows, "rotated": 2 * site.dim("R"), "context": 8192}


OP = Op(
    "rotation", _label, _check, _cost, _inputs, CASES, {torch.float32: 1e-3},
    reference=_reference, row_axis=1, case_at=_case_at,
)  # fmt: skip
