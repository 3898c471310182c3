"""What the ranks of a tensor-parallel group lose to one another: two all-reduces a layer, and the logits gathered.

A ring moves 2 (n - 1) / n of a tensor over each rank's link, one way each (Patarasuk and Yuan, JPDC 69, 2009); on top
comes a latency for each call, which is all that a decode step's small tensors cost. A profile's link is the sum of both
directions.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..hwprofiles.schema import Profile
from .efficiency import Efficiency
from .shards import Shard

_PCIE_GB_PER_S = 128.0
"""PCIe 5 x16, both ways: between devices whose profile names no link."""


@dataclass(frozen=True)
class Collectives:
    """bytes_per_s: that one rank sends. row_bytes: of one row's tensor; logit_bytes: of a row of logits, one rank's."""

    ranks: int
    num_all_reduces: int
    row_bytes: int
    logit_bytes: int
    bytes_per_s: float
    latency_s: float

    def seconds(self, rows: int, num_logits: int) -> float:
        moved = 2 * (self.ranks - 1) / self.ranks * rows * self.row_bytes * self.num_all_reduces
        gathered = (self.ranks - 1) * num_logits * self.logit_bytes
        return (moved + gathered) / self.bytes_per_s + (self.num_all_reduces + 1) * self.latency_s

    def buffer_bytes(self, rows: int, num_logits: int) -> int:
        """What a rank keeps to send and to receive: a tensor of a step twice, and all logits."""
        return 2 * rows * self.row_bytes + self.ranks * num_logits * self.logit_bytes


def collectives(part: Shard, profile: Profile, efficiency: Efficiency) -> Collectives | None:
    """Of a shard's ranks; None for a single one."""
    if part.tensor_parallel == 1:
        return None
    both_ways = profile.link.gb_per_s_bidirectional if profile.link else _PCIE_GB_PER_S
    return Collectives(
        ranks=part.tensor_parallel,
        num_all_reduces=part.num_collectives,
        row_bytes=part.config.hidden_size * part.config.dtype.itemsize,
        logit_bytes=4 * part.config.vocabulary_size,
        bytes_per_s=both_ways / 2 * 1e9 * efficiency.link_share,
        latency_s=efficiency.link_us * 1e-6,
    )
