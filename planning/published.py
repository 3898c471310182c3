"""What others published of a model on a device, beside what a plan says of it: `published.yaml` and its ratios.

Predictions are made with the default shares alone (`efficiency.py`), which were not fitted to these figures, with keys
and values in FP8, 2,048 slots and steps of 8,192 tokens, at the most requests whose keys have room: how engines are run
for such figures. Steps with prompts are not padded to our graphs: that is how our engine spares its host, not theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from ..hwprofiles.reader import load
from ..hwprofiles.records import Count, Positive, Record, Word
from ..runtime.errors import ConfigError
from .deployment import Deployment, deploy
from .efficiency import efficiency
from .memory import Demand
from .point import Load, Point, capacity, point
from .precision import Precision, precision
from .subject import sized_subject

FILE = Path(__file__).with_suffix(".yaml")
LEAST_RATIO, MOST_RATIO = 0.6, 1.6
"""A row beyond has to be explained."""
WITHOUT_WORKLOAD = "article"
"""The source that names no workload: its rows are shown at one, and left out of the mean."""

_KV_FORMAT, _MAX_NUM_SEQS, _TOKEN_BUDGET = "fp8", 2048, 8192


class Figure(Record):
    """One published figure. explanation: why a prediction is expected to be far from it."""

    source: Word
    params: Word
    format: Word
    profile: Word
    devices: Count
    input_len: Count
    output_len: Count
    tokens_per_s: Positive
    explanation: Word | None = None


class Figures(Record):
    sources: dict[str, Word]
    rows: Annotated[tuple[Figure, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _sources_are_named(self) -> Figures:
        unknown = {row.source for row in self.rows} - set(self.sources)
        if unknown:
            raise ValueError(f"no source is called {', '.join(sorted(unknown))}: there are {', '.join(self.sources)}")
        return self


@dataclass(frozen=True)
class Comparison:
    """A figure beside its prediction; at: the point that was predicted."""

    figure: Figure
    at: Point

    @property
    def ratio(self) -> float:
        """Predicted over published."""
        return self.at.tokens_per_s / self.figure.tokens_per_s

    @property
    def is_far(self) -> bool:
        return not LEAST_RATIO <= self.ratio <= MOST_RATIO


def read_figures(path: Path = FILE) -> Figures:
    """The figures of a file. ConfigError: one that is not such a file, with its first fault."""
    try:
        return Figures.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path.name}: {place}: {first['msg'].removeprefix('Value error, ')}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from None


def compare(figures: Iterable[Figure]) -> list[Comparison]:
    return [Comparison(each, predicted(each)) for each in figures]


def predicted(figure: Figure) -> Point:
    """The plan's point for a figure. ConfigError: that model does not fit on those devices."""
    load = Load(figure.input_len, figure.output_len)
    deployment = _deployed(figure.params, figure.format, figure.profile, figure.devices, load.longest)
    return point(deployment, capacity(deployment, load), load)


def mean_ratio(found: Sequence[Comparison]) -> float:
    """Geometric, of the rows that name their workload."""
    ratios = [each.ratio for each in found if each.figure.source != WITHOUT_WORKLOAD]
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


@cache
def _deployed(params: str, format_name: str, profile_name: str, devices: int, longest: int) -> Deployment:
    profile = load(profile_name)
    stored: Precision | str = precision(format_name, profile, _KV_FORMAT)
    if isinstance(stored, str):
        raise ConfigError(stored)
    demand = Demand(longest, max_num_seqs=_MAX_NUM_SEQS, token_budget=_TOKEN_BUDGET, prompt_graphs=False)
    reached = efficiency(profile, only_defaults=True)
    found = deploy(sized_subject(params), profile, stored, devices, demand, reached)
    if not isinstance(found, Deployment):
        raise ConfigError(f"{params} {format_name} on {devices} × {profile_name}: {found}")
    return found
