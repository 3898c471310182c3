"""The reference binding: every op by its meaning. What conformance compares with, and the last resort."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .contract import Op


class ReferenceOps:
    """`ops.linear(x, weight)` computes the op's reference; a composite computes its parts, all the way down."""

    def __init__(self, ops: Mapping[str, Op]) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._ops:
            raise AttributeError(f"no op is called {name}: there are {', '.join(sorted(self._ops))}")
        return self.function(self._ops[name])

    def function(self, op: Op) -> Callable[..., Any]:
        if op.reference is not None:
            return op.reference
        assert op.parts is not None
        return partial(op.parts, self)
