"""From a checkpoint to a running engine: profile → backend → sites → binding → weights → state → engine.

`decide` looks at the checkpoint's headers and the device, and decides everything, down to the bytes; `build` allocates.
A model that does not fit is thus refused with its figures before any memory is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..backends.choosing import best
from ..backends.contract import Backend
from ..hwprofiles.match import DeviceReport
from ..hwprofiles.schema import Profile
from ..ops import discovery
from ..ops.binding import Binding, bind
from ..ops.layouts import ROW_MAJOR
from ..ops.state import StateGroup
from ..ops.types import Format, Site, dtype_name
from .arena import Arena, arena_bytes
from .checkpoint import Checkpoint, resolve
from .config import ModelConfig, read_config
from .embedded.location import folder as embedded_folder
from .engine import Engine, Limits
from .errors import ConfigError, OutOfMemory
from .execute.slots import SlotTable
from .execute.worker import Worker, allocate_state, state_tensors
from .loading import load_weights, stored_as, trace
from .model import Model, Parameter, find_model
from .options import DTYPES, Options, find_format, policy, run_dtype, token_budget
from .schedule.pages import PagePool
from .schedule.scheduler import Scheduler
from .tokenizer import Tokenizer

GIB = 2**30


@dataclass(frozen=True)
class Decisions:
    """Everything that is settled before memory is taken. `config.dtype` is the dtype of the run."""

    options: Options
    folder: Path
    backend: Backend
    report: DeviceReport
    profile: Profile
    device: torch.device
    config: ModelConfig
    model_class: type[Model]
    quantization: Format
    binding: Binding
    parameters: tuple[Parameter, ...]
    groups: tuple[StateGroup, ...]
    max_model_len: int
    kv_cache_tokens: int

    @property
    def dtype(self) -> torch.dtype:
        return self.config.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in their formats and layouts, padding included."""
        return arena_bytes(_weight_tensors(self.parameters, self.binding, self.dtype, self.quantization))

    @property
    def kv_cache_bytes(self) -> int:
        return sum(group.token_bytes for group in self.groups) * self.kv_cache_tokens


def decide(options: Options) -> Decisions:
    """Reads what is needed and settles everything. Raises those of `errors.py`, BindingError and ProfileError."""
    backend, report, profile = place(options.device)
    device = backend.device(report)
    folder = resolve_model(options.model, options.revision)
    config = read_config(folder)
    config = replace(config, dtype=run_dtype(options.dtype, config, profile))
    model_class, quantization = find_model(config.model_type), find_format(options.quantization)
    sites = trace(model_class, config, config.dtype, quantization)
    binding = bind(sites, profile, policy(options), missing=discovery.missing_languages())
    parameters, groups = model_class.parameters(config), model_class.groups(config)
    max_model_len, kv_cache_tokens = _capacity(
        options, config, profile,
        weight_bytes=arena_bytes(_weight_tensors(parameters, binding, config.dtype, quantization)),
        token_bytes=sum(group.token_bytes for group in groups),
        free_bytes=backend.memory(device).free_bytes,
    )  # fmt: skip
    return Decisions(
        options, folder, backend, report, profile, device, config, model_class, quantization, binding, parameters,
        groups, max_model_len, kv_cache_tokens,
    )  # fmt: skip


def build(decided: Decisions) -> Engine:
    """Loads the weights, allocates the state, and puts the engine together."""
    options, device = decided.options, decided.device
    tokenizer, checkpoint = Tokenizer(decided.folder), Checkpoint.open(decided.folder)
    weights = load_weights(
        checkpoint, decided.parameters, decided.binding.weight_layouts, decided.dtype, device,
        allocate=Arena(decided.weight_bytes, decided.backend, device).take, quantization=decided.quantization,
        explicit_dtype=options.dtype != "auto", progress=options.progress,
    )  # fmt: skip
    model = decided.model_class(decided.config, weights, device)
    demands = decided.binding.page_demands
    sizes = {group: demand.page_size for group, demand in demands.items()}
    num_pages = {group: -(-decided.kv_cache_tokens // size) for group, size in sizes.items()}
    longest = {group: -(-decided.max_model_len // size) for group, size in sizes.items()}
    slots = SlotTable(options.max_num_seqs, decided.max_model_len, longest, decided.config.vocabulary_size, device)
    arena = Arena(arena_bytes(state_tensors(decided.groups, demands, num_pages)), decided.backend, device)
    state = allocate_state(decided.groups, demands, num_pages, arena)
    pools = {group: PagePool(count) for group, count in num_pages.items()}
    return Engine(
        Scheduler(pools, sizes, options.max_num_seqs, token_budget(options, decided.profile)),
        Worker(model, state, decided.binding.ops, slots),
        tokenizer,
        Limits(decided.max_model_len, decided.config.vocabulary_size, frozenset(decided.config.eos_ids)),
        seed=options.seed,
        clock=decided.backend.clock,
    )


def place(device: str | None) -> tuple[Backend, DeviceReport, Profile]:
    """Where to run: the device named, or the best found. BackendError: unknown, absent, or without a profile."""
    chosen = best(device)
    assert chosen.match.profile is not None
    return chosen.backend, chosen.report, chosen.match.profile


def resolve_model(model: str | None, revision: str | None = None) -> Path:
    return embedded_folder() if model is None else resolve(model, revision)


def model_sites(model: str | None, dtype: str = "auto", profile: Profile | None = None) -> tuple[Site, ...]:
    """The sites of a checkpoint without loading it: what `explain` binds. `auto` takes a dtype that the profile has."""
    config = read_config(resolve_model(model))
    possible = [name for name in (dtype_name(config.dtype), *DTYPES) if profile is None or name in profile.dtypes]
    wanted = possible[0] if dtype == "auto" and possible else dtype
    chosen = run_dtype(wanted, config, profile) if profile else DTYPES.get(wanted, config.dtype)
    return trace(find_model(config.model_type), config, chosen)


def _capacity(
    options: Options, config: ModelConfig, profile: Profile, weight_bytes: int, token_bytes: int, free_bytes: int
) -> tuple[int, int]:
    """max_model_len and kv_cache_tokens. OutOfMemory says what is needed and what is there, in GiB."""
    share = options.gpu_memory_utilization or (0.92 if profile.memory.kind == "hbm" else 0.5)
    wanted_length = options.max_model_len or config.max_positions
    slot_bytes = options.max_num_seqs * wanted_length * torch.int64.itemsize
    left = int(free_bytes * share) - weight_bytes - slot_bytes
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
    return min(wanted_length, tokens), tokens


def _weight_tensors(
    parameters: tuple[Parameter, ...], binding: Binding, dtype: torch.dtype, quantization: Format
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Every tensor of the weights in their format and layout, padding included."""
    tensors: list[tuple[tuple[int, ...], torch.dtype]] = []
    for parameter in parameters:
        layout = binding.weight_layouts.get(parameter.role, ROW_MAJOR) if len(parameter.shape) == 2 else ROW_MAJOR
        tensors += stored_as(parameter, quantization).tensors(parameter.shape, dtype, layout).values()
    return tensors
