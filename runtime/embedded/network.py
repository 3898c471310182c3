"""The network of the embedded model: the Llama decoder in plain torch, for training only.

Its parameters have the names that Hugging Face gives them, so that the checkpoint is read by anything that reads
`LlamaForCausalLM`. The runtime has its own Llama (`runtime/models`); this one knows dropout and a loss, and no cache.

Shapes: B rows, T positions, D hidden, H heads, E head size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

IGNORED = -100


@dataclass(frozen=True)
class Shape:
    """The sizes of the network, under their names in config.json."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, normalized in float32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Rotary positions on halves (Su et al. 2021, arXiv:2104.09864)."""
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_TE.to(x_BHTE.dtype) + torch.cat((-second, first), dim=-1) * sin_TE.to(x_BHTE.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        query, key = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, key, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, key, bias=False)
        self.o_proj = nn.Linear(query, shape.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        q, k, v = (
            projection(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos_TE, sin_TE), rotate(k, cos_TE, sin_TE)
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out_BTD: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out_BTD


class GatedLinear(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out_BTD


class Layer(nn.Module):
    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = GatedLinear(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.self_attn(self.input_layernorm(x_BTD), cos_TE, sin_TE))
        out_BTD: Tensor = x_BTD + self.dropout(self.mlp(self.post_attention_layernorm(x_BTD)))
        return out_BTD


class Llama(nn.Module):
    """The decoder; `state_dict()` has Hugging Face's names behind the prefix `model.`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)
        frequency = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angle_TE = torch.outer(torch.arange(shape.max_position_embeddings), frequency).repeat(1, 2)
        self.register_buffer("cos", angle_TE.cos(), persistent=False)
        self.register_buffer("sin", angle_TE.sin(), persistent=False)
        residual_scale = 1 / math.sqrt(2 * shape.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = residual_scale if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.dropout(self.embed_tokens(ids_BT))
        cos_TE, sin_TE = self.cos[: ids_BT.shape[1]], self.sin[: ids_BT.shape[1]]
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_TE, sin_TE)
        return nn.functional.linear(self.norm(x_BTD), self.embed_tokens.weight)

    def loss(self, ids_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        """Cross entropy in nats, in float32, over the targets that are not `IGNORED`."""
        logits = self(ids_BT).float().flatten(0, 1)
        return nn.functional.cross_entropy(logits, targets_BT.flatten(), ignore_index=IGNORED, reduction=reduction)
