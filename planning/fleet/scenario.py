"""Scenarios: what arrives, on what it runs, and how it is judged. YAML, those shipped in `scenarios/` or a file.

A file is read strictly: an unknown field, a wrong type or an impossible number is one line with file and field.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from ...runtime.errors import ConfigError
from .failing import Failures
from .fleet import Link
from .record import Count, Positive, Record
from .routing import policy
from .scaling import Loading, Scaling
from .workload import Slo, Traffic

FOLDER = Path(__file__).with_name("scenarios")


class Workers(Record):
    """So many replicas of one kind, the most that scaling may make of them, and what each may hold. role: `serve`
    computes prompts and answers; `prefill` and `decode` share the work."""

    profile: str
    precision: str = "bf16"
    kv_precision: str = "bf16"
    tensor_parallel: Count = 1
    role: Literal["serve", "prefill", "decode"] = "serve"
    workers: Count
    max_workers: Count | None = None
    max_model_len: Count = 8192
    max_num_seqs: Count = 256
    token_budget: Count = 2048
    prefix_caching: bool = True

    @property
    def most(self) -> int:
        return self.max_workers or self.workers

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.most < self.workers:
            raise ValueError(f"max_workers {self.max_workers} is below workers {self.workers}")
        if self.role == "decode" and not self.prefix_caching:
            raise ValueError("a decode worker finds what it receives in its prefix cache: leave prefix_caching on")
        return self


class FleetSpec(Record):
    """One model and its workers. model: a folder or hub id; params: instead of it a size such as 70B. share: of the
    requests, beside those of the other fleets."""

    name: str
    model: str | None = None
    params: str | None = None
    family: str = "llama"
    share: Positive = 1.0
    routing: str = "least_pending_tokens"
    workers: Annotated[tuple[Workers, ...], Field(min_length=1)]
    link: Link | None = None
    scaling: Scaling | None = None

    @field_validator("routing")
    @classmethod
    def _is_known(cls, name: str) -> str:
        policy(name)
        return name

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.model is None) == (self.params is None):
            raise ValueError("give a model (folder or hub id) or params (70B), one of them")
        roles = {each.role for each in self.workers}
        if roles not in ({"serve"}, {"prefill", "decode"}):
            raise ValueError(f"workers are {' and '.join(sorted(roles))}: all serve, or some prefill and some decode")
        if "decode" in roles and self.link is None:
            raise ValueError("prefill and decode need a link: give its gb_per_s")
        if "decode" in roles and len({each.kv_precision for each in self.workers}) > 1:
            raise ValueError("pages move as they are: give all workers of a split fleet one kv_precision")
        if "decode" not in roles and self.link is not None:
            raise ValueError("a link is given, and no prefill and decode that would use it: leave it out")
        if any(each.most > each.workers for each in self.workers) and self.scaling is None:
            raise ValueError("max_workers is given, and no scaling that would reach it: give scaling")
        return self


class Scenario(Record):
    """requests: how many; of a trace, all of its rows where it is not given."""

    about: str
    requests: Count | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    traffic: Traffic
    fleets: Annotated[tuple[FleetSpec, ...], Field(min_length=1)]
    slo: Slo
    loading: Loading = Loading(gb_per_s=1.0, start_s=30.0)
    failures: Failures | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [fleet.name for fleet in self.fleets]
        if len(set(names)) < len(names):
            raise ValueError("two fleets have one name")
        is_trace = self.traffic.arrivals.kind == "trace"
        if not is_trace and (self.traffic.input_tokens is None or self.traffic.output_tokens is None):
            raise ValueError("traffic needs input_tokens and output_tokens: only a trace brings its own")
        if not is_trace and self.requests is None:
            raise ValueError("requests is not given: how many?")
        self._check_deaths(names)
        return self

    def _check_deaths(self, names: list[str]) -> None:
        for death in self.failures.at if self.failures else ():
            fleet = self.fleets[names.index(death.fleet)] if death.fleet in names else None
            if death.fleet is not None and fleet is None:
                raise ValueError(f"failures.at names the fleet {death.fleet!r}: there are {', '.join(names)}")
            found = fleet or self.fleets[0]
            roles = ("prefill", "decode") if found.link else ("serve",)
            if death.stage >= len(roles):
                raise ValueError(f"failures.at names stage {death.stage} of {found.name}, which has {len(roles)}")
            places = sum(each.most for each in found.workers if each.role == roles[death.stage])
            if death.place >= places:
                raise ValueError(f"failures.at names place {death.place} of {found.name}, which has {places}")


def names() -> list[str]:
    """The scenarios that are shipped."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def rerouted(scenario: Scenario, routing: str) -> Scenario:
    """The same with this policy for every fleet. ConfigError: an unknown one."""
    policy(routing)
    return scenario.model_copy(
        update={"fleets": tuple(fleet.model_copy(update={"routing": routing}) for fleet in scenario.fleets)}
    )


def read_scenario(name: str | None = None, file: Path | None = None) -> tuple[Scenario, Path]:
    """A shipped scenario, or the one in a file; and the folder beside which its trace is looked for. ConfigError."""
    path = file if file is not None else FOLDER / f"{name}.yaml"
    if file is None and name not in names():
        near = difflib.get_close_matches(str(name), names(), n=2, cutoff=0.4)
        guess = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"unknown scenario {name!r}: {guess}shipped are {', '.join(names())} (or give --file)")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the scenario {path}: {error}; give a readable YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: no valid YAML: {getattr(error, 'problem', error)}; correct it") from None
    except (ValueError, RecursionError) as error:  # a date that is none, a number of 5,000 digits, 5,000 brackets
        raise ConfigError(f"{path}: no valid YAML: {error}; correct it") from None
    return parse(data, str(path)), path.parent


def parse(data: Any, file: str) -> Scenario:
    """ConfigError names the file and the first wrong field."""
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: is no mapping of fields; write `about: …` and the other fields")
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        first, more = problems[0], len(problems) - 1
        kinds = {"poisson", "bursts", "waves", "trace", "constant", "uniform", "lognormal", "pareto"}
        field = ".".join(str(part) for part in first["loc"] if part not in kinds)
        given = f", not {str(first['input'])[:40]!r}" if isinstance(first["input"], (int, float, str)) else ""
        also = f" (and {more} more)" if more else ""
        text = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{file}: {field or 'scenario'}: {text}{given}{also}") from None
