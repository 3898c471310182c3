"""What is planned: the sizes of a model, from its config.json alone, or from a number of parameters and a family.

No weight is read: of a checkpoint in a folder or on the hub the config and, where they are there, the headers of its
safetensors files (their tensors' bytes, which is what a load has to read).
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..runtime.checkpoint import resolve
from ..runtime.config import ModelConfig, read_config
from ..runtime.errors import ConfigError, ModelNotFound
from ..runtime.fields import Fields, shown
from ..runtime.model import find_model, model_types

_PARAMS = re.compile(r"(\d{1,6}(?:\.\d{1,4})?)\s*([MBT])", re.IGNORECASE)
_UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}
_LEAST, _MOST = 10**7, 4 * 10**12
_MOST_OF_A_CONFIG = 5 * 10**12
"""More are a mistake or a trap: to look at their layers would take minutes."""
_HEAD_SIZE, _KV_HEADS, _MAX_POSITIONS = 128, 8, 131_072


@dataclass(frozen=True)
class Subject:
    """config: in 16 bits, whatever the checkpoint's are. num_parameters: all that it asks for. checkpoint_bytes: of
    the tensors in its files; None: not known."""

    name: str
    config: ModelConfig
    num_parameters: int
    checkpoint_bytes: int | None = None


def read_subject(model: str, revision: str | None = None) -> Subject:
    """The model in a folder or of a hub id. Errors: those of `runtime.checkpoint.resolve` and `read_config`, of a name
    that is not found with those that are near."""
    try:
        folder = Path(model).expanduser()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as failure:  # a name too long, the home of nobody
        reason = getattr(failure, "strerror", None) or "nobody of that name has a home here"
        raise ModelNotFound(f"{shown(model)} is no folder: {reason}; name the folder of a checkpoint") from None
    if is_folder:
        return _of(model, read_config(folder), _bytes_on_disk(folder))
    try:
        return _on_hub(model, revision)
    except ModelNotFound as failure:
        near = near_models(model)
        guess = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ModelNotFound(f"{failure}{guess}") from None


def near_models(model: str) -> list[str]:
    """Models here whose names are like it: folders beside where it would be, and ids in the hub's cache."""
    import huggingface_hub

    place = Path(model).expanduser()
    beside = place.parent.glob("*/config.json") if place.parent.is_dir() else ()
    cached = Path(huggingface_hub.constants.HF_HUB_CACHE).glob("models--*")
    ids = [path.name.removeprefix("models--").replace("--", "/") for path in cached]
    return difflib.get_close_matches(model, [*(str(path.parent) for path in beside), *ids], n=2, cutoff=0.6)


def sized_subject(params: str, family: str = "llama") -> Subject:
    """A dense model of so many parameters (`70B`, `0.5B`, `350M`) in the proportions of a family's published models.

    Known sizes of Llama 3 are taken as they are; between them depth and width are interpolated and the layers' middle
    is set so that the number is met. ConfigError: no number, one out of range, or an unknown family.
    """
    found = _PARAMS.fullmatch(params.strip())
    wanted = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not found or not _LEAST <= wanted <= _MOST:
        raise ConfigError(f"params is {shown(params)}: it is a size from 10M to 4T, as 8B, 70B or 350M")
    if family not in model_types():
        raise ConfigError(f"family is {shown(family)}: known are {', '.join(model_types())}")
    fields = _sizes(wanted) | {"model_type": family, "architectures": ["PlannedForCausalLM"]}
    return _of(f"{family} {params.strip().upper()}", find_model(family).config(Fields(fields, f"--params {params}")))


def _of(name: str, config: ModelConfig, checkpoint_bytes: int | None = None) -> Subject:
    """A plan's formats say in how many bits it runs: one in float32, or that names no dtype, is planned in 16."""
    if config.dtype.itemsize > 2:
        config = replace(config, dtype=torch.bfloat16)
    parameters = find_model(config.model_type).parameters(config)
    num_parameters = sum(math.prod(each.shape) for each in parameters)
    if num_parameters > _MOST_OF_A_CONFIG:
        raise ConfigError(f"{name} has {num_parameters / 1e12:,.1f}T parameters by its config: plans are made up to 5T")
    return Subject(name, config, num_parameters, checkpoint_bytes)


def _bytes_on_disk(folder: Path) -> int | None:
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated")]
    return sum(sizes) or None


def _on_hub(model: str, revision: str | None) -> Subject:
    """Config and headers only; without the network what the cache holds."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils.logging import set_verbosity

    set_verbosity(logging.ERROR)  # what it tries again is said once, in the failure
    no_headers: tuple[type[BaseException], ...] = (  # the bases are the client's own errors of connections
        *errors.HfHubHTTPError.__bases__, errors.NotASafetensorsRepoError, errors.OfflineModeIsEnabled, OSError
    )  # fmt: skip
    # Not by its name alone: a single file is asked for again and again, half a minute where there is no network.
    config = read_config(resolve(model, revision, ["config.json"]))
    try:
        metadata = huggingface_hub.get_safetensors_metadata(model, revision=revision)
    except no_headers:
        return _of(model, config)
    files = metadata.files_metadata.values()
    ends = [max((each.data_offsets[1] for each in file.tensors.values()), default=0) for file in files]
    return _of(model, config, sum(ends) or None)


_KNOWN: Mapping[int, tuple[int, int, int, int, int]] = {  # hidden, layers, query heads, middle, vocabulary
    1_235_814_400: (2048, 16, 32, 8192, 128_256),
    3_212_749_824: (3072, 28, 24, 8192, 128_256),
    8_030_261_248: (4096, 32, 32, 14_336, 128_256),
    70_553_706_496: (8192, 80, 64, 28_672, 128_256),
    405_853_388_800: (16_384, 126, 128, 53_248, 128_256),
}
"""Llama 3.1 and 3.2: Grattafiori et al., arXiv:2407.21783, table 3, and the 1B's and 3B's config.json."""
_ROUNDING = 0.06
_TIED_BELOW = 4e9


def _sizes(wanted: float) -> dict[str, Any]:
    near = min(_KNOWN, key=lambda each: abs(math.log(each / wanted)))
    is_known = abs(near / wanted - 1) <= _ROUNDING
    hidden, layers, heads, middle, vocabulary = _KNOWN[near] if is_known else _interpolated(wanted)
    head_size = hidden // heads if is_known else _HEAD_SIZE
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": head_size,
        "num_key_value_heads": min(_KV_HEADS, heads), "intermediate_size": middle, "vocab_size": vocabulary,
        "max_position_embeddings": _MAX_POSITIONS, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "dtype": "bfloat16",
        "tie_word_embeddings": wanted < _TIED_BELOW,
    }  # fmt: skip


def _interpolated(wanted: float) -> tuple[int, int, int, int, int]:
    """Depth and width on the line through the known models (both log against log), the middle from what is left."""
    logs = [math.log(each) for each in _KNOWN]
    hidden_slope, hidden_at = _line(logs, [math.log(sizes[0]) for sizes in _KNOWN.values()])
    layers_slope, layers_at = _line(logs, [math.log(sizes[1]) for sizes in _KNOWN.values()])
    unit = _HEAD_SIZE * _KV_HEADS
    hidden = max(unit, round(math.exp(hidden_slope * math.log(wanted) + hidden_at) / unit) * unit)
    layers = max(2, round(math.exp(layers_slope * math.log(wanted) + layers_at)))
    vocabulary = next(iter(_KNOWN.values()))[4] if wanted > 1e9 else 32_000
    tables = vocabulary * hidden * (1 if wanted < _TIED_BELOW else 2)
    attention = hidden * (2 * hidden + 2 * unit)
    middle = ((wanted - tables) / layers - attention) / (3 * hidden)
    return hidden, layers, hidden // _HEAD_SIZE, max(256, round(middle / 256) * 256), vocabulary


def _line(xs: list[float], ys: list[float]) -> tuple[float, float]:
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)
    return slope, mean_y - slope * mean_x
