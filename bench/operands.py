"""Operands of a call, remade: widened for the reference, packed for a kernel, copied, moved, cut to some rows.

Also the poison: memory that a kernel asks for comes filled with NaN (integers: their largest value), so that what it
forgets to write shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..ops.layouts import ROW_MAJOR, dense
from ..ops.state import Attending, PageLayout, Pages, Plane
from ..ops.types import Layout, Weight

Change = Callable[[Any], Any]
"""From an operand to what stands for it, or None to look inside it."""


def changed(operand: Any, change: Change) -> Any:
    """The operand with `change` applied to what it is made of: tuples, mappings, weights, pages, records of tensors."""
    other = change(operand)
    if other is not None:
        return other
    if isinstance(operand, tuple | list):
        return type(operand)(changed(item, change) for item in operand)
    if isinstance(operand, dict):
        return {key: changed(item, change) for key, item in operand.items()}
    if is_dataclass(operand) and not isinstance(operand, type):
        inside = {f.name: getattr(operand, f.name) for f in fields(operand)}
        held = {name: value for name, value in inside.items() if isinstance(value, torch.Tensor | dict)}
        return replace(operand, **{name: changed(value, change) for name, value in held.items()}) if held else operand
    return operand


def each_tensor(function: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda operand: function(operand) if isinstance(operand, torch.Tensor) else None


def _wide(operand: Any) -> Any:
    if isinstance(operand, torch.Tensor):
        return operand.double() if operand.is_floating_point() else operand.clone()
    if isinstance(operand, Weight):
        return dense(operand.role, operand.logical().double())
    if isinstance(operand, Pages):
        planes = tuple(Plane(plane.name, plane.shape, torch.float64) for plane in operand.group.planes)
        tensors = {name: tensor.double() for name, tensor in operand.planes.items()}
        return Pages(replace(operand.group, planes=planes), tensors, operand.layout, operand.page_size)
    return None


def widened(operands: Any) -> Any:
    """In float64: what the reference computes the expected result from. Weights by their logical values, row-major."""
    return changed(operands, _wide)


def copied(operands: Any) -> Any:
    """A copy of its own, so that a call may write where it likes."""
    return changed(operands, each_tensor(torch.clone))


def on_device(operands: Any, device: torch.device | str) -> Any:
    return changed(operands, each_tensor(lambda tensor: tensor.to(device)))


def in_page_layout(pages: Pages, layout: PageLayout) -> Pages:
    order = ["PSHD".index(letter) for letter in layout.name]
    planes = {name: pages.canonical(name).permute(order).contiguous() for name in pages.planes}
    return Pages(pages.group, planes, layout, pages.page_size)


def packed(operands: Any, layout: Layout, page_layout: PageLayout) -> Any:
    """A copy as a kernel wants it: weights in its layout, pages in one of its page layouts."""

    def change(operand: Any) -> Any:
        if isinstance(operand, Weight) and layout is not ROW_MAJOR:
            return replace(dense(operand.role, operand.logical(), layout), shard=operand.shard)
        return in_page_layout(operand, page_layout) if isinstance(operand, Pages) else None

    return copied(changed(operands, change))


def rows_taken(operands: Any, axis: int, num_rows: int, index: torch.Tensor) -> Any:
    """The call on these rows only. Weights and pages stay whole; a record of one entry a row is cut too."""

    def change(operand: Any) -> Any:
        if isinstance(operand, Weight | Pages):
            return copied(operand)
        if not isinstance(operand, torch.Tensor):
            return None
        per_row = operand.ndim > axis and operand.shape[axis] == num_rows
        return operand.index_select(axis, index.to(operand.device)) if per_row else operand

    return changed(operands, change)


def request_taken(args: tuple[Any, ...], number: int) -> tuple[tuple[Any, ...], slice]:
    """The call for one request of a ragged batch alone, and the rows that are its own in the batch."""
    attending = next(arg for arg in args if isinstance(arg, Attending))
    start, end = attending.query_starts[number : number + 2].tolist()
    alone = Attending(
        torch.tensor([0, end - start], dtype=torch.int32, device=attending.query_starts.device),
        attending.context_lengths[number : number + 1],
        attending.page_tables[number : number + 1],
        end - start,
        None if attending.ancestors is None else attending.ancestors[start:end],
    )
    first, *others = args
    rest = tuple(alone if isinstance(arg, Attending) else copied(arg) for arg in others)
    return (first[start:end].clone(), *rest), slice(start, end)


_EMPTY = {
    torch.empty,
    torch.empty_like,
    torch.empty_strided,
    torch.Tensor.new_empty,
    torch.Tensor.new_empty_strided,
}


class Poison(TorchFunctionMode):
    """Inside it, memory that Python code asks torch for comes poisoned."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return poisoned(result) if func in _EMPTY else result


def poisoned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, filled with what no kernel writes by chance."""
    if tensor.dtype.is_floating_point:
        return tensor.fill_(torch.nan)
    return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)
