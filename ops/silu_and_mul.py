"""silu_and_mul: y_ti = silu(g_ti) · u_ti with [g | u] = x and silu(z) = z / (1 + exp(-z)).

The activation of SwiGLU: Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202. x: [T, 2·I]; returns [T, I].
ValueError: an odd last axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .contract import Arguments, Case, Op, Signature
from .types import Cost, Site, Work, accumulator
from .validation import COMPUTE_TOLERANCE, expect_float, expect_shape, random_tensor


def _label(x: torch.Tensor) -> str:
    return f"gate_up_{x.shape[1]}"


def _check(x: torch.Tensor) -> Signature:
    expect_float("silu_and_mul", "x", x)
    expect_shape("silu_and_mul", "x", x, None, None)
    if x.shape[1] % 2:
        raise ValueError(f"silu_and_mul: x is {list(x.shape)}, its last axis must be even: [gate | up]")
    half = x.shape[1] // 2
    return Signature({"I": half}, {"x": x.dtype}, (((x.shape[0], half), x.dtype),))


def _reference(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.to(accumulator(x)).chunk(2, dim=-1)
    # Not functional.silu: on a CPU its bits change where threads share a row; those of exp, / and * do not.
    return (gate / (1.0 + torch.exp(-gate)) * up).to(x.dtype)


def _cost(site: Site, work: Work) -> Cost:
    elements = work.rows * site.dim("I")
    return Cost(3 * elements * site.dtypes["x"].itemsize, 5 * elements, torch.float32)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    return (random_tensor((dims["T"], 2 * dims["I"]), dtype, device, generator),), {}


CASES = (
    Case("llama-3.1-8b", {"T": 512, "I": 14336}, {"T": 5, "I": 448}),
    Case("odd", {"T": 63, "I": 1001}, {"T": 3, "I": 101}),
    *(
        Case(f"{model}-{rows}", {"T": rows, "I": width}, {"T": 1, "I": 448})
        for model, width in (("llama-3.1-8b", 14336), ("llama-3.1-70b-tp4", 7168))
        for rows in (1, 8, 32, 2048)
    ),  # the rows of linear's cases: a composite is held against its parts at one number of rows
    Case("llama-3.1-8b-prefill", {"T": 8192, "I": 14336}, {"T": 5, "I": 448}),
)

OP = Op("silu_and_mul", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE, reference=_reference)
