"""The contract of a model: which parameters and states it has, and its forward pass as calls of ops.

One file a `model_type` in `models/`, found by its name, or an entry point `ambidex.models`; each defines `Model`. A
model is built twice: on meta weights, to trace its sites, and on the loaded ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..ops.discovery import module, plugins, stems
from ..ops.state import StateGroup
from ..ops.types import Mesh, Weight
from .errors import ConfigError
from .fields import Fields, shown

if TYPE_CHECKING:  # config finds models through this file
    from .batch import Batch, State
    from .config import ModelConfig

_FOLDER = "runtime/models"


@dataclass(frozen=True)
class Source:
    """One tensor of a checkpoint: its name and the shape that the config asks of it."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Parameter:
    """One weight of a model: the rows of its `sources`, one after another.

    role: the name without the layer ("layers.*.qkv"): equal roles share a site and a layout.
    """

    name: str
    role: str
    sources: tuple[Source, ...]
    shard: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(source.shape[0] for source in self.sources), *self.sources[0].shape[1:])


class Model(Protocol):
    """What `models/<model_type>.py` defines under the name `Model`."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Weight], device: torch.device) -> None: ...

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        """What the fields of config.json mean for this model_type. ConfigError: what cannot be served."""
        ...

    @staticmethod
    def parameters(config: ModelConfig) -> tuple[Parameter, ...]:
        """Every weight, in the order in which a pass needs them."""
        ...

    @staticmethod
    def groups(config: ModelConfig) -> tuple[StateGroup, ...]:
        """The state groups: what the layers remember of a request, in `config.dtype`."""
        ...

    def forward(self, batch: Batch, hidden: torch.Tensor | None, state: State, ops: Any, mesh: Mesh) -> torch.Tensor:
        """Logits [L, V] float32 (last pipeline stage) or hidden states [T, D].

        hidden: None on the first stage, which takes the batch's ids or embeddings; else the stage before's states.
        """
        ...


def model_types() -> list[str]:
    """Every `model_type` that can be served here: the files of `models/` and the entry points."""
    return sorted({*stems(_FOLDER), *plugins("models")})


def find_model(model_type: str, where: str = "config.json") -> type[Model]:
    """The class that serves `model_type`. ConfigError: none does, with the known ones."""
    if model_type in stems(_FOLDER):
        found: type[Model] = module(_FOLDER, model_type).Model
        return found
    offered = plugins("models")
    if model_type not in offered:
        known = ", ".join(model_types())
        raise ConfigError(f"{where}: model_type {shown(model_type)} is not known; known are {known}")
    plugin: type[Model] = offered[model_type]
    return plugin
