"""The language `triton`: device functions that import it when they are first launched.

A kernel file lists its kernels whether or not Triton is installed, and a process that binds none of them does not pay
for the import (0.3 s and 70 MiB of memory). Such a file has `from __future__ import annotations`, takes `jit` and `tl`
from here, and uses `tl` in its device functions only: there it is Triton's language from the first launch on.

Triton chooses its interpreter when a function is decorated, that is at the first launch: TRITON_INTERPRET=1 is set
before the process starts, and interpreted and compiled kernels live in different processes.

Every launch goes through `DeviceFunction.__getitem__`. Inside `collecting` (ahead.py) it is compiled there and not run;
after `forbid_compiling` (guard.py) one that Triton would have to compile is an error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}
"""Whether the kernels of this process run in Triton's interpreter: on the CPU, operation by operation."""

Grid = tuple[int, ...]

instead_of_launching: ContextVar[Callable[..., None] | None] = ContextVar("instead_of_launching", default=None)
"""What is called with (Triton's function, grid, arguments…) where a launch would be; None: it is launched."""

_is_forbidden = False


class _StandIn:
    """What `tl` is in a kernel file until its first launch."""


tl: Any = _StandIn()


class DeviceFunction:
    """A function for Triton, not yet handed to it. `function[grid](…)` launches; `made` is Triton's own object."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function, self._options = function, options

    def __getitem__(self, grid: Grid) -> Callable[..., Any]:
        instead = instead_of_launching.get()
        return self.made[grid] if instead is None else partial(instead, self.made, grid)

    @cached_property
    def made(self) -> Any:
        if _is_forbidden:
            _guard()
        if INTERPRETED:
            import_module(".interpreting", __package__).install()
        names = self._function.__globals__
        names.update({name: import_module("triton.language") for name, value in names.items() if value is tl})
        called = [name for name in self._function.__code__.co_names if isinstance(names.get(name), DeviceFunction)]
        names.update({name: names[name].made for name in called})
        return import_module("triton").jit(**self._options)(self._function)


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit` at the first launch, a `DeviceFunction` until then; the options are its own."""
    return lambda function: DeviceFunction(function, options)


def forbid_compiling() -> None:
    """From here on, and for all of this process, a launch that is neither in memory nor in Triton's cache on disk
    raises `guard.CompilationForbidden`: Triton's JIT belongs to the process. Does not import Triton."""
    global _is_forbidden
    _is_forbidden = True
    if "triton" in sys.modules:
        _guard()


def _guard() -> None:
    import_module(".guard", __package__).install()


def missing() -> str | None:
    """Why Triton's kernels cannot run here, in one line with the cure; None if they can."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install 'triton>=3.6,<4' (ROCm's torch brings its own)"
    if not INTERPRETED and not torch.cuda.is_available():
        return "triton finds no GPU here: TRITON_INTERPRET=1 runs its kernels in the interpreter, slowly"
    return None
