"""Hugging Face's `transformers`: `AutoModelForCausalLM.generate` as its users call it.

Greedy, with its cache, its default attention, the same weights, ids and threads. Its own hook for streaming says when
each token is there. (The difference between a long and a short generation says the same, with the noise of both.)
Prompts of unequal length are padded on the left and masked; it knows one output length a batch, the longest. More
prompts than `max_num_seqs` go in batches of so many, one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from itertools import pairwise
from time import perf_counter
from typing import Any

NEEDS = {"torch": "torch", "transformers": "transformers"}


class _Clock:
    """A streamer that notes when `generate` hands over the prompt (first) and each token."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ids: list[Any] = []

    def put(self, ids: Any) -> None:
        self.times.append(perf_counter())
        self.ids.append(ids)

    def end(self) -> None:
        pass


class Transformers:
    """options: `model` (a folder), `dtype` and `device` (torch's names), `threads`, `max_num_seqs`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")
        self._torch.set_num_threads(options["threads"])
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._version = f"{transformers.__version__}, torch {self._torch.__version__}"
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            options["model"], dtype=getattr(self._torch, options["dtype"]), use_safetensors=True
        )
        self._device, self._batch_size = options["device"], options["max_num_seqs"]
        self._model = self._model.eval().to(self._device)

    def loaded(self) -> dict[str, Any]:
        parameters = {id(each): each for each in self._model.parameters()}.values()
        return {
            "version": self._version,
            "threads": self._torch.get_num_threads(),
            "attention": self._model.config._attn_implementation,
            "weight_bytes": sum(each.numel() * each.element_size() for each in parameters),
        }

    def generate(self, prompts: list[list[int]], output_lens: list[int]) -> dict[str, Any]:
        begun = perf_counter()
        ids: list[int] = []
        for start in range(0, len(prompts), self._batch_size):
            batch = slice(start, start + self._batch_size)
            clock = self._generate(prompts[batch], max(output_lens[batch]))
            assert len(clock.times) == 1 + max(output_lens[batch])
            ids += clock.ids[1].tolist()
        total_s = perf_counter() - begun
        steps = [after - before for before, after in pairwise(clock.times[1:])]
        return {"total_s": total_s, "first_s": clock.times[1] - begun, "step_s": steps, "ids": ids}

    def _generate(self, prompts: list[list[int]], num_tokens: int) -> _Clock:
        longest = max(map(len, prompts))
        padding = [longest - len(ids) for ids in prompts]
        clock = _Clock()
        with self._torch.inference_mode():
            self._model.generate(
                self._torch.tensor(
                    [[0] * left + ids for left, ids in zip(padding, prompts, strict=True)], device=self._device
                ),
                attention_mask=self._torch.tensor(
                    [[0] * left + [1] * (longest - left) for left in padding], device=self._device
                ),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
                streamer=clock,
            )
        return clock


CONTENDER = Transformers
