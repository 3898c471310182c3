"""What a user may decide about an engine, and what each choice means: checked here, before anything is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch

from ..hwprofiles.schema import Profile
from ..ops import discovery
from ..ops.contract import FALLBACKS, Policy
from ..ops.types import DENSE, Determinism, Format, dtype_name
from .budget import parse_memory
from .config import ModelConfig
from .errors import ConfigError, DeviceError
from .fields import shown

JITS = ("allow", "forbid")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_COUNTS = {
    "max_model_len": 1 << 27, "max_num_seqs": 1 << 16, "max_num_batched_tokens": 1 << 24, "kv_cache_tokens": 1 << 48,
    "max_queued": 1 << 30,
}  # fmt: skip
_TEXTS = ("model", "revision", "device", "dtype", "quantization", "determinism", "fallback", "jit")
_REALS = {
    "gpu_memory_utilization": ("a number above 0 to 1", 1.0), "ageing_s": ("a number of seconds above 0", 1e9),
    "step_budget_ms": ("a number of milliseconds above 0", 1e9),
}  # fmt: skip
_FLAGS = ("prefix_caching", "overlap", "graphs", "prompt_graphs", "progress")


_TILE_PAGES = (64, 128, 32, 16)
"""Sizes of pages in the order in which they are tried: 64 keys are a tile of attention's kernels."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may decide about an engine; every default is decided here and reported.

    model: a folder, a hub id, or None for the embedded model. device: `cpu`, `cuda:0`, … or None for the best found.
    dtype: `auto` is the checkpoint's. max_model_len: tokens of one request; None: the model's, as far as memory goes.
    max_num_batched_tokens: tokens of one step; None: 2,048 on an accelerator, 512 where a longer step gains nothing.
    memory: of the device for all that the engine allocates, a size (`12GiB`, `800MB`) or a share of what is free (0.5);
    None: 0.92 of an accelerator's, half of a machine's. gpu_memory_utilization: the same as a share, under vLLM's name.
    kv_cache_tokens: size of the KV cache; None: what the other parts leave of the memory, at most max_num_seqs requests
    of max_model_len. step_budget_ms: a prompt is read in chunks so long that a step is predicted to take no longer, or
    None: as long as max_num_batched_tokens allows. max_queued: requests that may wait, more are refused; one with n
    completions is one. ageing_s: seconds of waiting that make up for one step of priority. prefix_caching: keep what
    prompts and completions leave in their pages for requests that begin alike. overlap: launch a step before the one
    before it is committed; None: where the device works by itself. graphs: replay recorded decode steps; None: where
    the backend records them. prompt_graphs: where it records on a device that works by itself, replay steps that read
    up to 1,024 tokens, too. quantization: the format in which the layers' products are kept, quantized at load; None:
    as the checkpoint has them. jit: `forbid` refuses to compile a kernel, from the start on and for the whole process:
    all are in the cache that `ambidex build-kernels` fills, or an error names the one that is not. kernels: explicit
    choices, site or op name -> kernel name.
    """

    model: str | None = None
    revision: str | None = None
    device: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    seed: int = 0
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    memory: str | float | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_tokens: int | None = None
    step_budget_ms: float | None = None
    max_queued: int = 8192
    ageing_s: float = 10.0
    prefix_caching: bool = True
    overlap: bool | None = None
    graphs: bool | None = None
    prompt_graphs: bool = True
    determinism: str = "run"
    fallback: str = "allow"
    jit: str = "allow"
    kernels: Mapping[str, str] = field(default_factory=dict[str, str])
    progress: bool = True

    def __post_init__(self) -> None:
        """ConfigError: a value of another type, or a number out of its range."""
        for name, most in _COUNTS.items():
            self._check(name, _whole(1, most), f"a whole number from 1 to {most:,}")
        for name in _TEXTS:
            self._check(name, lambda value: isinstance(value, str), "a string")
        for name in _FLAGS:
            self._check(name, lambda value: isinstance(value, bool), "true or false")
        for name, (wanted, highest) in _REALS.items():
            self._check(name, _real(highest), wanted)
        self._check("seed", _whole(-(1 << 63), (1 << 63) - 1), "an integer of 64 bits")
        self._check("kernels", _is_choice, "names of sites or ops, each with that of a kernel")
        if self.memory is not None:
            parse_memory(self.memory)
            if (share := self.gpu_memory_utilization) is not None:
                raise ConfigError(
                    f"memory is {self.memory} and gpu_memory_utilization {share}: both say how much memory, give one"
                )
        if self.jit not in JITS:
            raise ConfigError(f"jit is {self.jit!r}: it is one of {', '.join(JITS)}")

    def _check(self, name: str, serves: Callable[[Any], bool], wanted: str) -> None:
        value = getattr(self, name)
        is_left_out = value is None and Options.__dataclass_fields__[name].default is None
        if not is_left_out and not serves(value):
            raise ConfigError(f"{name} is {shown(value)}: it must be {wanted}")


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _real(most: float) -> Callable[[Any], bool]:
    """Above 0, where no NaN is."""
    return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= most


def _is_choice(kernels: object) -> bool:
    return isinstance(kernels, Mapping) and all(isinstance(word, str) for pair in kernels.items() for word in pair)


def policy(options: Options, profile: Profile | None = None) -> Policy:
    """What the options ask of a binding. Where memory is fast and a matrix unit reads whole tiles of keys, a page that
    holds a tile comes first: one number then says where the tile lies. Elsewhere small pages waste less of a prefix."""
    try:
        level = Determinism(options.determinism)
    except ValueError:
        known = ", ".join(Determinism)
        raise ConfigError(f"determinism is {options.determinism!r}: it is one of {known}") from None
    if options.fallback not in FALLBACKS:
        raise ConfigError(f"fallback is {options.fallback!r}: it is one of {', '.join(FALLBACKS)}")
    asked = Policy(determinism=level, fallback=options.fallback, choices=MappingProxyType(dict(options.kernels)))
    return replace(asked, page_sizes=_TILE_PAGES) if profile and profile.memory.kind == "hbm" else asked


def run_dtype(wanted: str, config: ModelConfig, profile: Profile) -> torch.dtype:
    """The dtype to run in. DeviceError: one that the profile lacks, with those that it has."""
    if wanted != "auto" and wanted not in DTYPES:
        raise ConfigError(f"dtype is {wanted!r}: it is auto or one of {', '.join(DTYPES)}")
    dtype = config.dtype if wanted == "auto" else DTYPES[wanted]
    if dtype_name(dtype) in profile.dtypes:
        return dtype
    possible = [name for name in DTYPES if name in profile.dtypes]
    raise DeviceError(f"{profile.name} does not compute {dtype_name(dtype)}: choose dtype {' or '.join(possible)}")


def find_format(name: str | None) -> Format:
    """The weight format of that name. ConfigError: there is none, with those that there are."""
    known = discovery.formats()
    if name is not None and name not in known:
        raise ConfigError(f"quantization is {shown(name)}: there are {', '.join(sorted(known))}")
    return known[name] if name else DENSE


def token_budget(options: Options, profile: Profile) -> int:
    """Tokens of one step: enough to fill the device's matrix units, no more, since activations grow with them."""
    return options.max_num_batched_tokens or (512 if profile.memory.kind == "dram" else 2048)
