"""Llama checkpoints of a known shape with random weights: what speed is measured on when no real model is at hand.

    python -m ambidex.bench.shapes 0.5b FOLDER

bfloat16, in Hugging Face layout, with a tokenizer whose tokens are the 256 bytes. Shards of a few layers are drawn and
written one after another, so the whole model is never in memory. No end-of-text id: such a model never stops by itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_LAYERS_A_SHARD = 6
_DEVIATION = 0.02


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama checkpoint."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocabulary_size: int
    max_positions: int = 65536
    tied: bool = True

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_size,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocabulary_size,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def layer_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        hidden, inner, head = self.hidden_size, self.intermediate_size, self.head_size
        prefix = f"model.layers.{layer}."
        return {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (self.num_heads * head, hidden),
            f"{prefix}self_attn.k_proj.weight": (self.num_kv_heads * head, hidden),
            f"{prefix}self_attn.v_proj.weight": (self.num_kv_heads * head, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, self.num_heads * head),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
        }

    def shards(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """The shapes of the tensors, shard by shard."""
        yield {"model.embed_tokens.weight": (self.vocabulary_size, self.hidden_size)}
        for first in range(0, self.num_layers, _LAYERS_A_SHARD):
            layers = range(first, min(first + _LAYERS_A_SHARD, self.num_layers))
            yield {name: shape for layer in layers for name, shape in self.layer_shapes(layer).items()}
        head = {} if self.tied else {"lm_head.weight": (self.vocabulary_size, self.hidden_size)}
        yield {"model.norm.weight": (self.hidden_size,), **head}


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 16, 160, 512, 1024),
    "0.5b": Shape(896, 24, 14, 2, 64, 4864, 32_000),
    "1b": Shape(2048, 16, 32, 8, 64, 8192, 128_256),
    "8b": Shape(4096, 32, 32, 8, 128, 14_336, 128_256, 131_072, tied=False),
}


def write_config(shape: Shape, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2), encoding="utf-8")


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """Writes config.json, generation_config.json, tokenizer.json and the weights into `folder`."""
    write_config(shape, folder)
    (folder / "generation_config.json").write_text("{}", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    _write_tokenizer(folder / "tokenizer.json")
    _write_weights(shape, folder)


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def _write_weights(shape: Shape, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shards = list(shape.shards())
    placed: dict[str, str] = {}
    for index, shapes in enumerate(shards, start=1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _drawn(size, generator) for name, size in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(tensors, file)
    content = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A norm's weights are ones, a matrix is drawn from a normal distribution."""
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, _DEVIATION, generator=generator)


if __name__ == "__main__":
    write_checkpoint(SHAPES[sys.argv[1]], Path(sys.argv[2]))
