"""Where the memory of one rank goes, in bytes, before anything is rented: the engine's own ledger on a planned shard.

The formulas are those of `runtime.ledger`, by which an engine allocates; here weights and keys have the planned bits,
and what ranks send one another is set aside first. What the profile's kernels ask of pages and workspace comes from a
binding where the profile has a backend; elsewhere (no kernels yet) pages of 64 tokens and the sites' bytes stand in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ..backends.choosing import found
from ..hwprofiles.schema import Profile
from ..ops.binding import Binding, bind
from ..ops.bound import BoundSite
from ..ops.layouts import PAGES_PHSD
from ..ops.state import StateGroup
from ..ops.support import PageDemand
from ..ops.types import Site
from ..runtime.budget import GIB, Budget
from ..runtime.errors import ConfigError, OutOfMemory
from ..runtime.ledger import Ledger, Needs, fit
from ..runtime.model import find_model
from ..runtime.options import Options, policy
from ..runtime.workspace import StepNeeds, step_needs
from .links import Collectives
from .precision import Precision
from .shards import Shard

_PAGE_SIZE = 64
_MEMORY_SHARE = {"hbm": 0.92, "dram": 0.5}
"""Of what is free, as `runtime.budget` takes it unasked."""


@dataclass(frozen=True)
class Demand:
    """What is asked of an engine. context: tokens of the longest request; None: the longest that fits. concurrency:
    requests of that length whose keys must be held at once. prompt_graphs: as of `runtime.options`."""

    context: int | None = None
    concurrency: int = 1
    max_num_seqs: int = 512
    token_budget: int = 2048
    memory_share: float | None = None
    prompt_graphs: bool = True


def kv_groups(part: Shard, precision: Precision) -> tuple[StateGroup, ...]:
    """The state groups of a shard, their planes in the planned bits."""
    groups = find_model(part.config.model_type).groups(part.config)
    if precision.kv_bits != 8:
        return groups
    planes = {group.name: tuple(replace(each, dtype=torch.float8_e4m3fn) for each in group.planes) for group in groups}
    return tuple(replace(group, planes=planes[group.name]) for group in groups)


def kv_token_bytes(part: Shard, precision: Precision) -> int:
    """Bytes that one token of context takes on one rank, over all layers."""
    return sum(group.token_bytes for group in kv_groups(part, precision))


def weight_bytes(part: Shard, precision: Precision) -> int:
    """Of one rank's weights."""
    return part.table_bytes + int(part.layer_bytes * precision.weight_share)


def usable_budget(profile: Profile, demand: Demand, collectives: Collectives | None) -> Budget:
    """What an engine may take of one device, less the buffers of its collectives. ConfigError: the memory is a host's,
    which only the host knows."""
    usable = profile.memory.usable_gib
    if usable is None:
        raise ConfigError(f"{profile.name} has its host's memory: run `ambidex plan` on such a machine")
    free = int(usable * GIB)
    share = demand.memory_share or _MEMORY_SHARE.get(profile.memory.kind, 0.92)
    buffers = collectives.buffer_bytes(demand.token_budget, demand.max_num_seqs) if collectives else 0
    return Budget(int(free * share) - buffers, free, f"{share:.0%} of {usable:g} GiB")


def needs(part: Shard, profile: Profile, precision: Precision, demand: Demand) -> Needs:
    """What the ledger follows from."""
    pages, step = _of_kernels(part, profile)
    is_accelerator = profile.memory.kind != "dram"
    backend = found().get(profile.backend or "")
    return Needs(
        weight_bytes=weight_bytes(part, precision),
        weights=precision.name,
        groups=kv_groups(part, precision),
        page_demands=pages,
        step=step,
        max_model_len=demand.context or part.config.max_positions,
        is_length_asked=demand.context is not None,
        kv_cache_tokens=None,
        max_num_seqs=demand.max_num_seqs,
        max_num_batched_tokens=demand.token_budget,
        has_graphs=backend.captures if backend else is_accelerator,
        has_columns=not is_accelerator,
        is_pool_shared=is_accelerator,
        has_prompt_graphs=demand.prompt_graphs,
    )


def ledger(
    part: Shard, profile: Profile, precision: Precision, demand: Demand, collectives: Collectives | None
) -> Ledger | OutOfMemory:
    """The decisions of an engine about its memory; or what is missing."""
    try:
        return fit(needs(part, profile, precision, demand), usable_budget(profile, demand, collectives))
    except OutOfMemory as shortage:
        return shortage


def _of_kernels(part: Shard, profile: Profile) -> tuple[Mapping[str, PageDemand], StepNeeds]:
    """Pages and workspace as the profile's kernels ask for them."""
    return _bound(_Bound(part, profile))


@dataclass(frozen=True)
class _Bound:
    part: Shard
    profile: Profile

    def __hash__(self) -> int:
        return hash((self.part.tensor_parallel, self.part.layer_bytes, self.profile))


@lru_cache(maxsize=128)
def _bound(key: _Bound) -> tuple[Mapping[str, PageDemand], StepNeeds]:
    part, profile = key.part, key.profile
    binding = _binding(part.sites, profile)
    if binding is None:
        groups = find_model(part.config.model_type).groups(part.config)
        sites = tuple(BoundSite(site, (), ()) for site in part.sites if site.op != "sample")
        return {group.name: PageDemand(PAGES_PHSD, _PAGE_SIZE) for group in groups}, step_needs(
            sites, part.config.vocabulary_size
        )
    return binding.page_demands, step_needs(binding.sites, part.config.vocabulary_size)


def _binding(sites: tuple[Site, ...], profile: Profile) -> Binding | None:
    if profile.backend is None or profile.backend not in found():
        return None
    return bind(sites, profile, policy(Options(), profile), missing={})
