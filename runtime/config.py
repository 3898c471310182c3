"""What a checkpoint's config.json says of a model, checked: the file is foreign input, and so is every number in it.

Written by transformers 4 (`rope_theta` and `rope_scaling`, `torch_dtype`) or 5 (`rope_parameters`, `dtype`). A field
that asks for what nothing here computes is refused, never ignored; `auto_map` (code in the checkpoint) is not followed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ..ops.rotation import frequencies
from .errors import CheckpointRefused, ConfigError, ModelNotFound
from .fields import Fields, read_json
from .model import find_model

MAX_VOCABULARY = 1 << 24
_MAX_LAYERS, _MAX_HEADS, _MAX_HEAD_SIZE, _MAX_WIDTH, _MAX_POSITIONS = 1024, 1024, 1024, 1 << 20, 1 << 27
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_ROPE_NUMBERS = (
    "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
    "attention_factor", "mscale", "mscale_all_dim",
)  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and rules of one checkpoint.

    rotated: how many of a head's dimensions are turned. windows: for each layer how many keys a query sees, 0 for all.
    dtype: of the run; `read_config` gives the checkpoint's (float32 where it names none). eos_ids: ids that end a text,
    those of generation_config.json where it names any, without those outside the vocabulary, which no step can yield.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocabulary_size: int
    norm_eps: float
    rope_theta: float
    rotated: int
    max_positions: int
    windows: tuple[int, ...]
    rope_scaling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: torch.dtype = torch.float32
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Family:
    """How a family of dense pre-norm decoders differs from others: what it fixes, what its config.json leaves unsaid.

    A bias is there, or not, or as the field of that name says. windows: which layers may see only the last keys:
    `none`, `every_layer`, or those `from_layer` max_window_layers on; `layer_types` says it layer by layer.
    """

    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    windows: Literal["none", "every_layer", "from_layer"] = "none"
    default_head_size: int | None = None
    default_max_positions: int = 2048


def read_config(folder: Path) -> ModelConfig:
    """The config of the checkpoint in `folder`.

    Errors: ModelNotFound (no config.json), ConfigError (unknown model_type, a field missing or out of its range),
    CheckpointRefused (quantized weights).
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFound(
            f"{folder} has no config.json: name the folder that holds a checkpoint in Hugging Face layout"
        )
    fields = Fields(read_json(path), str(path))
    config: ModelConfig = find_model(fields.text("model_type"), str(path)).config(fields)
    generation = folder / "generation_config.json"
    if not generation.is_file():
        return config
    eos_ids = _vocabulary_ids(Fields(read_json(generation), str(generation)), "eos_token_id", config.vocabulary_size)
    return replace(config, eos_ids=eos_ids or config.eos_ids)


def dense_config(fields: Fields, family: Family) -> ModelConfig:
    """The config of a dense pre-norm decoder of `family`."""
    _refuse_unserved(fields)
    num_layers = fields.integer("num_hidden_layers", 1, _MAX_LAYERS)
    max_positions = fields.integer("max_position_embeddings", 1, _MAX_POSITIONS, family.default_max_positions)
    num_heads, num_kv_heads, head_size = _heads(fields, family)
    theta, scaling, rotated = _rope(fields, head_size, max_positions)
    vocabulary_size = fields.integer("vocab_size", 1, MAX_VOCABULARY)
    return ModelConfig(
        model_type=fields.text("model_type"),
        hidden_size=fields.integer("hidden_size", 1, _MAX_WIDTH),
        intermediate_size=fields.integer("intermediate_size", 1, _MAX_WIDTH),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        vocabulary_size=vocabulary_size,
        norm_eps=fields.number("rms_norm_eps", 0.0, 0.1, 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        rotated=rotated,
        max_positions=max_positions,
        windows=_windows(fields, family, num_layers, max_positions),
        tied=fields.flag("tie_word_embeddings", False),
        qkv_bias=_bias(fields, family.qkv_bias),
        o_bias=_bias(fields, family.o_bias),
        mlp_bias=_bias(fields, family.mlp_bias),
        qk_norm=family.qk_norm,
        dtype=_dtype(fields),
        bos_id=next(iter(_vocabulary_ids(fields, "bos_token_id", vocabulary_size)), None),
        eos_ids=_vocabulary_ids(fields, "eos_token_id", vocabulary_size),
    )


def _refuse_unserved(fields: Fields) -> None:
    if "quantization_config" in fields:
        method = fields.part("quantization_config").text("quant_method", "a method that it does not name")
        raise CheckpointRefused(
            f"{fields.where}: the weights are quantized by {method!r} (quantization_config), which nothing here reads: "
            "take the checkpoint in bfloat16 or float16 from which it was made"
        )
    if fields.text("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.error("hidden_act", "silu: no other activation is computed")
    architectures = fields.values.get("architectures") or []
    if not isinstance(architectures, list) or (
        architectures and not any(str(name).endswith("ForCausalLM") for name in architectures)
    ):
        raise fields.error("architectures", "a …ForCausalLM: other heads yield no next token")


def _heads(fields: Fields, family: Family) -> tuple[int, int, int]:
    """How many query heads, how many key-value heads, how large each is."""
    num_heads = fields.integer("num_attention_heads", 1, _MAX_HEADS)
    num_kv_heads = fields.integer("num_key_value_heads", 1, _MAX_HEADS, num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})")
    hidden_size = fields.integer("hidden_size", 1, _MAX_WIDTH)
    if "head_dim" not in fields and family.default_head_size is None and hidden_size % num_heads:
        raise fields.error("head_dim", f"given: {num_heads} heads do not divide hidden_size ({hidden_size})")
    default = family.default_head_size or hidden_size // num_heads
    return num_heads, num_kv_heads, fields.integer("head_dim", 2, _MAX_HEAD_SIZE, default)


def _bias(fields: Fields, rule: bool | str) -> bool:
    return fields.flag(rule, False) if isinstance(rule, str) else rule


def _dtype(fields: Fields) -> torch.dtype:
    name = "dtype" if "dtype" in fields else "torch_dtype"
    value = fields.text(name, "float32").removeprefix("torch.")
    if value == "auto":
        return torch.float32
    if value not in _DTYPES:
        raise fields.error(name, f"one of {', '.join(_DTYPES)}")
    return _DTYPES[value]


def _vocabulary_ids(fields: Fields, name: str, vocabulary_size: int) -> tuple[int, ...]:
    return tuple(token for token in fields.ids(name, MAX_VOCABULARY) if token < vocabulary_size)


def _windows(fields: Fields, family: Family, num_layers: int, max_positions: int) -> tuple[int, ...]:
    kinds = fields.names("layer_types", num_layers, (_FULL, _SLIDING))
    size = _window_size(fields, family)
    first = fields.integer("max_window_layers", 0, 1 << 30, 28) if family.windows == "from_layer" else 0
    if not kinds:
        kinds = tuple(_SLIDING if size and layer >= first else _FULL for layer in range(num_layers))
    if _SLIDING in kinds and not size:
        raise fields.error("layer_types", f"{_FULL} for all layers, because no window is in use")
    # A window that holds every position hides nothing.
    return tuple(size if kind == _SLIDING and size < max_positions else 0 for kind in kinds)


def _window_size(fields: Fields, family: Family) -> int:
    """Keys that a query of a sliding layer sees; 0 where windows are off."""
    given = "sliding_window" in fields.values
    size = fields.integer("sliding_window", 1, 1 << 30, 4096) if "sliding_window" in fields or not given else 0
    if family.windows == "none":
        if given and size:
            raise fields.error("sliding_window", f"null: model_type {fields.text('model_type')} has no windows")
        return 0
    if family.windows == "from_layer" and not fields.flag("use_sliding_window", False):
        return 0
    return size


def _rope(fields: Fields, head_size: int, max_positions: int) -> tuple[float, Mapping[str, Any], int]:
    """The base, the scaling's parameters, and how many dimensions of a head are turned."""
    part = fields.part("rope_scaling" if "rope_scaling" in fields else "rope_parameters")
    theta = (part if "rope_theta" in part else fields).number("rope_theta", 1.0001, 1e15, 10_000.0)
    source = part if "partial_rotary_factor" in part else fields
    rotated = int(head_size * source.number("partial_rotary_factor", 0.0, 1.0, 1.0))
    if rotated < 2 or rotated % 2:
        raise ConfigError(
            f"{fields.where}: {rotated} dimensions of a head are rotated, there must be an even number of them"
        )
    scaling = _rope_scaling(fields, part, max_positions)
    try:
        turned, factor = frequencies(rotated, theta, scaling)
    except (ValueError, ArithmeticError) as failure:
        raise ConfigError(f"{part.where}: {failure}") from None
    if not (bool(turned.isfinite().all()) and math.isfinite(factor)):
        raise ConfigError(f"{part.where}: these parameters give frequencies that are not finite")
    return theta, scaling, rotated


def _rope_scaling(fields: Fields, part: Fields, max_positions: int) -> dict[str, Any]:
    nested = [name for name, value in part.values.items() if isinstance(value, dict)]
    if nested:
        raise part.error(nested[0], "a plain value: rotations that differ by layer type are not computed")
    scaling: dict[str, Any] = {"rope_type": part.text("rope_type", part.text("type", "default"))}
    scaling |= {name: part.number(name, 1e-6, 1e9) for name in _ROPE_NUMBERS if name in part}
    if scaling["rope_type"] in ("llama3", "yarn"):
        source = fields if "original_max_position_embeddings" in fields else part
        original = source.number("original_max_position_embeddings", 1, 1e9, max_positions)
        scaling["original_max_position_embeddings"] = original
    if scaling["rope_type"] == "yarn":
        scaling.setdefault("factor", max_positions / scaling["original_max_position_embeddings"])
        scaling["truncate"] = part.flag("truncate", True)
    return scaling
