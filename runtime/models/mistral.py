"""mistral: Llama's form, all layers with a window where the checkpoint gives one. Jiang et al., arXiv:2310.06825."""

from ..config import Family
from ..decoder import Decoder


class Model(Decoder):
    family = Family(
        qkv_bias="attention_bias", o_bias="attention_bias", windows="every_layer", default_max_positions=131_072
    )
