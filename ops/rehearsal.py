"""The rehearsing binding: a model's pass on meta tensors in which the bound kernels of some languages are launched.

The launches are for a collector to take, who compiles them: nothing is computed. So what a binding will launch for a
step is found by the very code that launches it, a kernel's own launcher. Kernels of other languages, and references,
are passed over; outputs come from the op's validation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

from .bound import BoundSite
from .contract import Kernel, Op


class Rehearsal:
    """Stands where a binding's ops stand. `begin` starts a step: layers that repeat a site launch it once in each.

    languages: whose kernels are launched.
    """

    def __init__(
        self,
        bound: Iterable[BoundSite],
        ops: Mapping[str, Op],
        kernels: Mapping[str, Kernel],
        languages: Collection[str],
    ) -> None:
        self._ops, self._kernels, self._languages = ops, kernels, languages
        self._sites = {(entry.site.op, entry.site.label): entry for entry in bound}
        self._inner = {key: Rehearsal(entry.parts, ops, kernels, languages) for key, entry in self._sites.items()}
        self._done: set[tuple[str, str, int]] = set()

    def begin(self) -> None:
        self._done.clear()
        for inner in self._inner.values():
            inner.begin()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = self._ops[name]
        return lambda *args, **params: self._call(op, args, params)

    def _call(self, op: Op, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        key, rows = (op.name, op.label(*args, **params)), int(args[0].shape[op.row_axis])
        if (*key, rows) not in self._done:
            self._done.add((*key, rows))
            self._launch(op, key, rows, args, params)
        outputs = tuple(
            torch.empty(shape, dtype=dtype, device=args[0].device) for shape, dtype in op.check(*args, **params).outputs
        )
        return outputs[0] if len(outputs) == 1 else outputs or None

    def _launch(self, op: Op, key: tuple[str, str], rows: int, args: tuple[Any, ...], params: dict[str, Any]) -> None:
        choices = self._sites[key].choices
        choice = choices[bisect_left([each.bucket for each in choices], rows)]
        if choice.chosen == "parts":
            assert op.parts is not None
            op.parts(self._inner[key], *args, **params)
        elif choice.chosen in self._kernels and self._kernels[choice.chosen].language in self._languages:
            self._kernels[choice.chosen].run(*args, **params, **choice.launch)
