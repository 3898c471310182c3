"""Hugging Face's `transformers` as a contender: `AutoModelForCausalLM.generate` as its users call it.

Greedy, with its cache, its default attention, the same weights, ids and threads. It is timed from outside: the time to
the first token is that of a generation of one token, so decode is the difference between a long and a short one.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from .contender import timed


class TransformersContender:
    """options: `model` (a folder) and `dtype` (a torch name)."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        transformers: Any = import_module("transformers")  # typed as Any: its own types change from release to release
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        dtype = getattr(torch, options["dtype"])
        self._version = transformers.__version__
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            options["model"], dtype=dtype, use_safetensors=True
        ).eval()

    def loaded(self) -> dict[str, Any]:
        parameters = {id(each): each for each in self._model.parameters()}.values()
        return {
            "version": self._version,
            "vocabulary_size": self._model.config.vocab_size,
            "attention": self._model.config._attn_implementation,
            "weight_bytes": sum(each.numel() * each.element_size() for each in parameters),
        }

    def generate(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        ids = torch.tensor(prompts)
        first_s = timed(self._run, ids, 1)
        if num_tokens == 1:
            return {"total_s": first_s, "first_s": first_s, "step_s": []}
        total_s = timed(self._run, ids, num_tokens)
        return {"total_s": total_s, "first_s": first_s, "step_s": [(total_s - first_s) / (num_tokens - 1)]}

    def bandwidth_gb_per_s(self) -> None:
        return None

    @torch.inference_mode()
    def _run(self, ids: torch.Tensor, num_tokens: int) -> None:
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        assert made.shape[1] == ids.shape[1] + num_tokens
