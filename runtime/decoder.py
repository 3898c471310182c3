"""The pre-norm decoder that the dense families share: its parameters, its states, and its pass as calls of composites.

x += o(attention(rope(qkv(norm(x))))); x += down(silu(gate(norm(x))) * up(norm(x))); logits = head(norm(x)).
What differs between families is data: `Family` and the config. Layers with a window and layers without keep their keys
in different state groups, because their pages live for different times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..ops.rotation import frequencies
from ..ops.state import Plane, StateGroup
from ..ops.types import Mesh, Weight
from .batch import Batch, State
from .config import Family, ModelConfig, dense_config
from .fields import Fields
from .model import Parameter, Source


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer's weights, and which entry of which state group is its own."""

    group: str
    index: int
    norm_attention: Weight
    qkv: Weight
    o: Weight
    norm_mlp: Weight
    gate_up: Weight
    down: Weight
    qkv_bias: Weight | None = None
    q_norm: Weight | None = None
    k_norm: Weight | None = None
    o_bias: Weight | None = None
    gate_up_bias: Weight | None = None
    down_bias: Weight | None = None


class Decoder:
    """A `Model` but for the family: a file of `models/` adds that."""

    family: ClassVar[Family]

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        return dense_config(fields, cls.family)

    def __init__(self, config: ModelConfig, weights: Mapping[str, Weight], device: torch.device) -> None:
        turned, self._scaling = frequencies(config.rotated, config.rope_theta, config.rope_scaling)
        self._frequencies = turned.to(device)
        self._heads = {"num_heads": config.num_heads, "eps": config.norm_eps}
        self._scale = config.head_size**-0.5
        self._eps = config.norm_eps
        self._embedding, self._norm = weights["embed"], weights["norm"]
        self._head = self._embedding if config.tied else weights["lm_head"]
        self._layers = tuple(_layers(config, weights))

    def forward(self, batch: Batch, hidden: torch.Tensor | None, state: State, ops: Any, mesh: Mesh) -> torch.Tensor:
        assert all(mesh.size(axis) == 1 for axis in ("tp", "pp")), "one device holds the whole model"
        rotation = ops.rotation(batch.positions, self._frequencies, scaling=self._scaling)
        x = self._embed(batch, ops) if hidden is None else hidden
        for layer in self._layers:
            attended = self._attend(layer, x, rotation, batch, state, ops)
            if layer is self._layers[-1] and batch.logit_rows is not None:
                # Behind the last attention no row looks at another: only those that yield logits go on.
                x, attended = (each.index_select(0, batch.logit_rows) for each in (x, attended))
            x = ops.linear_add(attended, layer.o, x, layer.o_bias)
            gated = ops.gated_linear(x, layer.gate_up, layer.norm_mlp, layer.gate_up_bias, eps=self._eps)
            x = ops.linear_add(gated, layer.down, x, layer.down_bias)
        return ops.norm_linear(x, self._norm, self._head, eps=self._eps, out_dtype=torch.float32)

    def _embed(self, batch: Batch, ops: Any) -> torch.Tensor:
        x = ops.embedding(batch.ids, self._embedding)
        if batch.embedding_rows is not None and batch.embedding_values is not None:
            x.index_copy_(0, batch.embedding_rows, batch.embedding_values.to(x.dtype))
        return x

    def _attend(
        self, layer: _Layer, x: torch.Tensor, rotation: torch.Tensor, batch: Batch, state: State, ops: Any
    ) -> torch.Tensor:
        pages, slots = state[layer.group][layer.index], batch.slots[layer.group]
        q = ops.norm_qkv_rope_store(
            x, layer.norm_attention, layer.qkv, layer.qkv_bias, rotation, pages, slots, layer.q_norm, layer.k_norm,
            **self._heads,
        )  # fmt: skip
        return ops.paged_attention(q, pages, batch.attending[layer.group], scale=self._scale).flatten(1)

    @staticmethod
    def groups(config: ModelConfig) -> tuple[StateGroup, ...]:
        planes = tuple(Plane(name, (config.num_kv_heads, config.head_size), config.dtype) for name in ("k", "v"))
        return tuple(
            StateGroup(_group(window), "paged", planes, num_layers, window)
            for window, num_layers in sorted(Counter(config.windows).items())
        )

    @staticmethod
    def parameters(config: ModelConfig) -> tuple[Parameter, ...]:
        table = (config.vocabulary_size, config.hidden_size)
        head = () if config.tied else (Parameter("lm_head", "lm_head", (Source("lm_head.weight", table),)),)
        return (
            Parameter("embed", "embed", (Source("model.embed_tokens.weight", table),)),
            *(parameter for layer in range(config.num_layers) for parameter in _layer_parameters(config, layer)),
            Parameter("norm", "norm", (Source("model.norm.weight", (config.hidden_size,)),)),
            *head,
        )


def _group(window: int) -> str:
    return "kv_window" if window else "kv"


def _layers(config: ModelConfig, weights: Mapping[str, Weight]) -> Iterator[_Layer]:
    for layer, window in enumerate(config.windows):
        prefix = f"layers.{layer}."
        own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        yield _Layer(_group(window), config.windows[:layer].count(window), **own)


def _layer_parameters(config: ModelConfig, layer: int) -> Iterator[Parameter]:
    q_rows, kv_rows = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    hidden, middle = config.hidden_size, config.intermediate_size
    qkv = {"self_attn.q_proj": q_rows, "self_attn.k_proj": kv_rows, "self_attn.v_proj": kv_rows}
    norms = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"} if config.qk_norm else {}

    yield _norm(layer, "norm_attention", "input_layernorm", hidden)
    yield from _linear(layer, "qkv", qkv, hidden, config.qkv_bias)
    yield from (_norm(layer, name, source, config.head_size) for name, source in norms.items())
    yield from _linear(layer, "o", {"self_attn.o_proj": hidden}, q_rows, config.o_bias)
    yield _norm(layer, "norm_mlp", "post_attention_layernorm", hidden)
    yield from _linear(layer, "gate_up", {"mlp.gate_proj": middle, "mlp.up_proj": middle}, hidden, config.mlp_bias)
    yield from _linear(layer, "down", {"mlp.down_proj": hidden}, middle, config.mlp_bias)


def _norm(layer: int, name: str, source: str, width: int) -> Parameter:
    tensor = Source(f"model.layers.{layer}.{source}.weight", (width,))
    return Parameter(f"layers.{layer}.{name}", f"layers.*.{name}", (tensor,))


def _linear(layer: int, name: str, rows: Mapping[str, int], width: int, bias: bool) -> Iterator[Parameter]:
    """A product's weight, and its bias if it has one: `rows` outputs of each of the checkpoint's modules."""
    prefix = f"model.layers.{layer}."
    weights = tuple(Source(f"{prefix}{module}.weight", (num_rows, width)) for module, num_rows in rows.items())
    yield Parameter(f"layers.{layer}.{name}", f"layers.*.{name}", weights)
    if bias:
        biases = tuple(Source(f"{prefix}{module}.bias", (num_rows,)) for module, num_rows in rows.items())
        yield Parameter(f"layers.{layer}.{name}_bias", f"layers.*.{name}_bias", biases)
