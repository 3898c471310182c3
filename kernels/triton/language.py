"""The language `triton`: one place that imports it, so that kernel files can be read where it is not installed.

Without it `triton.jit` gives the function back and `tl.constexpr` is a plain name: nothing runs, but the kernels can be
listed and refused with a reason. Triton chooses its interpreter when a kernel is decorated, so `TRITON_INTERPRET=1`
has to be set before this package is imported, and interpreted and compiled kernels live in different processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    if TYPE_CHECKING:
        raise

    def _undecorated(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        return function if function is not None else _undecorated

    triton = SimpleNamespace(jit=_undecorated)
    tl = SimpleNamespace(constexpr=object)
    INSTALLED = False
else:
    INSTALLED = True

INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on"}
"""Whether the kernels of this process run in Triton's interpreter: on the CPU, operation by operation."""

__all__ = ["INSTALLED", "INTERPRETED", "missing", "tl", "triton"]


def missing() -> str | None:
    """Why Triton's kernels cannot run here, in one line with the cure; None if they can."""
    if not INSTALLED:
        return "triton is not installed: pip install 'triton>=3.6,<4' (ROCm's torch brings its own)"
    if not INTERPRETED and not torch.cuda.is_available():
        return "triton finds no GPU here: TRITON_INTERPRET=1 runs its kernels in the interpreter, slowly"
    return None
