"""Compiling ahead of time, on a machine without a GPU, into the cache where Triton's JIT looks later.

Inside `collecting(target)` a launch is not run: it is handed to the JIT's own `warmup` under a driver object that
reports the target. So everything that makes up the key of Triton's cache (the source of the device function and of what
it calls, which integers are 1 or divisible by 16, which pointers are, the reach of a pointer on AMD, options, Triton's
own version) comes about as it will on the device, and the entry is the very one that a launch finds there. Operands are
meta tensors: a kernel's own launcher runs unchanged, and nothing is computed.

What must agree on the host that runs: the version of Triton, the variables of the environment that its compiler heeds,
and the path of the cache, because its entries name their files by absolute paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...hwprofiles.schema import Profile
from .language import INTERPRETED, Grid, instead_of_launching

_BACKENDS: Mapping[str, tuple[str, Callable[[str], int | str]]] = {
    "sm_": ("cuda", int),
    "gfx": ("hip", lambda name: f"gfx{name}"),
}
"""How Triton calls an architecture, by the prefix of the profile's name for it."""


class NotCompiled(RuntimeError):
    """A launch that Triton's compiler refuses, or that cannot be compiled ahead."""

    exit_code = 16


@dataclass(frozen=True)
class Target:
    """What Triton compiles for: `cuda`, 90, 32 lanes; `hip`, `gfx942`, 64 lanes."""

    backend: str
    arch: int | str
    lanes: int

    @classmethod
    def of(cls, profile: Profile) -> Target:
        """NotCompiled: a profile whose architecture Triton does not compile for."""
        kind, name = profile.arch[:3], profile.arch[3:]
        if kind not in _BACKENDS:
            raise NotCompiled(f"{profile.name} is {profile.arch}: Triton compiles for sm_… and gfx… only")
        backend, named = _BACKENDS[kind]
        return cls(backend, named(name), profile.lane_width)


@dataclass(frozen=True)
class Compiled:
    """One entry of the cache. code: Triton's compiled kernel, with `asm`, `metadata` and `src`.

    was_cached: found on disk, not compiled. seconds: what compiling it, or finding it, took.
    """

    name: str
    code: Any
    was_cached: bool
    seconds: float

    @property
    def key(self) -> str:
        """The name of its folder in the cache is made from this."""
        return str(self.code.hash)

    @property
    def constants(self) -> Mapping[str, Any]:
        """The device function's constexprs by name."""
        names = self.code.src.fn.arg_names
        return {names[path[0]]: value for path, value in self.code.src.constants.items() if len(path) == 1}

    @property
    def types(self) -> Mapping[str, str]:
        """Of its other arguments, as in `*bf16:16` (a pointer to 16 aligned bytes), `i32`, `fp32`, `i64:16`."""
        names, signature = self.code.src.fn.arg_names, self.code.src.signature
        attributes = {path[0]: sorted(value for _, value in found) for path, found in self.code.src.attrs.items()}
        return {
            name: ":".join([str(signature[name]), *map(str, attributes.get(place, ()))])
            for place, name in enumerate(names)
            if signature[name] != "constexpr"
        }


class _Driver:
    """What Triton's JIT asks of a device while it compiles. One table of compiled kernels belongs to each device, and
    the target stands for it."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> Any:
        return self._target

    def get_current_stream(self, device: Any) -> int:
        return 0


class _Collector:
    """Compiles what is launched, each cache entry once."""

    def __init__(self) -> None:
        self.found: dict[str, Compiled] = {}
        self._times: dict[str, tuple[bool, float]] = {}

    def take(self, function: Any, grid: Grid, *args: Any, **options: Any) -> None:
        name = function.fn.__name__
        try:
            code = function.warmup(*args, grid=grid, **options)
        except Exception as error:  # the compiler's errors share no class
            if hasattr(error, "exit_code"):
                raise
            cause = str(error).strip().splitlines() or [type(error).__name__]
            raise NotCompiled(f"{name} does not compile: {cause[-1]} ({type(error).__name__})") from error
        if code.hash not in self.found:
            self.found[code.hash] = Compiled(name, code, *self._times.get(code.hash, (True, 0.0)))

    def listen(self, *, metadata: Mapping[str, Any], times: Any, cache_hit: bool, **rest: Any) -> None:
        self._times.setdefault(metadata["hash"], (cache_hit, times.total / 1e6))


@contextmanager
def collecting(target: Target) -> Iterator[Mapping[str, Compiled]]:
    """Inside, launches of this thread are compiled for `target` instead of run; gives the entries by key, growing.

    NotCompiled: the process runs Triton's interpreter; raised by a launch: the compiler refuses it.
    """
    if INTERPRETED:
        raise NotCompiled("TRITON_INTERPRET is set, and interpreted kernels are not compiled: unset it")
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    collector = _Collector()
    before, listened = driver._active, knobs.compilation.listener
    driver.set_active(_Driver(GPUTarget(target.backend, target.arch, target.lanes)))
    knobs.compilation.listener = collector.listen
    token = instead_of_launching.set(collector.take)
    try:
        yield collector.found
    finally:
        instead_of_launching.reset(token)
        knobs.compilation.listener = listened
        driver._active = before
