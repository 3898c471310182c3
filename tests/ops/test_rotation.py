"""Rotation: the frequencies of every scaling are transformers', and turning heads is what Llama does."""

from typing import Any

import pytest
import torch
from ambidex.ops import discovery
from ambidex.ops.rotation import frequencies
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

ROTATION, ROPE = discovery.ops()["rotation"], discovery.ops()["rope"]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 512},
    YARN,
    {**YARN, "factor": 40.0, "beta_fast": 16.0, "beta_slow": 2.0},
    {**YARN, "attention_factor": 0.7},
    {**YARN, "mscale": 0.8, "mscale_all_dim": 0.5},
    {**YARN, "truncate": False},
]  # fmt: skip
IDS = [f"{scaling['rope_type']}-{number}" for number, scaling in enumerate(SCALINGS)]


def config(scaling: dict[str, Any], theta: float, head_size: int) -> LlamaConfig:
    parameters = {**scaling, "rope_theta": theta}
    return LlamaConfig(
        hidden_size=4 * head_size, num_attention_heads=4, num_key_value_heads=2, head_dim=head_size,
        max_position_embeddings=4096, rope_parameters=parameters,
    )  # fmt: skip


@pytest.mark.parametrize("head_size", [64, 128, 10])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("scaling", SCALINGS, ids=IDS)
def test_frequencies_are_transformers(scaling: dict[str, Any], theta: float, head_size: int) -> None:
    ours, factor = frequencies(head_size, theta, scaling)
    if scaling["rope_type"] == "default":
        theirs, their_factor = 1.0 / theta ** (torch.arange(0, head_size, 2).float() / head_size), 1.0
    else:
        theirs, their_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](
            config(scaling, theta, head_size), torch.device("cpu")
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0.0)
    assert factor == pytest.approx(their_factor, rel=1e-6)


def test_the_old_name_of_the_type_is_read() -> None:
    scaled, _ = frequencies(64, 1e4, {"type": "linear", "factor": 2.0})
    torch.testing.assert_close(scaled, frequencies(64, 1e4)[0] / 2)


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        ({"rope_type": "longest"}, "rope scaling 'longest' is not known: there are default, linear, llama3, yarn"),
        ({"rope_type": "linear"}, "rope scaling 'linear' needs factor in the checkpoint's rope_scaling"),
        ({"rope_type": "llama3", "factor": 8.0}, "needs original_max_position_embeddings"),
    ],
)
def test_a_scaling_that_cannot_be_read_says_so(scaling: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        frequencies(64, 1e4, scaling)


@pytest.mark.parametrize("scaling", [SCALINGS[0], SCALINGS[2], YARN], ids=["default", "llama3", "yarn"])
def test_turned_heads_are_llamas(scaling: dict[str, Any]) -> None:
    positions = torch.tensor([[0, 1, 17, 800, 4095]])
    theirs = LlamaRotaryEmbedding(config(scaling, 1e4, 64))
    x = torch.randn((5, 6, 64), generator=torch.Generator().manual_seed(0))
    cosine, sine = theirs(x[None], positions)
    wanted, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cosine, sine)
    made, factor = frequencies(64, 1e4, scaling)
    assert ROTATION.reference is not None
    assert ROPE.reference is not None
    turned = ROPE.reference(x, ROTATION.reference(positions, made, scaling=factor))
    torch.testing.assert_close(turned, wanted[0].transpose(0, 1), atol=2e-6, rtol=1e-5)


def test_what_is_not_rotated_passes_through() -> None:
    x = torch.randn((3, 2, 10), generator=torch.Generator().manual_seed(0))
    assert ROTATION.reference is not None
    assert ROPE.reference is not None
    turned = ROPE.reference(x, ROTATION.reference(torch.tensor([[0, 5, 9]]), frequencies(6, 1e4)[0]))
    assert torch.equal(turned[:, :, 6:], x[:, :, 6:])
    assert torch.equal(turned[0], x[0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
