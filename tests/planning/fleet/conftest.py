"""A replica with round numbers, and fleets of it: what the tests of the fleet run on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ambidex.hwprofiles.reader import load
from ambidex.hwprofiles.schema import Profile
from ambidex.planning.fleet.build import assemble
from ambidex.planning.fleet.measures import measures
from ambidex.planning.fleet.scenario import Scenario, parse
from ambidex.planning.fleet.simulation import Outcome, Simulation
from ambidex.planning.fleet.workload import draw_workload


@dataclass(frozen=True)
class Linear:
    """A step takes its weights, then each token, then each key that is read."""

    step_s: float = 0.01
    token_s: float = 1e-4
    key_s: float = 1e-8

    def seconds(self, first: np.ndarray, count: np.ndarray, num_logits: int) -> float:
        return self.step_s + self.token_s * float(count.sum()) + self.key_s * float(first.sum())

    def decode_seconds(self, first: np.ndarray, num_steps: int) -> np.ndarray:
        alone = np.ones(len(first), dtype=np.int64)
        return np.array([self.seconds(first + each, alone, len(first)) for each in range(num_steps)])


@dataclass(frozen=True)
class Round:
    """A replica in round numbers."""

    name: str = "round"
    profile: Profile = load("nvidia-h100-sxm")  # noqa: RUF009  (frozen, and read once)
    tensor_parallel: int = 1
    step_time: Linear = Linear()
    kv_cache_tokens: int = 4096
    page_size: int = 16
    max_model_len: int = 512
    max_num_seqs: int = 8
    token_budget: int = 128
    eur_per_hour: float | None = 3.6
    weight_bytes: int = 10**9
    kv_bytes_per_token: int = 1000


def scenario(**changes: Any) -> Scenario:
    """40 small requests on two workers, with these fields instead."""
    fields: dict[str, Any] = {
        "about": "a test",
        "requests": 40,
        "traffic": {
            "arrivals": {"kind": "poisson", "rate_per_s": 20},
            "input_tokens": {"kind": "uniform", "min_tokens": 1, "max_tokens": 200},
            "output_tokens": {"kind": "uniform", "min_tokens": 1, "max_tokens": 60},
        },
        "fleets": [{"name": "a", "params": "8B", "workers": [{"profile": "x", "workers": 2}]}],
        "slo": {"ttft_ms": 500, "tpot_ms": 50},
        "loading": {"gb_per_s": 1.0, "start_s": 1.0},
    }
    return parse({**fields, **changes}, "test.yaml")


SPLIT = {
    "name": "a", "params": "8B", "link": {"gb_per_s": 0.001, "latency_ms": 2},
    "workers": [{"profile": "x", "role": "prefill", "workers": 2}, {"profile": "x", "role": "decode", "workers": 2}],
}  # fmt: skip


def simulation(chosen: Scenario, replica: Round | None = None) -> Simulation:
    """Every worker is the same replica."""
    count = chosen.requests or 0
    workload = draw_workload(chosen.traffic, count, chosen.seed, [each.share for each in chosen.fleets], Path())
    replicas = [[replica or Round() for _ in fleet.workers] for fleet in chosen.fleets]
    return assemble(chosen, replicas, workload)


def run(chosen: Scenario, replica: Round | None = None) -> tuple[Outcome, dict[str, Any]]:
    outcome = simulation(chosen, replica).run()
    return outcome, measures(chosen, outcome)


class Kit:
    """The above, for tests (files of tests do not import one another)."""

    Round, Linear, SPLIT = Round, Linear, SPLIT
    scenario, simulation, run = staticmethod(scenario), staticmethod(simulation), staticmethod(run)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit
