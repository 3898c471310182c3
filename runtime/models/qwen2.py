"""qwen2: Qwen 2 and 2.5: biases on q, k and v, windows in the upper layers. Yang et al., arXiv:2407.10671."""

from ..config import Family
from ..decoder import Decoder


class Model(Decoder):
    family = Family(qkv_bias=True, windows="from_layer", default_max_positions=32_768)
