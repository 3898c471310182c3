"""The contract of an op and of a kernel. One file an op in this folder, one file a kernel in `kernels/<language>/`.

An op is its *meaning*: validation, a plain torch function in at least float32 (or its `parts`, for a composite), its
cost as a closed form, its named cases and its tolerance. A kernel is one *implementation* of it, which declares what
it needs and promises, and says why where it cannot serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from ..hwprofiles.schema import Profile
from .layouts import PAGES_PHSD, PAGES_PSHD, ROW_MAJOR
from .state import PageLayout, StateGroup
from .types import Cost, Determinism, Layout, Reason, Scalar, Site, Weight, Work

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments and keyword parameters of one call."""

Launch = Mapping[str, Any]
"""Launch parameters of a kernel: tile sizes, instruction level, warps."""

FALLBACKS = ("allow", "warn", "forbid")


@dataclass(frozen=True)
class Signature:
    """What the validation of a call's arguments finds out: its static side, and what it returns."""

    dims: Mapping[str, Scalar]
    dtypes: Mapping[str, torch.dtype]
    outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    weights: tuple[Weight, ...] = ()
    group: StateGroup | None = None


@dataclass(frozen=True)
class Case:
    """A named shape taken from a real model, and its small twin for the proofs that are slow.

    The twin keeps head size, ratios, page size, dtype and odd remainders; `dims` are what the op's `inputs` takes.
    """

    name: str
    dims: Mapping[str, Any]
    twin: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name


def _own_sizes(site: Site, rows: int) -> Mapping[str, Any]:
    return {**site.dims, "T": rows}


def _returned(result: Any, args: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@dataclass(frozen=True)
class Op:
    """What is computed. Exactly one of `reference` and `parts` is given.

    label(*args, **params): names the call site: the role of its weight or the name of its state group.
    check(*args, **params): validates (ValueError: what was given and what would do) and returns the `Signature`;
        it reads shapes and dtypes only, so it also serves meta tensors.
    reference(*args, **params): the meaning, computed in at least float32, returned in the operands' dtype.
    parts(ops, *args, **params): the same computation as calls of other ops. has_glue: they compute between the calls
        too, so that the times of those ops do not add up to theirs.
    cost(site, work): bytes that must move and operations.
    inputs(dims, dtype, device, generator): arguments of a case.
    tolerance: by dtype, the largest |y - reference| allowed, relative to the largest |reference|.
    determinism: what the reference promises.
    case_at(site, rows): the dims of a case like the site, with so many rows; by default its own sizes and `T`.
    observe(result, args): the tensors that conformance compares (the result, or what the call wrote).
    row_axis: the axis of the first operand along which rows are counted (buckets, and `Work.rows`).
    """

    name: str
    label: Callable[..., str]
    check: Callable[..., Signature]
    cost: Callable[[Site, Work], Cost]
    inputs: Callable[[Mapping[str, Any], torch.dtype, torch.device, torch.Generator], Arguments]
    cases: tuple[Case, ...]
    tolerance: Mapping[torch.dtype, float]
    reference: Callable[..., Any] | None = None
    parts: Callable[..., Any] | None = None
    determinism: Determinism = Determinism.BATCH
    observe: Callable[[Any, tuple[Any, ...]], tuple[torch.Tensor, ...]] = _returned
    row_axis: int = 0
    has_glue: bool = False
    case_at: Callable[[Site, int], Mapping[str, Any]] = _own_sizes

    def __post_init__(self) -> None:
        assert (self.reference is None) != (self.parts is None), f"{self.name}: a reference or parts, not both"

    @property
    def proofs(self) -> tuple[Case, ...]:
        """The cases with a twin of their own: shapes of one form share a twin, which is proved once."""
        return tuple(case for at, case in enumerate(self.cases) if all(case.twin != b.twin for b in self.cases[:at]))


@dataclass(frozen=True)
class Kernel:
    """One implementation of an op.

    run(*args, **params, **launch): the op's own signature; launch parameters come from `launch(site, profile, bucket)`.
    determinism: what it promises. One that promises BATCH sums a row in one order, whatever lies beside it, if launched
    alike; where BATCH is wanted, one launch serves all buckets.
    dtypes: of the site's main operand `x`. needs: capabilities that the profile must have.
    layout: in which its weights are to lie. page_layouts, page_sizes: pages that it accepts (multiples of 1 if empty).
    priority: among those that can serve, the highest is taken; where several have measured rows, the fastest of those.
    refuses(site, profile, bucket): a further reason not to serve rows up to `bucket`, or None.
    launch: the default, derived from the profile; it fits wherever the kernel serves.
    on_chip_bytes(launch): memory per block that a launch takes, checked against the profile.
    configurations(site, profile, bucket): launches worth timing there, with the parameters that `launch` has; one that
        does not fit the profile's memory is skipped.
    refuses_launch(site, profile, launch): a further reason not to launch so, or None: asked of launches that come from
        a measured row of another site or device. A kernel of devices with memory per block that gives neither this nor
        `on_chip_bytes` gets no launch but those that it offers.
    scratch_row_bytes(site, launch): what it takes for itself while it runs, a row of its call, beyond a copy of x.
    """

    name: str
    op: str
    language: str
    run: Callable[..., Any]
    dtypes: frozenset[torch.dtype]
    determinism: Determinism
    priority: int
    needs: frozenset[str] = frozenset()
    formats: frozenset[str] = frozenset({"dense"})
    layout: Layout = ROW_MAJOR
    page_layouts: tuple[PageLayout, ...] = (PAGES_PHSD, PAGES_PSHD)
    page_sizes: tuple[int, ...] = ()
    max_rows: int | None = None
    refuses: Callable[[Site, Profile, int], Reason | None] | None = None
    launch: Callable[[Site, Profile, int], Launch] | None = None
    on_chip_bytes: Callable[[Launch], int] | None = None
    configurations: Callable[[Site, Profile, int], Iterable[Launch]] | None = None
    refuses_launch: Callable[[Site, Profile, Launch], Reason | None] | None = None
    scratch_row_bytes: Callable[[Site, Launch], int] | None = None


@dataclass(frozen=True)
class Policy:
    """What the user asks of a binding.

    choices: site name (`linear@lm_head`) or op name -> kernel name, `reference` or `parts`: a promise, met or an error;
        a kernel's launch parameters may be chosen with it: `linear_triton{block_n=64}`.
    fallback: may a reference stand in where no kernel serves: `allow`, `warn` (a line in `Binding.warnings`), `forbid`.
    ValueError: an unknown fallback, no page size, buckets that do not rise.
    """

    determinism: Determinism = Determinism.RUN
    fallback: str = "allow"
    choices: Mapping[str, str] = field(default_factory=dict[str, str])
    page_sizes: tuple[int, ...] = (16, 32, 64, 128)
    buckets: tuple[int, ...] = (1, 8, 16, 32, 64, 128, 256, 512, 768)
    """Upper bounds of the token buckets; a last, unbounded one follows."""

    def __post_init__(self) -> None:
        if self.fallback not in FALLBACKS:
            raise ValueError(f"fallback is {self.fallback!r}, it must be one of {', '.join(FALLBACKS)}")
        if not self.page_sizes or min(self.page_sizes) < 1:
            raise ValueError(f"page_sizes are {self.page_sizes}, they must be positive, and at least one")
        if any(low >= high for low, high in pairwise((0, *self.buckets))):
            raise ValueError(f"buckets are {self.buckets}, they must be positive and rise")
