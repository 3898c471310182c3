"""The deployment that stands for an engine which was decided here: what is laid beside a measurement.

It follows from the config and the profile like any other plan; of the engine it takes its options alone.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from ..hwprofiles.records import RATE_OF_DTYPE
from ..ops.types import dtype_name
from ..runtime.ledger import Ledger
from ..runtime.options import token_budget
from ..runtime.start import Decisions
from .calibration import Calibration
from .deployment import Deployment
from .efficiency import efficiency
from .memory import Demand, needs
from .precision import Precision
from .shards import shard
from .step_time import StepTime
from .subject import Subject


def present(decided: Decisions, calibration: Calibration | None) -> Deployment:
    """ConfigError: the profile knows no bandwidth or rate, and no calibration tells it; or the overlay is another's."""
    profile = calibration.on(decided.profile) if calibration else decided.profile
    expected = efficiency(profile, calibration.efficiency() if calibration else None)
    part, form = shard(decided.config), precision_of(decided)
    name = f"{decided.config.model_type} on {profile.name}"
    memory = _ledger(decided, form)
    step_time = StepTime(part.sites, profile, form, expected, prompt_sizes=memory.needs.prompt_sizes)
    num_parameters = sum(prod(each.shape) for each in decided.parameters)
    return Deployment(
        name, Subject(name, decided.config, num_parameters), profile, form, expected, part, memory, step_time,
        token_budget(decided.options, profile),
    )  # fmt: skip


def precision_of(decided: Decisions) -> Precision:
    """Bits as the model has them, the rate of its dtype."""
    rate = RATE_OF_DTYPE[dtype_name(decided.dtype)]
    return Precision(rate, 16.0, rate, 16)


def _ledger(decided: Decisions, form: Precision) -> Ledger:
    """What the plan says of the engine's memory at the length and size of the cache that it was given."""
    options, own = decided.options, decided.ledger
    budget = token_budget(options, decided.profile)
    demand = Demand(own.max_model_len, max_num_seqs=options.max_num_seqs, token_budget=budget,
                    prompt_graphs=options.prompt_graphs)  # fmt: skip
    found = needs(shard(decided.config), decided.profile, form, demand)
    has_graphs = found.has_graphs and options.graphs is not False
    kept = replace(found, has_graphs=has_graphs, kv_cache_tokens=own.kv_cache_tokens)
    return Ledger(kept, own.budget, own.max_model_len, own.kv_cache_tokens, own.limit)
