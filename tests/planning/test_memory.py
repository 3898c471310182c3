"""The ledger of a plan is the ledger of the engine that would start there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ambidex.hwprofiles.reader import load
from ambidex.planning.memory import Demand, kv_token_bytes, ledger, usable_budget, weight_bytes
from ambidex.planning.precision import precision
from ambidex.planning.present import present
from ambidex.planning.shards import shard
from ambidex.planning.subject import read_subject, sized_subject
from ambidex.runtime.errors import ConfigError, OutOfMemory
from ambidex.runtime.ledger import Ledger
from ambidex.runtime.options import Options
from ambidex.runtime.start import decide_for

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "dtype": "bfloat16",
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14_336, "vocab_size": 128_256, "max_position_embeddings": 131_072,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "context", "seqs", "budget"),
    [("nvidia-h100-sxm", 8192, 64, 2048), ("amd-mi300x", 131_072, 16, 8192), ("nvidia-b200", None, 256, 512)],
)
def test_it_is_the_engines_own_for_bf16_on_one_device(
    name: str, context: int | None, seqs: int, budget: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    profile = load(name)
    options = Options(
        model=str(tmp_path), max_model_len=context, max_num_seqs=seqs, max_num_batched_tokens=budget
    )  # fmt: skip
    engines = decide_for(options, profile).ledger
    stored = precision("bf16", profile)
    assert not isinstance(stored, str)
    demand = Demand(context, max_num_seqs=seqs, token_budget=budget)
    plans = ledger(shard(read_subject(str(tmp_path)).config), profile, stored, demand, None)
    assert isinstance(plans, Ledger)
    assert plans.predicted == engines.predicted
    assert (plans.max_model_len, plans.kv_cache_tokens) == (engines.max_model_len, engines.kv_cache_tokens)
    assert plans.limit == engines.limit


@pytest.mark.parametrize("options", [{}, {"prompt_graphs": False}, {"graphs": False}])
def test_an_engine_is_planned_with_the_graphs_that_it_has(options: dict[str, bool], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    asked = Options(model=str(tmp_path), max_model_len=4096, max_num_seqs=32, **options)
    decided = decide_for(asked, load("nvidia-h200-sxm"))
    planned = present(decided, None)
    assert planned.ledger.predicted == decided.ledger.predicted
    replayed = planned.step_time.prompt_graph(np.array([100]))
    assert replayed == (None if options else (128, 16))


def test_bytes_by_hand() -> None:
    part, profile = shard(sized_subject("70B").config, 2), load("nvidia-h100-sxm")
    fp8, wide = (precision(name, profile, kv) for name, kv in (("fp8", "fp8"), ("bf16", "bf16")))
    assert not isinstance(fp8, str)
    assert not isinstance(wide, str)
    assert kv_token_bytes(part, wide) == 2 * 80 * 8 * 128 * 2 // 2
    assert kv_token_bytes(part, fp8) == kv_token_bytes(part, wide) // 2
    assert weight_bytes(part, wide) == part.table_bytes + part.layer_bytes
    assert weight_bytes(part, fp8) == part.table_bytes + part.layer_bytes // 2
    assert part.table_bytes == pytest.approx(2 * 128_256 * 8192 * 2 / 2, rel=0.01)


def test_a_shortage_is_a_value() -> None:
    part, profile = shard(sized_subject("70B").config), load("nvidia-h100-sxm")
    stored = precision("bf16", profile)
    assert not isinstance(stored, str)
    assert isinstance(ledger(part, profile, stored, Demand(1024), None), OutOfMemory)


def test_a_hosts_memory_is_not_known_elsewhere() -> None:
    host = load("cpu-avx512")
    with pytest.raises(ConfigError, match="has its host's memory"):
        usable_budget(host, Demand(), None)
    here = host.on_device(usable_gib=16.0)
    assert usable_budget(here, Demand(), None).num_bytes == 8 << 30
    assert usable_budget(here, replace(Demand(), memory_share=0.25), None).num_bytes == 4 << 30
