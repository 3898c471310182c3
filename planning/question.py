"""What is asked of a plan: the requests, how many of them at once, how the model may be cut and stored.

ConfigError, one line, for what is no number of tokens, requests or devices, or contradicts itself: by the names that
the command gives its options.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..hwprofiles.schema import Profile
from ..runtime.errors import ConfigError
from ..runtime.options import Options, token_budget
from .memory import Demand
from .point import Load

_MOST = {"input_len": 1 << 24, "output_len": 1 << 24, "context": 1 << 24, "concurrency": 1 << 16,
         "max_num_seqs": 1 << 16, "token_budget": 1 << 20, "tensor_parallel": 1 << 10}  # fmt: skip
_MAX_NUM_SEQS = 512
_LEAST_RATE = 1e-6


@dataclass(frozen=True)
class Question:
    """load: of each request. context: the longest request, in tokens; None: the load's. concurrency: requests of that
    length whose keys must be held at once. tensor_parallel: the only degree to consider; None: 1, 2, 4 and 8.
    max_num_seqs: slots of the engine; None: 512 (an engine that is not asked has 64), or as many as are asked to run.
    token_budget: of a step; None: the engine's on that device. load_gb_per_s: at which weights are
    read from a disk or over a network."""

    load: Load = field(default_factory=Load)
    context: int | None = None
    concurrency: int = 32
    kv_format: str = "bf16"
    tensor_parallel: int | None = None
    max_num_seqs: int | None = None
    token_budget: int | None = None
    load_gb_per_s: float = 1.25

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in _MOST if name not in ("input_len", "output_len")}
        numbers |= {"input_len": self.load.input_len, "output_len": self.load.output_len}
        for name, value in numbers.items():
            if value is not None and not 1 <= value <= _MOST[name]:
                raise ConfigError(f"{_option(name)} is {value:,}: it is from 1 to {_MOST[name]:,}")
        if not _LEAST_RATE <= self.load_gb_per_s < float("inf"):
            raise ConfigError(f"--load-gb-per-s is {self.load_gb_per_s:g}: it is a rate from {_LEAST_RATE:g}, as 1.25")
        if self.context is not None and self.context < self.load.longest:
            raise ConfigError(
                f"--context is {self.context:,}, but requests grow to {self.load.longest:,} tokens (--input-len "
                "+ --output-len): ask for a longer context or for shorter requests"
            )
        if self.max_num_seqs is not None and self.max_num_seqs < self.concurrency:
            raise ConfigError(
                f"--concurrency is {self.concurrency:,}, but --max-num-seqs lets {self.max_num_seqs:,} run at once: "
                "raise it, or leave it out"
            )

    @property
    def longest(self) -> int:
        return self.context or self.load.longest

    @property
    def slots(self) -> int:
        return self.max_num_seqs or max(_MAX_NUM_SEQS, self.concurrency)

    @property
    def demand(self) -> Demand:
        return Demand(self.longest, self.concurrency, self.slots, self.token_budget or Demand.token_budget)

    def on(self, profile: Profile) -> Question:
        """With what is not asked as an engine on that device would have it."""
        return replace(self, token_budget=self.token_budget or token_budget(Options(), profile))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
