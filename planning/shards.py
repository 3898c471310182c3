"""A model cut over devices: what one rank of a tensor-parallel group holds, and what the ranks say to one another.

Rows of the first product and columns of the second are split (Shoeybi et al., arXiv:1909.08053), so that a layer's sums
meet twice: behind the attention's product and behind the block's. A rank's share is a smaller model of the same form,
so its sites are traced like any other's. Where there are fewer key-value heads than ranks each rank keeps one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import torch

from ..ops.types import Site
from ..runtime.config import ModelConfig
from ..runtime.errors import ConfigError
from ..runtime.loading import trace
from ..runtime.model import find_model


@dataclass(frozen=True)
class Shard:
    """One rank's part of a model. config: of the part. sites: its calls. table_bytes: weights that stay in 16 bits
    whatever the format; layer_bytes: those of the layers' products, at 16 bits."""

    config: ModelConfig
    tensor_parallel: int
    sites: tuple[Site, ...]
    table_bytes: int
    layer_bytes: int

    @property
    def num_collectives(self) -> int:
        """All-reduces of a step."""
        return 2 * self.config.num_layers if self.tensor_parallel > 1 else 0


def refusal(config: ModelConfig, tensor_parallel: int) -> str | None:
    """Why the model cannot be cut so, or None."""
    for name, size in (("attention heads", config.num_heads), ("intermediate size", config.intermediate_size)):
        if size % tensor_parallel:
            return f"{tensor_parallel} ranks do not divide the {name} ({size:,})"
    heads = config.num_kv_heads
    if heads % tensor_parallel and tensor_parallel % heads:
        return f"{tensor_parallel} ranks and {heads} key-value heads do not divide one another"
    return None


def shard(config: ModelConfig, tensor_parallel: int = 1) -> Shard:
    """One rank's part. ConfigError: the model cannot be cut so, with the degrees that are possible."""
    reason = refusal(config, tensor_parallel) if tensor_parallel > 0 else "a degree is a positive number"
    if reason:
        possible = [str(each) for each in (1, 2, 4, 8, 16) if refusal(config, each) is None]
        raise ConfigError(f"{tensor_parallel} devices a replica: {reason}; possible are {', '.join(possible)}")
    return _shard(_Key(config, tensor_parallel))


@dataclass(frozen=True)
class _Key:
    """Configs hold mappings, which cannot be hashed."""

    config: ModelConfig
    tensor_parallel: int

    def __hash__(self) -> int:
        return hash((self.config.model_type, self.config.hidden_size, self.config.num_layers, self.tensor_parallel))


@lru_cache(maxsize=64)
def _shard(key: _Key) -> Shard:
    config, ranks = key.config, key.tensor_parallel
    part = replace(
        config,
        num_heads=config.num_heads // ranks,
        num_kv_heads=max(config.num_kv_heads // ranks, 1),
        intermediate_size=config.intermediate_size // ranks,
        vocabulary_size=-(-config.vocabulary_size // ranks),
    )
    model = find_model(config.model_type)
    sizes = {True: 0, False: 0}
    for each in model.parameters(part):
        is_product = len(each.shape) == 2 and each.role.startswith("layers.")
        sizes[is_product] += prod(each.shape) * part.dtype.itemsize
    with _one_thread():
        sites = trace(model, part, part.dtype)
    return Shard(part, ranks, sites, sizes[False], sizes[True])


@contextmanager
def _one_thread() -> Iterator[None]:
    """A trace fills thousands of small tensors: torch's threads wait for one another, on a busy machine for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
