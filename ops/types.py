"""The shared words of the house: what ops, kernels, formats and backends say to one another.

Nothing here computes a model. Floor 2 holds these types because the three peers of floor 3 (kernels, formats,
backends) need them and may not import one another.

Letters used for axes in this part: T tokens of a step, B requests, V vocabulary, D hidden, K contraction, N outputs,
H heads, G key-value heads, S slots of a page, P pages, A position axes, R rotated half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import torch

from .state import StateGroup

Scalar = int | float | bool | str | None

ReasonCode = Literal[
    "language_missing",  # the kernel's language is not installed here, or the profile has none such
    "backend",  # the kernel is tied to a vendor's library that this profile has not
    "arch",  # the device lacks a capability that the kernel needs
    "dtype",  # an operand's dtype is not among those that the kernel takes
    "format",  # a weight's storage format is not among those that the kernel reads
    "dialect",  # FP8 of the wrong dialect
    "layout",  # a weight or page layout that another site of the same tensor needs
    "page_size",
    "on_chip_bytes",  # its tile does not fit the device's memory per block
    "shape",  # a size that the kernel does not take
    "rows",  # more rows than the kernel is made for
    "policy",  # refused by what the user asked for
    "determinism",  # the kernel does not promise the level that was asked for
    "launch",  # launch parameters that the kernel does not have, or does not offer here
]


@dataclass(frozen=True)
class Reason:
    """Why a kernel cannot serve a site: a code for programs, a sentence for people."""

    code: ReasonCode
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class Determinism(StrEnum):
    """How far a kernel's bits can be relied on. `BATCH` contains `RUN`, which contains `NONE`."""

    NONE = "none"
    RUN = "run"  # same inputs, same batch: same bits
    BATCH = "batch"  # a request's bits do not depend on what else is in the batch

    def covers(self, wanted: Determinism) -> bool:
        order = list(Determinism)
        return order.index(self) >= order.index(wanted)


class Dialect(StrEnum):
    """The bit meaning of an FP8 tensor. Mixing dialects is an error at load."""

    E4M3FN = "e4m3fn"
    E4M3FNUZ = "e4m3fnuz"
    MX = "mx"


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def accumulator(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype a reference computes in: at least float32, float64 where an operand is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


@dataclass(frozen=True)
class Layout:
    """How a logical [N, K] weight lies in memory.

    `storage_shape(shape, dtype)` is the shape of the stored tensor; `pack(storage, row0, rows)` writes logical rows
    `[row0, row0 + len(rows))` into it (row0 is a multiple of `row_multiple`), so that a checkpoint streams from the
    file into place; `unpack(storage, shape)` gives the logical tensor back.
    """

    name: str
    storage_shape: Callable[[tuple[int, ...], torch.dtype], tuple[int, ...]]
    pack: Callable[[torch.Tensor, int, torch.Tensor], None]
    unpack: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]
    row_multiple: int = 1

    def __repr__(self) -> str:
        return f"Layout({self.name})"


@dataclass(frozen=True)
class Format:
    """How a weight's numbers are stored: which tensors hold them, how rows are written, what they mean.

    tensors(shape, dtype, layout): name -> (shape, dtype) of each tensor to allocate for a logical weight.
    write_rows(weight, row0, rows): stores logical rows `[row0, row0 + len(rows))`, quantizing where the format does.
    logical(weight): the logical tensor, dequantized: what every op's reference reads.
    """

    name: str
    tensors: Callable[[tuple[int, ...], torch.dtype, Layout], Mapping[str, tuple[tuple[int, ...], torch.dtype]]]
    write_rows: Callable[[Weight, int, torch.Tensor], None]
    logical: Callable[[Weight], torch.Tensor]

    def __repr__(self) -> str:
        return f"Format({self.name})"


def _write_values(weight: Weight, row0: int, rows: torch.Tensor) -> None:
    weight.layout.pack(weight.values, row0, rows)


DENSE = Format(
    "dense",
    lambda shape, dtype, layout: {"values": (layout.storage_shape(shape, dtype), dtype)},
    _write_values,
    lambda weight: weight.layout.unpack(weight.values, weight.shape),
)
"""The values themselves, in the weight's dtype and layout."""


@dataclass(eq=False)
class Weight:
    """A parameter as kernels see it: tensors, how they are stored, and what they mean.

    `role` names the parameter without its layer ("layers.*.qkv"): weights of one role share a site and a layout.
    `tensors` holds `values` for the dense format; other formats have theirs (codes, scales, zeros, index).
    Format, dialect and layout are fields that predicates read; they never enter an op's name.
    """

    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: Layout
    tensors: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    format: Format = DENSE
    dialect: Dialect | None = None
    shard: str | None = None
    """Mesh axis over which the rows (`row:tp`) or columns (`column:tp`) are split, if any."""
    adapters: str | None = None
    """Name of the adapter table whose rows a batch's adapter slots select, if any."""

    @cached_property
    def values(self) -> torch.Tensor:
        return self.tensors["values"]

    def logical(self) -> torch.Tensor:
        """The weight as its logical [N, K] (or [N]) tensor, whatever the layout and format."""
        return self.format.logical(self)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


@dataclass(frozen=True)
class Work:
    """The dynamic sizes of one step, from which a site's cost follows in closed form.

    `rows`: rows of the site's first operand (tokens, or positions that yield logits); `context_tokens`: keys read,
    summed over requests; `pairs`: (query, key) pairs attended, summed over requests.
    """

    rows: int
    num_requests: int = 1
    context_tokens: int = 0
    pairs: int = 0


@dataclass(frozen=True)
class Cost:
    """What must happen however good the kernel is: bytes that must move, operations at `dtype`'s rate."""

    num_bytes: int
    num_operations: int
    dtype: torch.dtype

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.num_bytes + other.num_bytes, self.num_operations + other.num_operations, self.dtype)


@dataclass(frozen=True)
class WeightSpec:
    """What a site knows of a weight operand: enough to choose a kernel, a layout, and to count bytes."""

    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    format: str
    num_bytes: int


@dataclass(frozen=True)
class Site:
    """One call of an op in a model: everything static about it. `num_layers` counts the layers that repeat it.

    `label` is the role of its weight or the name of its state group; `(op, label)` is unique in a model.
    `rows` says what the first operand's rows count: tokens if they do in any layer; `num_logit_layers` of the layers
    look at the rows that yield logits alone, as those behind a model's last attention may.
    `weights` are the weight operands that have a layout to settle.
    """

    op: str
    label: str
    dims: Mapping[str, Scalar]
    dtypes: Mapping[str, torch.dtype]
    rows: Literal["tokens", "logits"] = "tokens"
    weights: tuple[WeightSpec, ...] = ()
    group: StateGroup | None = None
    shard: str | None = None
    num_layers: int = 1
    parts: tuple[Site, ...] = ()
    num_logit_layers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", MappingProxyType(dict(self.dims)))
        object.__setattr__(self, "dtypes", MappingProxyType(dict(self.dtypes)))

    @property
    def name(self) -> str:
        return f"{self.op}@{self.label}"

    def dim(self, name: str) -> int:
        """The static size `name` as an integer; KeyError if the op has no such size."""
        value = self.dims[name]
        assert isinstance(value, int)
        return value

    @property
    def weight_bytes(self) -> int:
        return sum(weight.num_bytes for weight in self.weights)

    @property
    def signature(self) -> tuple[Any, ...]:
        """A hashable value: equal for two calls that a binding may treat as one."""
        parts = tuple(part.signature for part in self.parts)
        dims = tuple(sorted(self.dims.items()))
        dtypes = tuple((name, dtype_name(dtype)) for name, dtype in sorted(self.dtypes.items()))
        return (self.op, self.label, dims, dtypes, self.weights, self.group, self.shard, parts)

    def plain(self) -> dict[str, Any]:
        """The site as JSON-able values, as printed by `explain` and hashed into the manifest."""
        return {
            "op": self.op,
            "label": self.label,
            "dims": dict(self.dims),
            "dtypes": {name: dtype_name(dtype) for name, dtype in self.dtypes.items()},
            "rows": self.rows,
            "formats": sorted({weight.format for weight in self.weights}),
            "group": self.group.name if self.group else None,
            "shard": self.shard,
            "num_layers": self.num_layers,
        }


@dataclass(frozen=True)
class Mesh:
    """The devices of a replica by axis: tp (tensor), pp (pipeline), ep (expert), dp (data); and this rank's place.

    One device is the mesh with every size 1. Collectives over an axis are ops; their kernels find the process group
    of the axis in `groups`.
    """

    sizes: Mapping[str, int] = field(default_factory=lambda: {"tp": 1, "pp": 1, "ep": 1, "dp": 1})
    ranks: Mapping[str, int] = field(default_factory=lambda: {"tp": 0, "pp": 0, "ep": 0, "dp": 0})
    groups: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def size(self, axis: str) -> int:
        return self.sizes[axis]


ONE_DEVICE = Mesh()
