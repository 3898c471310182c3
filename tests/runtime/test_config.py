"""config.json: what its fields mean to each family, and that any content yields a config or one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from ambidex.runtime.config import read_config
from ambidex.runtime.errors import AmbidexError, CheckpointRefused, ConfigError, ModelNotFound
from ambidex.runtime.model import model_types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
TURNED_ONCE = {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 6.283185307179586}


@pytest.fixture
def read(tmp_path: Path, files: Any) -> Callable[..., Any]:
    def call(**changes: Any) -> Any:
        files.config(tmp_path, **changes)
        return read_config(tmp_path)

    return call


def test_the_four_families_are_found() -> None:
    assert {"llama", "mistral", "qwen2", "qwen3"} <= set(model_types())


def test_both_forms_of_transformers(read: Callable[..., Any]) -> None:
    old = read(rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3}, torch_dtype="bfloat16")
    scaling = {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}
    new = read(rope_theta=..., rope_scaling=..., rope_parameters=scaling, torch_dtype=..., dtype="bfloat16")
    assert old == new
    assert (old.rope_theta, old.dtype, old.rope_scaling["factor"]) == (5e5, torch.bfloat16, 8.0)


def test_what_may_be_left_unsaid(read: Callable[..., Any]) -> None:
    config = read(
        num_key_value_heads=..., max_position_embeddings=..., rms_norm_eps=..., rope_theta=..., rope_scaling=...,
        torch_dtype=..., hidden_act=..., tie_word_embeddings=..., eos_token_id=..., architectures=...,
    )  # fmt: skip
    assert (config.num_kv_heads, config.head_size, config.rotated) == (2, 4, 4)
    assert (config.max_positions, config.norm_eps, config.rope_theta) == (2048, 1e-6, 10_000.0)
    assert (config.dtype, config.tied, config.eos_ids) == (torch.float32, False, ())
    assert read(model_type="qwen3").head_size == 128


def test_biases_and_norms(read: Callable[..., Any]) -> None:
    def shape(model_type: str, **fields: Any) -> tuple[bool, ...]:
        config = read(model_type=model_type, **fields)
        return config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm

    assert shape("llama") == shape("mistral") == (False, False, False, False)
    assert shape("llama", attention_bias=True, mlp_bias=True) == (True, True, True, False)
    assert shape("qwen2") == (True, False, False, False)
    assert shape("qwen3") == (False, False, False, True)
    assert shape("qwen3", attention_bias=True) == (True, True, False, True)


def test_windows(read: Callable[..., Any]) -> None:
    def windows(model_type: str, **fields: Any) -> Any:
        return read(model_type=model_type, num_hidden_layers=3, **fields).windows

    mixed = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows("llama") == windows("mistral", sliding_window=None) == (0, 0, 0)
    assert windows("mistral", sliding_window=8) == (8, 8, 8)
    assert windows("mistral", max_position_embeddings=9000) == (4096, 4096, 4096)
    assert windows("mistral", sliding_window=32) == (0, 0, 0)  # 32 positions: nothing is out of sight
    assert windows("qwen2", sliding_window=8, max_window_layers=1) == (0, 0, 0)
    assert windows("qwen2", sliding_window=8, max_window_layers=1, use_sliding_window=True) == (0, 8, 8)
    assert windows("qwen3", sliding_window=8, use_sliding_window=True) == (0, 0, 0)
    assert windows("qwen3", sliding_window=8, use_sliding_window=True, layer_types=mixed) == (8, 0, 8)


def test_ids_that_end_a_text(read: Callable[..., Any], tmp_path: Path) -> None:
    assert read(eos_token_id=[2, 5, 10]).eos_ids == (2, 5)  # 10 is no id of a vocabulary of 10
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}), encoding="utf-8")
    assert read().eos_ids == (7, 8)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6}), encoding="utf-8")
    assert read().eos_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "</s>"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"generation_config.json: eos_token_id is '</s>', it must be token ids"):
        read()


def test_code_in_the_checkpoint_is_not_followed(read: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('executed')", encoding="utf-8")
    assert read(auto_map={"AutoModelForCausalLM": "modeling_evil.Model"}) == read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_next"}, "model_type 'gpt_next' is not known; known are .*llama, mistral, qwen2, qwen3"),
        ({"model_type": "../config"}, "model_type '../config' is not known"),
        ({"model_type": ...}, "model_type is missing, it must be a string"),
        ({"hidden_size": ...}, "hidden_size is missing, it must be an integer from 1 to 1,048,576"),
        ({"hidden_size": 8.0}, "hidden_size is 8.0, it must be an integer"),
        ({"hidden_size": 10**30}, "hidden_size is 10+, it must be an integer"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, it must be an integer"),
        ({"vocab_size": 1 << 40}, "vocab_size is 1099511627776"),
        ({"num_key_value_heads": 3, "num_attention_heads": 4}, "must be a divisor of num_attention_heads"),
        ({"hidden_size": 9}, "head_dim is missing, it must be given: 2 heads do not divide hidden_size"),
        ({"head_dim": 5}, "5 dimensions of a head are rotated, there must be an even number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, it must be a number"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not known: there are default"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' needs factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor is '2', it must be a number"),
        ({"rope_scaling": {**TURNED_ONCE, "high_freq_factor": 1.0}}, "not finite"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rotations that differ by layer type"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\], it must be an object"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', it must be silu"),
        ({"torch_dtype": "float8_e4m3fn"}, "must be one of float32, bfloat16, float16"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', it must be true or false"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "other heads yield no next token"),
        ({"sliding_window": 8}, "sliding_window is 8, it must be null: model_type llama has no windows"),
        ({"layer_types": ["sliding_attention"]}, "must be full_attention for all layers"),
        ({"layer_types": ["chunked_attention"]}, "it must be a list of 1 out of full_attention"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"] * 2}, "must be a list of 1 out of"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
    ],
)
def test_refused(read: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(**changes)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_quantized_weights_are_refused(read: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointRefused, match=r"quantized by 'gptq'.*take the checkpoint in bfloat16 or float16"):
        read(quantization_config={"quant_method": "gptq", "bits": 4})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{'a': 1}", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[1]", "holds a list, it must be a JSON object"),
        (b'{"a":' * 100_000, "is nested too deep"),
        (b'{"hidden_size": 8, "hidden_size": 9}', "the key 'hidden_size' stands there twice"),
    ],
)
def test_no_json_object(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no config\.json: name the folder"):
        read_config(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([10**25, -1, 0, 2]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor", "x"]), inner),
    max_leaves=4,
)
FIELDS = [
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_scaling", "rope_parameters", "partial_rotary_factor", "torch_dtype", "dtype", "hidden_act",
    "tie_word_embeddings", "eos_token_id", "bos_token_id", "architectures", "layer_types", "sliding_window",
    "use_sliding_window", "max_window_layers", "attention_bias", "quantization_config",
    "original_max_position_embeddings",
]  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3),
    family=st.sampled_from(["llama", "qwen3"]),
)
def test_any_content_yields_a_config_or_one_line(
    read: Callable[..., Any], changes: dict[str, Any], family: str
) -> None:
    with suppress(AmbidexError):
        config = read(**{"model_type": family} | changes)
        assert config.num_heads % config.num_kv_heads == 0
        assert len(config.windows) == config.num_layers
