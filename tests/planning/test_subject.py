"""What is planned: sizes against published models, and against what was asked for."""

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from ambidex.bench.shapes import SHAPES, write_checkpoint
from ambidex.hwprofiles.reader import load
from ambidex.planning.plan import plan
from ambidex.planning.question import Question
from ambidex.planning.subject import near_models, read_subject, sized_subject
from ambidex.runtime.errors import ConfigError, ModelNotFound
from hypothesis import given, settings
from hypothesis import strategies as st

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "dtype": "bfloat16"}
# config.json of meta-llama/Llama-3.1-8B, -70B, -405B and Llama-3.2-1B; parameters as their cards give them.
PUBLISHED = {
    "8B": (4096, 32, 32, 8, 14_336, False, 8_030_261_248),
    "70B": (8192, 80, 64, 8, 28_672, False, 70_553_706_496),
    "405B": (16_384, 126, 128, 8, 53_248, False, 405_853_388_800),
    "1B": (2048, 16, 32, 8, 8192, True, 1_235_814_400),
}


def published(name: str) -> dict[str, Any]:
    hidden, layers, heads, kv_heads, middle, tied, _ = PUBLISHED[name]
    return LLAMA | {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": middle, "tie_word_embeddings": tied,
        "vocab_size": 128_256, "max_position_embeddings": 131_072,
    }  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_its_published_parameters(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published(name)), encoding="utf-8")
    subject = read_subject(str(tmp_path))
    assert subject.num_parameters == PUBLISHED[name][-1]
    assert subject.checkpoint_bytes is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_is_that_model(name: str) -> None:
    subject = sized_subject("1.24B" if name == "1B" else name)
    hidden, layers, heads, kv_heads, middle, tied, parameters = PUBLISHED[name]
    config = subject.config
    assert subject.num_parameters == parameters
    assert (config.hidden_size, config.num_layers, config.num_heads, config.num_kv_heads) == (
        hidden, layers, heads, kv_heads)  # fmt: skip
    assert (config.intermediate_size, config.tied) == (middle, tied)


@settings(deadline=None)
@given(st.floats(0.35, 1000.0))
def test_a_size_is_met_within_six_percent(billions: float) -> None:
    wanted = f"{billions:.3f}B"
    assert sized_subject(wanted).num_parameters == pytest.approx(float(wanted[:-1]) * 1e9, rel=0.06)


@pytest.mark.parametrize("params", ["", "70", "B", "70X", "-7B", "7e9", "7 billion", "1M", "9T", "nanB", "70B "[::-1]])
def test_what_is_no_size_is_refused(params: str) -> None:
    with pytest.raises(ConfigError, match="8B, 70B or 350M"):
        sized_subject(params)


def test_an_unknown_family_is_refused_with_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'gpt'.*llama, mistral, qwen2, qwen3"):
        sized_subject("8B", "gpt")


def test_a_checkpoint_says_what_a_load_reads(tmp_path: Path) -> None:
    write_checkpoint(SHAPES["tiny"], tmp_path)
    subject = read_subject(str(tmp_path))
    assert subject.checkpoint_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert subject.checkpoint_bytes == pytest.approx(2 * subject.num_parameters, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", None])
def test_what_is_stored_in_32_bits_is_planned_in_the_formats_own(dtype: str | None, tmp_path: Path) -> None:
    """bf16 is two bytes a weight, and fp8 one, whatever the config says that its checkpoint has."""
    found = []
    for place, named in (("wide", dtype), ("narrow", "bfloat16")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text(json.dumps({**published("8B"), "dtype": named}), encoding="utf-8")
        subject = read_subject(str(tmp_path / place))
        rows = plan(subject, [load("nvidia-h100-sxm")], ["bf16", "fp8"], Question())
        found.append([(row["ledger"], row["tpot_ms"], row["max_concurrency"]) for row in rows])
    assert found[0] == found[1]
    assert found[0][0][0]["weights"] == 2 * subject.num_parameters


def test_a_name_that_is_not_there_brings_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama-8b").mkdir()
    (tmp_path / "llama-8b" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "hub" / "models--Qwen--Qwen2.5-7B").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert near_models("Qwen/Qwen2-7B") == ["Qwen/Qwen2.5-7B"]
    with pytest.raises(ModelNotFound, match=r"did you mean .*llama-8b\?$"):
        read_subject(str(tmp_path / "lama-8b"))


def test_a_config_without_a_field_is_refused_by_its_name(tmp_path: Path) -> None:
    config = published("8B")
    del config["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="num_hidden_layers is missing"):
        read_subject(str(tmp_path))


def test_a_config_beyond_all_models_is_refused_before_its_layers_are_looked_at(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1 << 20, "num_hidden_layers": 1024, "intermediate_size": 1 << 20, "head_dim": 1024,
             "num_attention_heads": 1024, "num_key_value_heads": 8, "vocab_size": 1 << 24}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published("8B") | sizes), encoding="utf-8")
    begun = perf_counter()
    with pytest.raises(ConfigError, match="parameters by its config: plans are made up to 5T"):
        read_subject(str(tmp_path))
    assert perf_counter() - begun < 5


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that answers nobody."""
    from huggingface_hub import constants
    from huggingface_hub.hf_api import api

    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path),
        "ENDPOINT": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setattr(constants, name, value)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(api, "endpoint", "http://127.0.0.1:9")  # it has read it already
    return tmp_path


def test_a_hub_that_cannot_be_reached_is_said_at_once(unreachable: Path) -> None:
    begun = perf_counter()
    with pytest.raises(ModelNotFound, match=r"the hub cannot be reached|could not be fetched from the hub"):
        read_subject("owner/name")
    assert perf_counter() - begun < 5


def test_without_a_hub_a_cached_config_is_planned(unreachable: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = unreachable / "models--owner--name"
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "snapshots" / commit / "config.json").write_text(json.dumps(published("8B")), encoding="utf-8")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit, encoding="utf-8")
    found = read_subject("owner/name")
    assert (found.num_parameters, found.checkpoint_bytes) == (8_030_261_248, None)
