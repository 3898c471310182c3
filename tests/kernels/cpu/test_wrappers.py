"""The faces of the C library as the binding calls them: the ops' meaning on every twin, strides, batches, threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from ambidex.hwprofiles.reader import load as load_profile
from ambidex.hwprofiles.schema import Profile
from ambidex.kernels.cpu import language, levels
from ambidex.kernels.cpu.library import Level, load
from ambidex.ops import discovery
from ambidex.ops.binding import UNBOUNDED, bind
from ambidex.ops.contract import Kernel, Op, Policy
from ambidex.ops.layouts import PANEL16, ROW_MAJOR, dense
from ambidex.ops.reference import ReferenceOps
from ambidex.ops.tracing import Recorder
from ambidex.ops.types import Attending, Determinism, Pages, Site, Weight

pytestmark = pytest.mark.skipif(language.missing() is not None, reason=str(language.missing()))

OPS = discovery.ops()
SERVED = {name: kernel for name, kernel in discovery.kernels().items() if kernel.language == "cpu"}
DTYPES = (torch.float32, torch.bfloat16)
CPU = torch.device("cpu")
MEANING = ReferenceOps(OPS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def available_levels() -> list[str]:
    return [name for name, code in levels.LEVELS.items() if code <= load().cpu_level]


def laid_out(kernel: Kernel, argument: Any) -> Any:
    """A row-major weight repacked into the layout that the kernel reads; anything else as it is."""
    if isinstance(argument, Weight) and len(argument.shape) == 2:
        return dense(argument.role, argument.logical(), kernel.layout)
    return argument


def copied(argument: Any) -> Any:
    """Pages that a call may write, apart from those of another call."""
    if isinstance(argument, Pages):
        return replace(argument, planes={name: plane.clone() for name, plane in argument.planes.items()})
    return argument


def site_of(op: Op, dims: Mapping[str, Any], dtype: torch.dtype) -> Site:
    args, params = op.inputs(dims, dtype, CPU, generator())
    recorder = Recorder(OPS, num_logits=-1)
    getattr(recorder, op.name)(*args, **params)
    return recorder.sites[0]


def observed(op: Op, function: Callable[..., Any], args: tuple[Any, ...], params: Mapping[str, Any]) -> list[Any]:
    owned = tuple(copied(argument) for argument in args)
    return [tensor.clone() for tensor in op.observe(function(*owned, **params), owned)]


def case_parameters() -> list[Any]:
    return [
        pytest.param(kernel, case.twin, dtype, id=f"{name}-{case}-{dtype}".replace("torch.", ""))
        for name, kernel in SERVED.items()
        for case in OPS[kernel.op].cases
        for dtype in DTYPES
    ]


@pytest.mark.parametrize(("kernel", "dims", "dtype"), case_parameters())
def test_a_kernel_computes_its_op_or_says_why_not(
    kernel: Kernel, dims: Mapping[str, Any], dtype: torch.dtype, cpu_profile: Profile
) -> None:
    op = OPS[kernel.op]
    reason = kernel.refuses(site_of(op, dims, dtype), cpu_profile, 1) if kernel.refuses else None
    if reason is not None:
        assert reason.code == "shape"
        assert "odd" in str(dims) or dims.get("I", 0) % 16
        return
    args, params = op.inputs(dims, dtype, CPU, generator())
    wanted = observed(op, MEANING.function(op), args, params)
    given = tuple(laid_out(kernel, argument) for argument in args)
    for level in available_levels():
        launch = {"level": level} if kernel.launch else {}
        for got, expected in zip(observed(op, kernel.run, given, {**params, **launch}), wanted, strict=True):
            assert got.dtype == expected.dtype
            torch.testing.assert_close(
                got, expected, rtol=0, equal_nan=True, atol=op.tolerance[dtype] * largest(expected)
            )


def largest(tensor: torch.Tensor) -> float:
    return float(tensor[~tensor.isnan()].abs().max()) if tensor.is_floating_point() else 0.0


@pytest.fixture
def cpu_profile() -> Profile:
    return load_profile("cpu-amx")
