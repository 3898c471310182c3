"""A model on so many devices of one kind: what it holds, how long its steps take, what an hour of it costs.

The one value that the planner's table, the fleet on the clock and the comparison with a real run stand on.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..hwprofiles.schema import Profile
from ..runtime.errors import OutOfMemory
from ..runtime.ledger import Ledger
from .calibration import Calibration
from .efficiency import Efficiency, efficiency
from .links import collectives
from .memory import Demand, kv_token_bytes, ledger, weight_bytes
from .precision import Precision
from .shards import Shard, shard
from .step_time import StepTime
from .subject import Subject


@dataclass(frozen=True)
class Deployment:
    """One replica. Bytes and tokens are of one rank (each rank keeps its part of every request), prices of all ranks.

    kv_cache_tokens: that the pages hold at once. kv_bytes_per_token: over all ranks, as a transfer would move them.
    """

    name: str
    subject: Subject
    profile: Profile
    precision: Precision
    efficiency: Efficiency
    part: Shard
    ledger: Ledger
    step_time: StepTime
    token_budget: int

    @property
    def tensor_parallel(self) -> int:
        return self.part.tensor_parallel

    @property
    def kv_cache_tokens(self) -> int:
        return self.ledger.kv_cache_tokens

    @property
    def page_size(self) -> int:
        return self.ledger.needs.page_unit

    @property
    def max_model_len(self) -> int:
        return self.ledger.max_model_len

    @property
    def max_num_seqs(self) -> int:
        return self.ledger.needs.max_num_seqs

    @property
    def weight_bytes(self) -> int:
        """Over all ranks: what a load reads."""
        return self.tensor_parallel * weight_bytes(self.part, self.precision)

    @property
    def kv_bytes_per_token(self) -> int:
        return self.tensor_parallel * kv_token_bytes(self.part, self.precision)

    @property
    def eur_per_hour(self) -> float | None:
        return self.tensor_parallel * self.profile.price.eur_per_hour if self.profile.price else None

    @property
    def watts(self) -> float | None:
        return self.tensor_parallel * self.profile.tdp_w if self.profile.tdp_w else None


def deploy(
    subject: Subject,
    profile: Profile,
    precision: Precision,
    tensor_parallel: int = 1,
    demand: Demand | None = None,
    reached: Efficiency | None = None,
    calibration: Calibration | None = None,
) -> Deployment | OutOfMemory:
    """The replica; or what is missing of one device's memory. calibration: an overlay of the profile, whose ceilings
    and shares then count. reached: these shares instead; None is what `efficiency` says of the profile.

    ConfigError: the model cannot be cut so, or the profile does not know a number that this needs.
    """
    if calibration:
        profile, reached = calibration.on(profile), reached or calibration.efficiency()
    asked, expected = demand or Demand(), reached or efficiency(profile)
    part = shard(subject.config, tensor_parallel)
    between = collectives(part, profile, expected)
    found = ledger(part, profile, precision, asked, between)
    if isinstance(found, OutOfMemory):
        return found
    name = f"{subject.name} {precision.name} on {tensor_parallel} × {profile.name}"
    time = StepTime(part.sites, profile, precision, expected, between, found.needs.prompt_sizes)
    return Deployment(name, subject, profile, precision, expected, part, found, time, asked.token_budget)
