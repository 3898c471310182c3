"""Checkpoints with random weights, made by transformers, and the same files taken apart to be spoilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SIZES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 101, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "attn_implementation": "eager",
}  # fmt: skip


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """(model_type, **fields) -> a transformers model with weights that make attention and biases matter."""
    transformers = pytest.importorskip("transformers")

    def make(model_type: str, **fields: Any) -> Any:
        config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **fields})
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        generator = torch.Generator().manual_seed(7)
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data = values * parameter.shape[1] ** -0.5 if values.ndim == 2 else parameter.data + 0.3 * values
        model.tie_weights()
        return model

    return make


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A tiny llama checkpoint written by hand: config.json and one safetensors file."""
    folder = tmp_path / "plain"
    folder.mkdir()
    write_config(folder)
    write_tensors(folder / "model.safetensors", plain_tensors())
    return folder


def write_config(folder: Path, **changes: Any) -> None:
    """A llama config in the form of transformers 4; a field of value ... is left out."""
    fields = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
        "torch_dtype": "float32", "hidden_act": "silu", "tie_word_embeddings": False, "eos_token_id": 2,
    } | changes  # fmt: skip
    kept = {name: value for name, value in fields.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")


def plain_tensors() -> dict[str, torch.Tensor]:
    shapes = {
        "model.embed_tokens.weight": (10, 8), "model.layers.0.input_layernorm.weight": (8,),
        "model.layers.0.self_attn.q_proj.weight": (8, 8), "model.layers.0.self_attn.k_proj.weight": (4, 8),
        "model.layers.0.self_attn.v_proj.weight": (4, 8), "model.layers.0.self_attn.o_proj.weight": (8, 8),
        "model.layers.0.post_attention_layernorm.weight": (8,), "model.layers.0.mlp.gate_proj.weight": (12, 8),
        "model.layers.0.mlp.up_proj.weight": (12, 8), "model.layers.0.mlp.down_proj.weight": (8, 12),
        "model.norm.weight": (8,), "lm_head.weight": (10, 8),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


class Files:
    """The writers above, for tests that spoil what they write."""

    config = staticmethod(write_config)
    tensors = staticmethod(write_tensors)
    plain_tensors = staticmethod(plain_tensors)


@pytest.fixture
def files() -> type[Files]:
    return Files
