"""qwen3: Qwen 3, dense: q and k normalised per head before the rotation. Yang et al., arXiv:2505.09388."""

from ..config import Family
from ..decoder import Decoder


class Model(Decoder):
    family = Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        windows="from_layer",
        default_head_size=128,
        default_max_positions=32_768,
    )
