"""Layouts of weights and pages that the kernels in this repository ask for. A kernel elsewhere may bring its own.

`row_major`: the logical tensor itself.
`panel16`: rows in panels of 16, the contraction axis slowest inside a panel, so that one vector load fetches 16 outputs
at one k. bfloat16 keeps pairs of k together, `[N/16, K/2, 16, 2]` with K padded to 32: the operand order of AVX-512's
`vdpbf16ps` and of an AMX B tile. float32 is `[N/16, K, 16]`. Padding is zero.
"""

from __future__ import annotations

import torch

from .state import PageLayout
from .types import Layout, Weight

_PANEL = 16


def _same_shape(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    return shape


def _copy_rows(storage: torch.Tensor, row0: int, rows: torch.Tensor) -> None:
    storage[row0 : row0 + rows.shape[0]].copy_(rows)


def _itself(storage: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return storage


def _panel_shape(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    num_rows, width = shape
    panels = -(-num_rows // _PANEL)
    if dtype == torch.float32:
        return (panels, width, _PANEL)
    if dtype == torch.bfloat16:
        return (panels, -(-width // 32) * 16, _PANEL, 2)
    raise ValueError(f"panel16 holds float32 and bfloat16, not {dtype}")


def _pack_panels(storage: torch.Tensor, row0: int, rows: torch.Tensor) -> None:
    num_rows, width = rows.shape
    panels = -(-num_rows // _PANEL)
    k_unit = 2 if storage.ndim == 4 else 1
    padded_width = storage.shape[1] * k_unit
    if num_rows != panels * _PANEL or width != padded_width:
        rows = torch.nn.functional.pad(rows, (0, padded_width - width, 0, panels * _PANEL - num_rows))
    source = rows.reshape(panels, _PANEL, storage.shape[1], k_unit).transpose(1, 2)
    storage[row0 // _PANEL : row0 // _PANEL + panels].view(panels, storage.shape[1], _PANEL, k_unit).copy_(source)


def _unpack_panels(storage: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    num_rows, width = shape
    panels, k_steps = storage.shape[:2]
    rows = storage.view(panels, k_steps, _PANEL, -1).transpose(1, 2).reshape(panels * _PANEL, -1)
    return rows[:num_rows, :width]


ROW_MAJOR = Layout("row_major", _same_shape, _copy_rows, _itself)
PANEL16 = Layout("panel16", _panel_shape, _pack_panels, _unpack_panels, row_multiple=_PANEL)

PAGES_PHSD = PageLayout("PHSD")
PAGES_PSHD = PageLayout("PSHD")


def dense(role: str, values: torch.Tensor, layout: Layout = ROW_MAJOR) -> Weight:
    """A dense weight that holds `values` ([N, K] or [N]), packed into `layout` if it has two axes."""
    shape = tuple(values.shape)
    if layout is ROW_MAJOR or len(shape) == 1:
        return Weight(role, shape, values.dtype, ROW_MAJOR, {"values": values})
    storage = torch.zeros(layout.storage_shape(shape, values.dtype), dtype=values.dtype, device=values.device)
    layout.pack(storage, 0, values)
    return Weight(role, shape, values.dtype, layout, {"values": storage})
