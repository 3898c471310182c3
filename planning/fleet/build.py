"""From a scenario to a simulation: the models read, their workers planned, the requests drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...hwprofiles.reader import load
from ...runtime.errors import ConfigError, OutOfMemory
from ..deployment import Deployment, deploy
from ..memory import Demand
from ..precision import precision
from ..subject import Subject, read_subject, sized_subject
from .failing import Failing
from .fleet import Fleet
from .footprint import check_footprint
from .group import Group
from .routing import policy
from .scaling import Scaler
from .scenario import FleetSpec, Scenario, Workers
from .simulation import Simulation
from .stage import Stage
from .trace import read_trace
from .worker import Replica
from .workload import Workload, draw_workload

_ROLES = ("serve", "prefill", "decode")
_STRETCHES = 60


def build(scenario: Scenario, folder: Path, replicas: Sequence[Sequence[Replica]] | None = None) -> Simulation:
    """Ready to run. replicas: of `plan_replicas`, where they are planned already. Errors: its own, a trace's,
    and that of `check_footprint`."""
    kinds, count = replicas or plan_replicas(scenario), _count(scenario, folder)
    check_footprint(scenario, kinds, count)
    shares = [fleet.share for fleet in scenario.fleets]
    return assemble(scenario, kinds, draw_workload(scenario.traffic, count, scenario.seed, shares, folder))


def plan_replicas(scenario: Scenario) -> list[list[Deployment]]:
    """Of each fleet, one a kind of its workers. ConfigError, OutOfMemory, ModelNotFound, ProfileError: what cannot be,
    with the fleet's name."""
    return [[planned(fleet, workers) for workers in fleet.workers] for fleet in scenario.fleets]


def planned(fleet: FleetSpec, workers: Workers) -> Deployment:
    """One replica of these workers."""
    profile = load(workers.profile)
    wanted = precision(workers.precision, profile, workers.kv_precision)
    if isinstance(wanted, str):
        raise ConfigError(f"fleet {fleet.name}: {wanted}")
    demand = Demand(context=workers.max_model_len, max_num_seqs=workers.max_num_seqs, token_budget=workers.token_budget)
    found = deploy(_subject(fleet), profile, wanted, workers.tensor_parallel, demand)
    if isinstance(found, OutOfMemory):
        raise OutOfMemory(f"fleet {fleet.name} on {workers.tensor_parallel} × {profile.name}: {found}")
    return found


def assemble(scenario: Scenario, replicas: Sequence[Sequence[Replica]], workload: Workload) -> Simulation:
    """replicas: of each fleet, one a kind of its workers."""
    simulation = Simulation(workload, scenario.seed)
    failing = (
        Failing(scenario.failures, scenario.loading, simulation.agenda, scenario.seed) if scenario.failures else None
    )
    for spec, kinds in zip(scenario.fleets, replicas, strict=True):
        fleet = Fleet(workload, simulation.prompts, simulation.journal, simulation.agenda, spec.link)
        stages = [
            Stage(role, groups, policy(spec.routing), simulation.agenda, fleet.deliver)
            for role in _ROLES
            if (groups := _groups(spec, kinds, role, workload))
        ]
        for stage in stages:
            if failing is not None:
                failing.watch(fleet, stage)
            if spec.scaling is not None:
                Scaler(spec.scaling, scenario.loading, fleet, stage, simulation.agenda)
        fleet.build(stages)
        simulation.fleets.append(fleet)
    if failing is not None:
        failing.note([(spec.name, fleet) for spec, fleet in zip(scenario.fleets, simulation.fleets, strict=True)])
    return simulation


def _count(scenario: Scenario, folder: Path) -> int:
    arrivals = scenario.traffic.arrivals
    if scenario.requests is not None:
        return scenario.requests
    assert arrivals.kind == "trace"
    return len(read_trace(folder / Path(arrivals.file).expanduser()).arrival_s)


def _groups(spec: FleetSpec, kinds: Sequence[Replica], role: str, workload: Workload) -> list[Group]:
    groups: list[Group] = []
    first = 0
    stretch_s = max(float(workload.arrival_s[-1]) / _STRETCHES, 1e-3)
    for workers, replica in zip(spec.workers, kinds, strict=True):
        if workers.role == role:
            places = range(first, first + workers.most)
            groups.append(Group(replica, places, workers.workers, workers.prefix_caching, stretch_s))
            first += workers.most
    return groups


def _subject(fleet: FleetSpec) -> Subject:
    return sized_subject(fleet.params, fleet.family) if fleet.params else read_subject(str(fleet.model))
