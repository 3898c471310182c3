"""llama: Llama 1 to 3.x and their kin. Touvron et al., arXiv:2302.13971; Grattafiori et al., arXiv:2407.21783."""

from ..config import Family
from ..decoder import Decoder


class Model(Decoder):
    family = Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias")
