"""What a binding hands to a model: for each site its choices, and functions that find the right one at each call."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .contract import Kernel, Launch, Op
from .types import Reason, Site


@dataclass(frozen=True)
class Choice:
    """What serves one bucket of a site: a kernel's name, `reference`, or `parts`; and every kernel refused.

    source: where the launch comes from (`launches.py`); None: there are no parameters.
    """

    bucket: int
    chosen: str
    launch: Launch
    refused: Mapping[str, Reason]
    source: str | None = None


@dataclass(frozen=True)
class BoundSite:
    """A site, its choice for each bucket, and its parts where some bucket runs them."""

    site: Site
    choices: tuple[Choice, ...]
    parts: tuple[BoundSite, ...]


def unreached_line(op: str, bound: Iterable[BoundSite]) -> str | None:
    """Which sites of an op no choice for it reaches, because composites around them are served whole; None: all are."""
    hidden = sorted(set(_hidden(op, bound)))
    if not hidden:
        return None
    around = "a composite around it is served whole (choose `parts` for the composite)"
    return f"the choice for {op} does not reach {', '.join(hidden)}: {around}"


def _hidden(op: str, bound: Iterable[BoundSite]) -> Iterator[str]:
    for entry in bound:
        yield from _hidden(op, entry.parts)
        if any(choice.chosen != "parts" for choice in entry.choices):
            yield from _named(op, entry.site.parts)


def _named(op: str, sites: Iterable[Site]) -> Iterator[str]:
    for site in sites:
        yield from [site.name] if site.op == op else _named(op, site.parts)


class BoundOp:
    """One op of a binding: finds the site by label, the bucket by rows, and calls what was chosen."""

    __slots__ = ("_label", "_row_axis", "_tables")

    def __init__(self, op: Op, tables: Mapping[str, tuple[tuple[int, ...], tuple[Callable[..., Any], ...]]]) -> None:
        self._label = op.label
        self._row_axis = op.row_axis
        self._tables = tables

    def __call__(self, first: Any, *args: Any, **params: Any) -> Any:
        bounds, functions = self._tables[self._label(first, *args, **params)]
        return functions[bisect_left(bounds, first.shape[self._row_axis])](first, *args, **params)


class BoundOps:
    """What a model calls: one attribute an op. `ops.linear(x, weight)` runs the kernel bound at that site."""

    def __init__(self, bound: Iterable[BoundSite], ops: Mapping[str, Op], kernels: Mapping[str, Kernel]) -> None:
        tables: dict[str, dict[str, Any]] = {}
        for entry in bound:
            bounds = tuple(choice.bucket for choice in entry.choices)
            inner = BoundOps(entry.parts, ops, kernels)
            functions = tuple(_function(ops[entry.site.op], choice, inner, kernels) for choice in entry.choices)
            tables.setdefault(entry.site.op, {})[entry.site.label] = (bounds, functions)
        self.__dict__.update({name: BoundOp(ops[name], by_label) for name, by_label in tables.items()})

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"{name} is not bound: the model's trace did not call it")


def _function(op: Op, choice: Choice, inner: BoundOps, kernels: Mapping[str, Kernel]) -> Callable[..., Any]:
    if choice.chosen == "parts":
        assert op.parts is not None
        return partial(op.parts, inner)
    if choice.chosen == "reference":
        assert op.reference is not None
        return op.reference
    run = kernels[choice.chosen].run
    return partial(run, **choice.launch) if choice.launch else run
