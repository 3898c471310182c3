"""The guard of `jit: forbid`: what Triton finds neither in memory nor in its cache on disk is an error, not compiled.

Two places of Triton's are used, the same in 3.6 and 3.9. `knobs.runtime.jit_cache_hook` is told of a launch that is not
in memory; then the manager of the cache is asked for the compiled kernel, and its None is what Triton compiles on.

What it does not see: the launcher, a piece of C that Triton 3.6 has a C compiler make once for each signature of
arguments (3.9 has none).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triton import knobs
from triton.runtime.cache import FileCacheManager

_asked = ["a kernel"]
"""The launch that Triton looks for on disk, as its hook described it last."""


class CompilationForbidden(RuntimeError):
    """A launch would compile, and `jit: forbid` says that nothing may."""

    exit_code = 15


def install() -> None:
    """Guards this process; again, nothing. CompilationForbidden: TRITON_ALWAYS_COMPILE is set."""
    if knobs.compilation.always_compile:
        raise CompilationForbidden("jit is forbid, and TRITON_ALWAYS_COMPILE has Triton compile always: unset it")
    manager = knobs.cache.manager_class or FileCacheManager
    if not getattr(manager, "is_guarded", False):
        knobs.cache.manager_class = _guarded(manager)
        knobs.runtime.jit_cache_hook = _noting(knobs.runtime.jit_cache_hook)


def _guarded(manager: type[Any]) -> type[Any]:
    class Guarded(manager):  # type: ignore[misc]
        is_guarded = True

        def get_group(self, filename: str) -> dict[str, str]:
            group = super().get_group(filename)
            if group is None:
                raise CompilationForbidden(
                    f"jit is forbid and {filename.removesuffix('.json')} is not compiled in {knobs.cache.dir}: "
                    f"build it there with `ambidex build-kernels`, or start with jit=allow. Asked for: {_asked[-1]}"
                )
            return group

    return Guarded


def _noting(before: Any) -> Any:
    def note(*args: Any, **facts: Any) -> bool | None:
        _asked[-1] = _described(facts["fn"].jit_function, facts["compile"])
        return before(*args, **facts) if before else None

    return note


def _described(function: Any, launch: Mapping[str, Any]) -> str:
    """Name, arguments with their types, constants and options. Triton's own text is wrong about the arguments."""
    values = {function.arg_names[path[0]]: value for path, value in launch["constants"].items()}
    arguments = [
        f"{name}={values[name]}" if name in values else f"{name}: {kind}" for name, kind in launch["signature"].items()
    ]
    options = ", ".join(f"{name}={launch[name]}" for name in ("num_warps", "num_stages"))
    return f"{function.fn.__name__}({', '.join(arguments)}) [{options}]"
