"""From a checkpoint to a running engine: profile → backend → sites → binding → weights → state → engine.

Everything is decided before anything is allocated: a model that does not fit is refused with the figures first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch

from ..backends.choosing import best
from ..backends.contract import Backend
from ..hwprofiles.match import DeviceReport
from ..hwprofiles.schema import Profile
from ..ops import discovery
from ..ops.binding import Binding, bind
from ..ops.contract import Policy
from ..ops.layouts import ROW_MAJOR
from ..ops.state import StateGroup
from ..ops.types import DENSE, Determinism, Format, Site, dtype_name
from .arena import Arena, arena_bytes
from .checkpoint import Checkpoint, resolve
from .config import ModelConfig, read_config
from .embedded.location import folder as embedded_folder
from .engine import Engine, Limits
from .errors import ConfigError, DeviceError, OutOfMemory
from .execute.slots import SlotTable
from .execute.worker import Worker, allocate_state, state_tensors
from .loading import load_weights, stored_as, trace
from .model import Model, Parameter, find_model
from .schedule.pages import PagePool
from .schedule.scheduler import Scheduler
from .tokenizer import Tokenizer

GIB = 2**30
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may decide about an engine; every default is decided here and reported.

    model: a folder, a hub id, or None for the embedded model. device: `cpu`, `cuda:0`, … or None for the best found.
    dtype: `auto` is the checkpoint's. max_model_len: tokens of one request; None: the model's, as far as memory goes.
    gpu_memory_utilization: share of the device's free memory for weights and KV cache together; None: 0.92 of an
    accelerator's, half of a machine's. kv_cache_tokens: size of the KV cache; None: what the share leaves, at most
    max_num_seqs requests of max_model_len. quantization: the format in which the layers' products are kept, quantized
    at load; None: as the checkpoint has them. kernels: explicit choices, site or op name -> kernel name.
    """

    model: str | None = None
    revision: str | None = None
    device: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    seed: int = 0
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    gpu_memory_utilization: float | None = None
    kv_cache_tokens: int | None = None
    determinism: str = "run"
    fallback: str = "allow"
    kernels: Mapping[str, str] = field(default_factory=dict[str, str])
    progress: bool = True


@dataclass(frozen=True)
class Loaded:
    """A running engine and everything that was decided on the way."""

    engine: Engine
    config: ModelConfig
    profile: Profile
    backend: Backend
    report: DeviceReport
    device: torch.device
    binding: Binding
    dtype: torch.dtype
    weight_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int


@dataclass(frozen=True)
class Capacity:
    """How the memory is shared out."""

    max_model_len: int
    kv_cache_tokens: int


def start(options: Options) -> Loaded:
    """Builds an engine. Raises the errors of `errors.py`, `BindingError` and `ProfileError`."""
    backend, report, profile = place(options.device)
    device = backend.device(report)
    folder = resolve_model(options.model, options.revision)
    config = read_config(folder)
    dtype = run_dtype(options.dtype, config, profile)
    config = replace(config, dtype=dtype)
    tokenizer = Tokenizer(folder)
    model_class = find_model(config.model_type)
    stored = find_format(options.quantization)
    sites = trace(model_class, config, dtype, stored)
    binding = bind(sites, profile, policy(options), missing=discovery.missing_languages())
    parameters, groups = model_class.parameters(config), model_class.groups(config)
    needed = arena_bytes(_weight_tensors(parameters, binding, dtype, stored))
    capacity = plan_capacity(options, config, groups, needed, backend.memory(device).free_bytes, profile)
    checkpoint = Checkpoint.open(folder)
    arena = Arena(arena_bytes(_weight_tensors(parameters, binding, dtype, stored)), backend, device)
    weights = load_weights(
        checkpoint, parameters, binding.weight_layouts, dtype, device,
        allocate=arena.take,
        quantization=stored, explicit_dtype=options.dtype != "auto", progress=options.progress,
    )  # fmt: skip
    model = model_class(config, weights, device)
    engine = _engine(options, capacity, model, groups, binding, backend, device, config, tokenizer)
    return Loaded(
        engine, config, profile, backend, report, device, binding, dtype,
        sum(weight.num_bytes for weight in weights.values()),
        sum(group.token_bytes for group in groups) * capacity.kv_cache_tokens,
        capacity.kv_cache_tokens,
    )  # fmt: skip


def place(device: str | None) -> tuple[Backend, DeviceReport, Profile]:
    """Where to run: the device named, or the best found. BackendError: unknown, absent, or without a profile."""
    chosen = best(device)
    assert chosen.match.profile is not None
    return chosen.backend, chosen.report, chosen.match.profile


def resolve_model(model: str | None, revision: str | None = None) -> Path:
    return embedded_folder() if model is None else resolve(model, revision)


def model_sites(model: str | None, dtype: str = "auto", profile: Profile | None = None) -> tuple[Site, ...]:
    """The sites of a checkpoint without loading it: what `explain` binds."""
    config = read_config(resolve_model(model))
    chosen = run_dtype(dtype, config, profile) if profile else config.dtype
    return trace(find_model(config.model_type), config, chosen)


def policy(options: Options) -> Policy:
    try:
        level = Determinism(options.determinism)
    except ValueError:
        known = ", ".join(Determinism)
        raise ConfigError(f"determinism is {options.determinism!r}: it is one of {known}") from None
    if options.fallback not in ("allow", "warn", "forbid"):
        raise ConfigError(f"fallback is {options.fallback!r}: it is one of allow, warn, forbid")
    return Policy(determinism=level, fallback=options.fallback, choices=MappingProxyType(dict(options.kernels)))


def run_dtype(wanted: str, config: ModelConfig, profile: Profile) -> torch.dtype:
    """The dtype to run in. DeviceError: one that the profile lacks, with those that it has."""
    if wanted != "auto" and wanted not in _DTYPES:
        raise ConfigError(f"dtype is {wanted!r}: it is auto or one of {', '.join(_DTYPES)}")
    dtype = config.dtype if wanted == "auto" else _DTYPES[wanted]
    if dtype_name(dtype) in profile.dtypes:
        return dtype
    possible = [name for name in _DTYPES if name in profile.dtypes]
    raise DeviceError(f"{profile.name} does not compute {dtype_name(dtype)}: choose dtype {' or '.join(possible)}")


def plan_capacity(
    options: Options,
    config: ModelConfig,
    groups: tuple[StateGroup, ...],
    weight_bytes: int,
    free_bytes: int,
    profile: Profile,
) -> Capacity:
    """Divides the free memory. OutOfMemory says what is needed and what is there, in GiB."""
    share = options.gpu_memory_utilization or (0.92 if profile.memory.kind == "hbm" else 0.5)
    token_bytes = sum(group.token_bytes for group in groups)
    left = int(free_bytes * share) - weight_bytes
    wanted_length = options.max_model_len or config.max_positions
    if options.max_model_len and options.max_model_len > config.max_positions:
        raise ConfigError(
            f"max_model_len is {options.max_model_len:,}: the model was made for {config.max_positions:,}"
        )
    smallest = options.kv_cache_tokens or options.max_model_len or min(wanted_length, 256)
    if left < smallest * token_bytes:
        raise OutOfMemory(
            f"the model needs {weight_bytes / GIB:.2f} GiB and {smallest:,} tokens of KV cache "
            f"{smallest * token_bytes / GIB:.2f} GiB; {share:.0%} of the {free_bytes / GIB:.2f} GiB free are "
            f"{free_bytes * share / GIB:.2f} GiB: take a smaller model or dtype, raise gpu_memory_utilization, "
            "or lower max_model_len"
        )
    tokens = options.kv_cache_tokens or min(left // token_bytes, options.max_num_seqs * wanted_length)
    return Capacity(min(wanted_length, tokens), tokens)


def find_format(name: str | None) -> Format:
    """The weight format of that name. ConfigError: there is none, with those that there are."""
    known = discovery.formats()
    if name is not None and name not in known:
        raise ConfigError(f"quantization is {name!r}: there are {', '.join(sorted(known))}")
    return known[name] if name else DENSE


def _weight_tensors(
    parameters: tuple[Parameter, ...], binding: Binding, dtype: torch.dtype, quantization: Format
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Every tensor of the weights in their format and layout, padding included."""
    tensors: list[tuple[tuple[int, ...], torch.dtype]] = []
    for parameter in parameters:
        layout = binding.weight_layouts.get(parameter.role, ROW_MAJOR) if len(parameter.shape) == 2 else ROW_MAJOR
        tensors += stored_as(parameter, quantization).tensors(parameter.shape, dtype, layout).values()
    return tensors


def _engine(
    options: Options,
    capacity: Capacity,
    model: Model,
    groups: tuple[StateGroup, ...],
    binding: Binding,
    backend: Backend,
    device: torch.device,
    config: ModelConfig,
    tokenizer: Tokenizer,
) -> Engine:
    sizes = {name: demand.page_size for name, demand in binding.page_demands.items()}
    # Each running request may leave its last page half empty.
    num_pages = {name: -(-capacity.kv_cache_tokens // size) for name, size in sizes.items()}
    widest = {name: -(-capacity.max_model_len // size) for name, size in sizes.items()}
    slots = SlotTable(options.max_num_seqs, capacity.max_model_len, widest, config.vocabulary_size, device)
    state_arena = Arena(arena_bytes(state_tensors(groups, binding.page_demands, num_pages)), backend, device)
    state = allocate_state(groups, binding.page_demands, num_pages, state_arena)
    worker = Worker(model, state, binding.ops, slots)
    pools = {name: PagePool(count) for name, count in num_pages.items()}
    scheduler = Scheduler(pools, sizes, options.max_num_seqs, options.max_num_batched_tokens)
    limits = Limits(capacity.max_model_len, config.vocabulary_size, frozenset(config.eos_ids))
    return Engine(scheduler, worker, tokenizer, limits, seed=options.seed)
