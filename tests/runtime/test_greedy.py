"""64 greedy tokens of the whole engine, with the kernels of this machine, are transformers' in float32."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ambidex import LLM, SamplingParams
from ambidex.runtime.embedded.location import folder as embedded_folder

NUM_TOKENS = 64
PROMPTS = [[1, 17, 88, 5, 33, 70, 2, 9, 41], [1], [1, 60, 61, 62, 60, 61, 62, 60, 61, 62, 60, 61, 62, 60, 61, 62, 60]]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, **parameters}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-grouped": ("llama", {}),
    "llama-tied-heads-of-10": ("llama", {"head_dim": 10, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-llama3-biases": ("llama", {**rope(**LLAMA3), "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", rope(rope_type="linear", factor=2.0)),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "qwen2-upper-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen2-yarn-tied": ("qwen2", {**rope(**YARN), "tie_word_embeddings": True}),
    "qwen3-heads-of-20": ("qwen3", {"head_dim": 20}),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small wait longer for a second thread than they take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checkpoint(model: Any, folder: Path) -> Path:
    """The model's files, and the embedded model's tokenizer, which prompts of ids do not use."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_folder() / name, folder / name)
    return folder


def wanted(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        tokens = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
    return tokens[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_transformers(case: str, make_model: Callable[..., Any], tmp_path: Path) -> None:
    model_type, fields = CASES[case]
    model = make_model(model_type, **{"max_position_embeddings": 128, **fields})
    llm = LLM(str(checkpoint(model, tmp_path)), dtype="float32", max_num_batched_tokens=16, progress=False)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    expected = [wanted(model, prompt) for prompt in PROMPTS]
    assert [llm.generate(prompt, params)[0].outputs[0].token_ids for prompt in PROMPTS] == expected
    assert [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)] == expected
