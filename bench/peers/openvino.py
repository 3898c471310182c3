"""OpenVINO GenAI: its continuous batching pipeline, which its model server runs, stepped by hand.

The checkpoint is converted by optimum-intel, as its documentation says, in the dtype that it has. The engine computes
and keeps its KV cache in that dtype (it would quantize the cache to eight bits by itself).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

NEEDS = {"openvino": "openvino", "openvino_genai": "openvino-genai", "numpy": "numpy"}
CONVERT_NEEDS = {"optimum.intel": "optimum-intel"}

_BLOCK_TOKENS = 32
_PRECISIONS = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}


def convert(folder: Path, target: Path) -> None:
    """The weights as they are: unasked, the exporter makes 8 bits of those of a model of a billion parameters."""
    exporters: Any = import_module("optimum.exporters.openvino")
    intel: Any = import_module("optimum.intel.openvino")
    exporters.main_export(
        str(folder), output=str(target), task="text-generation-with-past", convert_tokenizer=False,
        ov_config=intel.OVConfig(dtype="auto"),
    )  # fmt: skip
    given = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    made = (target / "openvino_model.bin").stat().st_size
    if made < 0.9 * given:
        raise ValueError(f"the exporter made {made:,} bytes of {given:,}: these are other weights")


class OpenVINO:
    """options: `model` (a converted folder), `dtype`, `threads`, `max_num_seqs`, `kv_cache_tokens`, `input_len`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options["device"] != "cpu":
            raise ValueError("openvino is compared on the CPU only: --device cpu")
        self._numpy: Any = import_module("numpy")
        self._openvino: Any = import_module("openvino")
        self._genai: Any = import_module("openvino_genai")
        precision = _PRECISIONS[options["dtype"]]
        self._folder, self._threads = Path(options["model"]), options["threads"]
        scheduler = self._genai.SchedulerConfig()
        scheduler.num_kv_blocks = options["kv_cache_tokens"] // _BLOCK_TOKENS + 2 * options["max_num_seqs"]
        scheduler.max_num_batched_tokens = max(scheduler.max_num_batched_tokens, options["input_len"])
        scheduler.max_num_seqs = options["max_num_seqs"]
        properties = {
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._pipeline = self._genai.ContinuousBatchingPipeline(str(self._folder), scheduler, "CPU", properties)
        config = json.loads((self._folder / "config.json").read_text(encoding="utf-8"))
        self._no_token = config["vocab_size"]  # an end-of-text id that never comes
        self._num_requests = 0

    def loaded(self) -> dict[str, Any]:
        weights = self._folder / "openvino_model.bin"
        return {
            "version": self._genai.__version__,
            "threads": self._threads,
            "weight_bytes": weights.stat().st_size,
        }

    def generate(self, prompts: list[list[int]], output_lens: list[int]) -> dict[str, Any]:
        begun = perf_counter()
        handles = [self._add(ids, length) for ids, length in zip(prompts, output_lens, strict=True)]
        first_s, step_s = 0.0, []
        ids: list[list[int]] = [[] for _ in prompts]
        while self._pipeline.has_non_finished_requests():
            before = perf_counter()
            self._pipeline.step()
            after = perf_counter()
            news = [_new_ids(handle) for handle in handles]
            ids = [old + new for old, new in zip(ids, news, strict=True)]
            if first_s and all(news):
                step_s.append(after - before)
            elif not first_s and all(ids):
                first_s = after - begun
        assert [len(each) for each in ids] == output_lens
        total_s = perf_counter() - begun
        return {"total_s": total_s, "first_s": first_s, "step_s": step_s, "ids": [each[0] for each in ids]}

    def _add(self, ids: list[int], num_tokens: int) -> Any:
        config = self._genai.GenerationConfig(
            max_new_tokens=num_tokens, ignore_eos=True, do_sample=False, eos_token_id=self._no_token
        )
        self._num_requests += 1
        tensor = self._openvino.Tensor(self._numpy.array([ids], dtype=self._numpy.int64))
        return self._pipeline.add_request(self._num_requests, tensor, config)


def _new_ids(handle: Any) -> list[int]:
    """Tokens that came since the last call."""
    if not handle.can_read():
        return []
    return [token for output in handle.read().values() for token in output.generated_ids]


CONTENDER = OpenVINO
