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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...hwprofiles.schema import Profile
from . import machine_code
from .language import INTERPRETED, Grid, instead_of_launching
from .machine_code import MachineCode

_BACKENDS: Mapping[str, tuple[str, Callable[[str], int | str]]] = {
    "sm_": ("cuda", int),
    "gfx": ("hip", lambda name: f"gfx{name}"),
}
"""How Triton calls an architecture, by the prefix of the profile's name for it."""


_USUAL = {"num_ctas": 1, "launch_pdl": False, "waves_per_eu": 0, "matrix_instr_nonkdim": 0, "kpack": 1}
"""Options that are named where a kernel chooses otherwise."""


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

    @cached_property
    def machine_code(self) -> MachineCode:
        return machine_code.of(self.code)

    @property
    def constants(self) -> Mapping[str, Any]:
        """The device function's constexprs by name."""
        names = self.code.src.fn.arg_names
        return {names[path[0]]: value for path, value in self.code.src.constants.items() if len(path) == 1}

    @property
    def config(self) -> str:
        """Constants and options in a line: `BLOCK_N=64 D=128 warps=4 stages=3`."""
        parts = [f"{name}={_shown(value)}" for name, value in self.constants.items()]
        chosen = {name: getattr(self.code.metadata, name, usual) for name, usual in _USUAL.items()}
        parts += [f"warps={self.code.metadata.num_warps}", f"stages={self.code.metadata.num_stages}"]
        return " ".join([*parts, *(f"{name}={value}" for name, value in chosen.items() if value != _USUAL[name])])

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


def _shown(value: Any) -> str:
    return str(int(value) if isinstance(value, bool) else getattr(value, "value", value))


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
    """Hands launches to the compiler's threads, and gathers what came of them."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, Any]] = []
        self._times: dict[str, tuple[bool, float]] = {}

    def take(self, function: Any, grid: Grid, *args: Any, **options: Any) -> None:
        name = function.fn.__name__
        with _named(name):
            self._pending.append((name, function.warmup(*args, grid=grid, **options)))

    def listen(self, *, metadata: Mapping[str, Any], times: Any, cache_hit: bool, **rest: Any) -> None:
        self._times.setdefault(metadata["hash"], (cache_hit, times.total / 1e6))

    def gather(self, found: dict[str, Compiled]) -> None:
        for name, pending in self._pending:
            with _named(name):
                code = pending.result() if hasattr(pending, "result") else pending
            if code.hash not in found:
                found[code.hash] = Compiled(name, code, *self._times.get(code.hash, (True, 0.0)))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """The compiler's errors, which share no class, as one line."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code"):
            raise
        cause = str(error).strip().splitlines() or ["it gives no reason"]
        raise NotCompiled(f"{name} does not compile: {cause[-1].strip()} ({type(error).__name__})") from error


@contextmanager
def collecting(target: Target, num_threads: int = 1) -> Iterator[Mapping[str, Compiled]]:
    """Inside, launches of this thread are compiled for `target` instead of run, by so many threads.

    Gives the entries of the cache by key, complete when the context has ended. NotCompiled: the process runs Triton's
    interpreter, or the compiler refuses a launch.
    """
    if INTERPRETED:
        raise NotCompiled("TRITON_INTERPRET is set, and interpreted kernels are not compiled: unset it")
    collector, found = _Collector(), dict[str, Compiled]()
    with _compiling_for(target, collector), _threads(num_threads):
        yield found
        collector.gather(found)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    if number == 1:
        yield
        return
    from triton import AsyncCompileMode

    # Errors are ignored at its end only: `gather` has met them before, and knows whose they are.
    with ThreadPoolExecutor(number) as pool, AsyncCompileMode(pool, ignore_errors=True):
        yield


@contextmanager
def _compiling_for(target: Target, collector: _Collector) -> Iterator[None]:
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    before, listened = driver._active, knobs.compilation.listener
    driver.set_active(_Driver(GPUTarget(target.backend, target.arch, target.lanes)))
    knobs.compilation.listener = collector.listen
    token = instead_of_launching.set(collector.take)
    try:
        yield
    finally:
        instead_of_launching.reset(token)
        knobs.compilation.listener = listened
        driver._active = before  # None where no device was asked for yet
