"""What a function did to host tensors, recorded as a list of calls that can be replayed: the host's captured graph.

Torch's operations are seen by its dispatch modes; kernels that call other code tell it by `note`. Recorded are calls
with their very tensors: views and allocations need no replay, any other result is written where it lay, and whatever
decides by a tensor's values on the host is refused. Results live in memory that the recording owns and that, as soon as
a tensor is dead, serves the next one of its size: a step of many layers holds the tensors of one.

Not seen, so not allowed in a recorded function: writing a tensor through numpy, and kernels that note nothing.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from itertools import groupby
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments. A true answer (a C function's status) is a failure."""
Merge = Callable[[list[Call]], Call]
"""Makes one call of several in a row."""

_ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
_READ_BY_HOST = frozenset({"tolist", "numpy", "__array__"})
_ALIGNMENT = 64
_active: ContextVar[list[tuple[Call, Merge | None]] | None] = ContextVar("active", default=None)


class Unrecordable(Exception):
    """The function does what a replay could not repeat; the message says what."""


class Recording:
    """Replays by being called. num_bytes: memory of its own, the results among it."""

    def __init__(self, calls: list[Call], kept: list[torch.Tensor], num_bytes: int) -> None:
        self._calls, self._kept, self.num_bytes = calls, kept, num_bytes

    def __len__(self) -> int:
        return len(self._calls)

    @torch.inference_mode()
    def __call__(self) -> None:
        for function, arguments in self._calls:
            if status := function(*arguments):
                raise RuntimeError(f"a replayed call failed with {status}: its arguments changed since it was recorded")


def note(function: Callable[..., Any], *arguments: Any, merge: Merge | None = None) -> None:
    """Tells the recording under way in this thread, if there is one, of a call that torch does not see. The recording
    keeps the arguments, and the tensors whose addresses they hold if torch's operations made them in the recording."""
    calls = _active.get()
    if calls is not None:
        calls.append(((function, arguments), merge))


def record(function: Callable[[], None]) -> Recording | str:
    """Runs `function` once and returns what it did, or why that cannot be replayed."""
    calls: list[tuple[Call, Merge | None]] = []
    memory = _Memory()
    token = _active.set(calls)
    try:
        with torch.inference_mode(), _HostReads(memory), _Operations(calls, memory):
            function()
    except Unrecordable as reason:
        return str(reason)
    finally:
        _active.reset(token)
    return Recording(list(_merged(calls)), memory.kept, memory.num_bytes)


def _merged(calls: Iterable[tuple[Call, Merge | None]]) -> Iterable[Call]:
    for merge, group in groupby(calls, key=lambda entry: entry[1]):
        run = [call for call, _ in group]
        yield from [merge(run)] if merge else run


class _Memory:
    """Blocks for results, free again once no tensor lies in them."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.kept: list[torch.Tensor] = []
        self._free: dict[int, list[memoryview]] = defaultdict(list)
        self._addresses: set[int] = set()

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape, strides and dtype in a block of its own."""
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        num_bytes = -(-max(span, 1) * tensor.itemsize // _ALIGNMENT) * _ALIGNMENT
        block = self._free[num_bytes].pop() if self._free[num_bytes] else self._new(num_bytes)
        lent = block[:]  # a storage that is built on it holds it as long as any view lives
        weakref.finalize(lent, self._free[num_bytes].append, block).atexit = False
        return torch.frombuffer(lent, dtype=torch.uint8).view(tensor.dtype).as_strided(tensor.shape, tensor.stride())

    def keep(self, tensor: torch.Tensor) -> None:
        """Holds what lies elsewhere: a constant that the function made, of which a call knows the address alone."""
        if tensor.untyped_storage().data_ptr() not in self._addresses:
            self.kept.append(tensor)

    def _new(self, num_bytes: int) -> memoryview:
        raw = torch.empty(num_bytes + _ALIGNMENT, dtype=torch.uint8)
        start = -raw.data_ptr() % _ALIGNMENT
        self.num_bytes += num_bytes
        self._addresses.add(raw.data_ptr() + start)
        self.kept.append(raw)
        return raw.numpy().data[start : start + num_bytes]


class _Operations(TorchDispatchMode):
    """Records torch's operations."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be told to skip it, torch's compiler would be loaded, 140 MiB that nothing here compiles with."""
        return False

    def __init__(self, calls: list[tuple[Call, Merge | None]], memory: _Memory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls, self._memory = calls, memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # an operation made of others is recorded as those
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        _refuse(func, args)
        result = func(*args, **kwargs)
        if func.is_view:
            return result
        if func._schema.is_mutable:
            self._calls.append(((_repeated, (func, args, kwargs)), None))
            return result
        placed = tree_map_only(torch.Tensor, self._memory.like, result)
        if func.overloadpacket.__name__ not in _ALLOCATIONS:
            _written(func, args, kwargs, placed)
            self._calls.append(((_written, (func, args, kwargs, placed)), None))
        return placed


class _HostReads(TorchFunctionMode):
    """Refuses what reads values on the host behind the dispatcher's back, and keeps constants alive."""

    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self._memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _READ_BY_HOST:
            raise Unrecordable(f"{func.__name__} reads a tensor on the host, which a replay does not repeat")
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._memory.keep, result)
        return result


def _refuse(func: Any, args: Any) -> None:
    if torch.Tag.data_dependent_output in func.tags:
        raise Unrecordable(f"{func} reads a tensor on the host, which a replay does not repeat")
    is_index = func.overloadpacket.__name__ == "index"
    if torch.Tag.dynamic_output_shape in func.tags and not (is_index and not _has_mask(args[1])):
        raise Unrecordable(f"the shape of what {func} returns depends on values")


def _has_mask(indices: Any) -> bool:
    return any(index.dtype in (torch.bool, torch.uint8) for index in tree_leaves(indices) if index is not None)


def _repeated(func: Any, args: Any, kwargs: Any) -> None:
    func(*args, **kwargs)


def _written(func: Any, args: Any, kwargs: Any, places: Any) -> None:
    results = func(*args, **kwargs)
    if isinstance(places, torch.Tensor):
        places.copy_(results)
        return
    for place, result in zip(tree_leaves(places), tree_leaves(results), strict=True):
        if isinstance(place, torch.Tensor):
            place.copy_(result)
