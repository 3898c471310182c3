"""llama.cpp by llama-cpp-python: its own batches, `llama_decode`, and the likeliest token of each row of logits.

The checkpoint is written as GGUF in the dtype that it has, with llama.cpp's order of rows in q and k. KV cache,
attention and micro-batches are llama.cpp's defaults. Requests that have ended leave the batch,
and those that wait take their places.
"""

from __future__ import annotations

import ctypes
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

NEEDS = {"llama_cpp": "llama-cpp-python", "numpy": "numpy"}
CONVERT_NEEDS = {"gguf": "gguf"}

_ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
_BATCH_TOKENS = 2048
_MODEL_FILE = "model.gguf"

_Entry = tuple[int, int, int, bool]
"""Of a batch: sequence, position, token, whether logits are wanted."""


def convert(folder: Path, target: Path) -> None:
    gguf: Any = import_module("gguf")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = _ARCHITECTURES.get(config["model_type"])
    if name is None:
        known = ", ".join(_ARCHITECTURES)
        raise ValueError(f"{config['model_type']} is not written as GGUF here: there are {known}")
    arch = gguf.MODEL_ARCH[name]
    writer = gguf.GGUFWriter(target / _MODEL_FILE, gguf.MODEL_ARCH_NAMES[arch])
    _write_sizes(writer, gguf, config)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for source, tensor in _tensors(gguf, folder):
        short = source.split(".")[-2]
        permuted = heads[short] if name == "LLAMA" and short in heads else None
        _write_tensor(writer, gguf, names.get_name(source, try_suffixes=(".weight", ".bias")), tensor, permuted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: Any, gguf: Any, config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError("a checkpoint with scaled rope is not written as GGUF here: compare another model")
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta", 10_000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")  # ids go in and out


def _tensors(gguf: Any, folder: Path) -> Iterator[tuple[str, Any]]:
    utility: Any = import_module("gguf.utility")
    for path in sorted(folder.glob("*.safetensors")):
        yield from utility.SafetensorsLocal(path).tensors.items()


def _write_tensor(writer: Any, gguf: Any, name: str, tensor: Any, heads: int | None) -> None:
    """Matrices keep their bits; vectors become float32, which is what llama.cpp adds and multiplies."""
    numpy: Any = import_module("numpy")
    stored = {"BF16": numpy.uint16, "F16": numpy.uint16, "F32": numpy.float32}[tensor.dtype]
    values = tensor.mmap_bytes().view(stored).reshape(tensor.shape)
    if heads is not None:
        values = in_pairs(values, heads)
    if values.ndim == 1:
        writer.add_tensor(name, _widened(numpy, values, tensor.dtype))
        return
    raw = numpy.ascontiguousarray(values).view(numpy.uint8).reshape(values.shape[0], -1)
    writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[tensor.dtype])


def in_pairs(values: Any, heads: int) -> Any:
    """Rows [heads × size] whose rotated halves lie one after the other, as in a checkpoint, as pairs side by side."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _widened(numpy: Any, values: Any, dtype: str) -> Any:
    if dtype == "BF16":
        return (values.astype(numpy.uint32) << 16).view(numpy.float32)
    return (values.view(numpy.float16) if dtype == "F16" else values).astype(numpy.float32)


def _prompt_entries(row: int, ids: Sequence[int]) -> list[_Entry]:
    return [(row, position, token, position == len(ids) - 1) for position, token in enumerate(ids)]


def _next_entry(row: int, ids: Sequence[int], answer: Sequence[int]) -> _Entry:
    return row, len(ids) + len(answer) - 1, answer[-1], True


def _sequence(entry: _Entry) -> int:
    return entry[0]


class LlamaCpp:
    """options: `model` (a converted folder), `threads`, `max_num_seqs`, `max_model_len`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options["device"] != "cpu":
            raise ValueError("llama.cpp is compared on the CPU only: --device cpu")
        self._numpy: Any = import_module("numpy")
        self._library: Any = import_module("llama_cpp")
        self._quiet = self._library.llama_log_callback(lambda level, text, data: None)  # kept: C calls it
        self._library.llama_log_set(self._quiet, None)
        self._library.llama_backend_init()
        path = str(Path(options["model"]) / _MODEL_FILE).encode()
        self._model = self._library.llama_model_load_from_file(path, self._library.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path.decode()}")
        self._threads, self._num_sequences = options["threads"], options["max_num_seqs"]
        self._context = self._new_context(options["max_model_len"], self._num_sequences)
        self._memory = self._library.llama_get_memory(self._context)
        self._vocabulary_size = self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(self._model))
        self._batch = self._library.llama_batch_init(_BATCH_TOKENS, 0, 1)

    def _new_context(self, length: int, num_sequences: int) -> Any:
        params = self._library.llama_context_default_params()
        params.n_ctx = length * num_sequences
        params.n_seq_max = num_sequences
        params.n_batch = _BATCH_TOKENS
        params.n_threads = params.n_threads_batch = self._threads
        context = self._library.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context of {num_sequences} times {length} tokens")
        return context

    def loaded(self) -> dict[str, Any]:
        return {
            "version": self._library.__version__,
            "threads": self._threads,
            "weight_bytes": self._library.llama_model_size(self._model),
        }

    def generate(self, prompts: list[list[int]], output_lens: list[int]) -> dict[str, Any]:
        self._library.llama_memory_clear(self._memory, False)
        answers: list[list[int]] = [[] for _ in prompts]
        waiting, free, running = deque(range(len(prompts))), set(range(self._num_sequences)), dict[int, int]()
        begun = perf_counter()
        first_s, step_s = 0.0, []
        while waiting or running:
            before = perf_counter()
            entries = [_next_entry(row, prompts[each], answers[each]) for row, each in running.items()]
            for row in sorted(free)[: len(waiting)]:
                free.remove(row)
                running[row] = each = waiting.popleft()
                entries += _prompt_entries(row, prompts[each])
            entries.sort(key=_sequence)  # stable: llama.cpp computes sequences together where they come in order
            for row, token in self._tokens(entries).items():
                answers[running[row]].append(token)
            after = perf_counter()
            if first_s and len(running) == len(prompts):
                step_s.append(after - before)
            elif not first_s and all(answers):
                first_s = after - begun
            for row in [row for row, each in running.items() if len(answers[each]) == output_lens[each]]:
                del running[row]
                free.add(row)
                self._library.llama_memory_seq_rm(self._memory, row, -1, -1)
        total_s = perf_counter() - begun
        return {"total_s": total_s, "first_s": first_s, "step_s": step_s, "ids": [each[0] for each in answers]}

    def _tokens(self, entries: Sequence[_Entry]) -> dict[int, int]:
        """The next token of each sequence whose last entry is there, in batches of at most `_BATCH_TOKENS`."""
        tokens: dict[int, int] = {}
        for start in range(0, len(entries), _BATCH_TOKENS):
            tokens |= self._decode(entries[start : start + _BATCH_TOKENS])
        return tokens

    def _decode(self, entries: Sequence[_Entry]) -> dict[int, int]:
        """One batch: the likeliest next token of the rows that want one."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, (row, position, token, wanted) in enumerate(entries):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
        if status := self._library.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode answered {status}")
        return {row: self._likeliest(index) for index, (row, _, _, wanted) in enumerate(entries) if wanted}

    def _likeliest(self, index: int) -> int:
        logits = self._library.llama_get_logits_ith(self._context, index)
        address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return int(self._numpy.ctypeslib.as_array(address, (self._vocabulary_size,)).argmax())


CONTENDER = LlamaCpp
