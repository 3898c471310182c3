"""store_kv: keys and values of a step's tokens written into the pages of a group.

k, v: [T, G, D]; pages: planes `k` and `v`; slots: [T] int64, page · page_size + offset of each token, or -1 to store
nothing (a padding row). Writes in place, returns nothing. ValueError: heads that are not the planes'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .contract import Arguments, Case, Op, Signature
from .layouts import PAGES_PHSD
from .state import Pages, Plane, StateGroup
from .types import Cost, Site, Work
from .validation import EXACT, expect_shape, random_tensor


def _label(k: torch.Tensor, v: torch.Tensor, pages: Pages, slots: torch.Tensor) -> str:
    return pages.group.name


def _check(k: torch.Tensor, v: torch.Tensor, pages: Pages, slots: torch.Tensor) -> Signature:
    heads, head_size = pages.group.planes[0].shape
    expect_shape("store_kv", "k", k, None, heads, head_size)
    expect_shape("store_kv", "v", v, *k.shape)
    expect_shape("store_kv", "slots", slots, k.shape[0])
    return Signature({"G": heads, "D": head_size}, {"x": k.dtype}, (), group=pages.group)


def _reference(k: torch.Tensor, v: torch.Tensor, pages: Pages, slots: torch.Tensor) -> None:
    """Without a shape that follows from values, so that it can be captured: a row that is not to be stored writes once
    more what the first stored row writes; where there is none, all write what lies there."""
    if not len(slots):
        return
    stored = slots >= 0
    source = torch.where(stored, torch.arange(len(slots), device=slots.device), stored.int().argmax())
    slot = slots[source].clamp(min=0)
    page, offset = slot // pages.page_size, slot % pages.page_size
    for name, rows in (("k", k), ("v", v)):
        plane = pages.canonical(name)
        plane[page, offset] = torch.where(stored.any(), rows[source].to(plane.dtype), plane[page, offset])


def _cost(site: Site, work: Work) -> Cost:
    elements = 2 * work.rows * site.dim("G") * site.dim("D")
    return Cost(2 * elements * site.dtypes["x"].itemsize, 0, site.dtypes["x"])


def written(result: Any, args: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    """What conformance compares: the planes, in their canonical order."""
    pages = next(arg for arg in args if isinstance(arg, Pages))
    return pages.canonical("k"), pages.canonical("v")


def random_pages(
    heads: int, head_size: int, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device,
    generator: torch.Generator, window: int = 0,
) -> Pages:  # fmt: skip
    """Pages of a group `kv` filled with normal values."""
    planes = (Plane("k", (heads, head_size), dtype), Plane("v", (heads, head_size), dtype))
    group = StateGroup("kv", "paged", planes, num_layers=1, window=window)
    tensors = {
        plane.name: random_tensor(PAGES_PHSD.shape(plane, num_pages, page_size), dtype, device, generator)
        for plane in planes
    }
    return Pages(group, tensors, PAGES_PHSD, page_size)


def random_slots(num_tokens: int, num_slots: int, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    """Distinct slots for the tokens; the last of several tokens is a padding row."""
    slots = torch.randperm(num_slots, generator=generator)[:num_tokens]
    if num_tokens > 1:
        slots[-1] = -1
    return slots.to(device)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    k = random_tensor((dims["T"], dims["G"], dims["D"]), dtype, device, generator)
    v = random_tensor((dims["T"], dims["G"], dims["D"]), dtype, device, generator)
    num_pages = -(-dims["T"] // dims["page_size"]) + 1
    pages = random_pages(dims["G"], dims["D"], num_pages, dims["page_size"], dtype, device, generator)
    return (k, v, pages, random_slots(dims["T"], num_pages * dims["page_size"], device, generator)), {}


CASES = (
    Case("llama-3.1-8b", {"T": 512, "G": 8, "D": 128, "page_size": 16}, {"T": 19, "G": 2, "D": 128, "page_size": 16}),
    Case("odd", {"T": 7, "G": 3, "D": 10, "page_size": 8}, {"T": 7, "G": 3, "D": 10, "page_size": 8}),
)


def _case_at(site: Site, rows: int) -> Mapping[str, Any]:
    return {**site.dims, "T": rows, "page_size": 16}


OP = Op(
    "store_kv", _label, _check, _cost, _inputs, CASES, EXACT,
    reference=_reference, observe=written, case_at=_case_at,
)  # fmt: skip
