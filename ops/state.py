"""What a model remembers of its requests: state groups, their planes and pages, and who attends to what.

Letters: T tokens of a step, B requests, P pages, S slots of a page, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch


@dataclass(frozen=True)
class Plane:
    """One named tensor of a state group: per token `shape` values of `dtype`, e.g. k: (heads, head size)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class StateGroup:
    """What layers remember of a request. Each group has a table, unit, byte cost and eviction rule of its own.

    `paged`: planes grow with the tokens, in pages; `window` > 0 means that older tokens may be evicted.
    `slot`: a fixed tensor per request (convolution and scan states, encoder outputs).
    """

    name: str
    kind: Literal["paged", "slot"]
    planes: tuple[Plane, ...]
    num_layers: int
    window: int = 0

    @property
    def token_bytes(self) -> int:
        """Bytes that one token adds over all layers of the group."""
        return self.num_layers * sum(plane.token_bytes for plane in self.planes)


@dataclass(frozen=True)
class PageLayout:
    """The order of a page plane's axes in memory: P pages, S slots, H heads, D head size ("PHSD", "PSHD")."""

    name: str

    def shape(self, plane: Plane, num_pages: int, page_size: int) -> tuple[int, ...]:
        sizes = {"P": num_pages, "S": page_size, "H": plane.shape[0], "D": plane.shape[1]}
        return tuple(sizes[letter] for letter in self.name)

    def canonical(self, plane: torch.Tensor) -> torch.Tensor:
        """A view [P, S, H, D] of a plane that lies in this order."""
        return plane.permute(*(self.name.index(letter) for letter in "PSHD"))


@dataclass(eq=False)
class Pages:
    """One layer's pages of a group: planes by name, each in `layout` with `page_size` slots a page."""

    group: StateGroup
    planes: Mapping[str, torch.Tensor]
    layout: PageLayout
    page_size: int

    def canonical(self, name: str) -> torch.Tensor:
        return self.layout.canonical(self.planes[name])


@dataclass(eq=False)
class Attending:
    """Who attends to what in one step, for one paged group: device tensors, ragged over requests.

    query_starts: [B + 1] int32, first row of each request in the step's tokens; `num_queries` bounds its longest span.
    context_lengths: [B] int32, keys of each request after this step's are stored.
    page_tables: [B, P] int32, page of each `page_size` keys.
    ancestors: [T, W] bool or None: for trees of draft tokens, whether row t may see the w-th token of its own span;
    None is the causal rule.
    """

    query_starts: torch.Tensor
    context_lengths: torch.Tensor
    page_tables: torch.Tensor
    num_queries: int
    ancestors: torch.Tensor | None = None
