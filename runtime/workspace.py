"""What a step needs besides weights and state, in bytes: activations, logits, the sampler, kernels' own copies.

Predicted from the bound sites' costs, which count what a row reads and writes: what is written as if nothing of it were
freed before the end of a layer, and what is read once more, for kernels that keep their operand in an order of their
own and for what an allocator does not give back. A reference computes in float32: it takes that beside its operands,
and its weight in float32 as well. A bound from above for devices whose kernels copy nothing.

Not seen, as a kernel does not say it: pages that are gathered before they are attended to (torch's kernel does so), and
the partial sums of keys that are split and of products' shares of K (Triton's; of an H200 at most some 50 MB, of an
MI300X 80).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil, prod

import torch

from ..ops.bound import BoundSite
from ..ops.discovery import kernels
from ..ops.discovery import ops as all_ops
from ..ops.types import Site, Work

_COPIES_IN, _COPIES = {"torch": 10, "triton": 3}, 2
"""Rows of float32 logits that the sampler holds beside its input where rows are drawn, filtered, penalized and masked
in one step: 8.1 (`sample_torch`) and 9.6 (the reference) were seen; Triton's counts tokens and lists values and tokens;
a kernel of another language keeps what is allowed, and an order of it. tests/runtime/test_workspace.py looks again."""
PENALTY_TOKEN_BYTES = 20
"""For each token of a row's text where it is penalized: the id, and three masks in float32."""

_INDEX_BYTES = 96  # slots, positions, ids, page slots of a token and what they are made of: twelve int64
_UNIT = 1024


@dataclass(frozen=True)
class StepNeeds:
    """row_bytes: of a token. logits_bytes: of a row that yields logits. sampler_copies: of such a row, beside it.
    fixed_bytes: whatever the step's size."""

    row_bytes: int
    logits_bytes: int
    sampler_copies: int = 0
    fixed_bytes: int = 0


def step_needs(sites: Iterable[BoundSite], vocabulary_size: int) -> StepNeeds:
    """Of a step of the model whose sites these are."""
    sites = tuple(sites)
    served = [each for site in sites for each in _served(site)]
    rows = [_row_bytes(site, by_reference=by_reference) for site, by_reference in served if site.rows == "tokens"]
    upcast = [4 * prod(weight.shape) for site, by_reference in served if by_reference for weight in site.weights]
    row_bytes = _INDEX_BYTES + ceil(sum(rows)) + max(map(_scratch_row_bytes, sites), default=0)
    copies = max((_sampler_copies(site) for site in sites if site.site.op == "sample"), default=0)
    return StepNeeds(row_bytes, torch.float32.itemsize * vocabulary_size, copies, max(upcast, default=0))


def _sampler_copies(bound: BoundSite) -> int:
    found = kernels()
    languages = [found[each.chosen].language if each.chosen in found else "torch" for each in bound.choices]
    return max(_COPIES_IN.get(language, _COPIES) for language in languages)


def _scratch_row_bytes(bound: BoundSite) -> int:
    """Of the kernel that takes most for itself: what one has used serves the next."""
    found = kernels()
    own = [
        kernel.scratch_row_bytes(bound.site, choice.launch) for choice in bound.choices
        if (kernel := found.get(choice.chosen)) and kernel.scratch_row_bytes
    ]  # fmt: skip
    return max([*own, *map(_scratch_row_bytes, bound.parts)], default=0)


def _served(bound: BoundSite) -> Iterator[tuple[Site, bool]]:
    """The sites that run, each with whether a reference serves any of its rows."""
    if bound.parts:
        for part in bound.parts:
            yield from _served(part)
    else:
        yield bound.site, any(choice.chosen == "reference" for choice in bound.choices)


def _row_bytes(site: Site, *, by_reference: bool) -> float:
    """What one row of one layer reads and writes; the weight is read whatever the rows."""
    cost = all_ops()[site.op].cost
    moved = (cost(site, Work(_UNIT, 0, 0, 0)).num_bytes - cost(site, Work(0, 0, 0, 0)).num_bytes) / _UNIT
    return moved * (1 + 4 / site.dtypes["x"].itemsize) if by_reference else moved
