"""Hugging Face's `transformers` as a contender: `AutoModelForCausalLM.generate` as its users call it.

Greedy, with its cache, its default attention, the same weights, ids and threads. Its own hook for streaming says when
each token is there. (The difference between a long and a short generation says the same, with the noise of both.)
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch


class _Clock:
    """A streamer that notes when `generate` hands over the prompt (first) and each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: torch.Tensor) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        pass


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
        begun = perf_counter()
        _, *times = self._times(torch.tensor(prompts), num_tokens)
        total_s = perf_counter() - begun
        assert len(times) == num_tokens
        steps = [after - before for before, after in pairwise(times)]
        return {"total_s": total_s, "first_s": times[0] - begun, "step_s": steps}

    def bandwidth_gb_per_s(self) -> None:
        return None

    @torch.inference_mode()
    def _times(self, ids: torch.Tensor, num_tokens: int) -> list[float]:
        clock = _Clock()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            streamer=clock,
        )
        return clock.times
