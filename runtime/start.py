"""From a checkpoint's headers to decisions: profile → backend → sites → binding → the ledger of memory.

`decide` settles everything, down to the bytes, and allocates nothing: a model that does not fit is refused with its
figures before any memory is taken. `build.py` allocates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..backends.choosing import best, found
from ..backends.contract import Backend, BackendError
from ..hwprofiles.match import DeviceReport
from ..hwprofiles.schema import Profile
from ..ops import discovery
from ..ops.binding import Binding, PageDemand, bind
from ..ops.layouts import PAGES_PHSD, ROW_MAJOR
from ..ops.state import StateGroup
from ..ops.types import Format, Site, dtype_name
from .arena import arena_bytes
from .budget import GIB, Budget, budget
from .checkpoint import resolve
from .config import ModelConfig, read_config
from .embedded.location import folder as embedded_folder
from .errors import ConfigError
from .ledger import Ledger, Needs, fit
from .loading import stored_as, trace
from .model import Model, Parameter, find_model
from .options import DTYPES, Options, find_format, policy, run_dtype, token_budget
from .phases import Phases
from .workspace import StepNeeds, step_needs

_TRACED_TOKENS = 2 * 16
"""Of each state group in `loading.trace`."""


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
    ledger: Ledger
    phase_seconds: Mapping[str, float]

    @property
    def dtype(self) -> torch.dtype:
        return self.config.dtype

    @property
    def max_model_len(self) -> int:
        return self.ledger.max_model_len

    @property
    def kv_cache_tokens(self) -> int:
        return self.ledger.kv_cache_tokens

    @property
    def num_pages(self) -> dict[str, int]:
        """Pages of each state group's pool."""
        return self.ledger.needs.num_pages(self.kv_cache_tokens)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in their formats and layouts, padding included."""
        return self.ledger.predicted["weights"]

    @property
    def page_sizes(self) -> dict[str, int]:
        """Tokens of a page, by state group: settled between the kernels that store and those that read."""
        return {group: demand.page_size for group, demand in self.binding.page_demands.items()}

    @property
    def kv_cache_bytes(self) -> int:
        return self.ledger.predicted["KV cache"]


@dataclass(frozen=True)
class _Device:
    """Where to run, and how much memory there is."""

    backend: Backend
    report: DeviceReport
    profile: Profile
    device: torch.device
    budget: Budget
    missing: Mapping[str, str]


@dataclass(frozen=True)
class _Model:
    """A checkpoint's model in one dtype; its sites are not known yet."""

    config: ModelConfig
    model_class: type[Model]
    quantization: Format
    parameters: tuple[Parameter, ...]
    groups: tuple[StateGroup, ...]

    @classmethod
    def of(cls, config: ModelConfig, options: Options) -> _Model:
        found = find_model(config.model_type)
        return cls(config, found, find_format(options.quantization), found.parameters(config), found.groups(config))

    def weight_bytes(self, binding: Binding | None) -> int:
        """In their layouts; without a binding, row by row."""
        layouts = binding.weight_layouts if binding else {}
        tensors: list[tuple[tuple[int, ...], torch.dtype]] = []
        for parameter in self.parameters:
            layout = layouts.get(parameter.role, ROW_MAJOR) if len(parameter.shape) == 2 else ROW_MAJOR
            stored = stored_as(parameter, self.quantization)
            tensors += stored.tensors(parameter.shape, self.config.dtype, layout).values()
        return arena_bytes(tensors)


def decide(options: Options) -> Decisions:
    """Reads what is needed and settles everything. Raises those of `errors.py`, BindingError and ProfileError."""
    phases = Phases()
    with phases("probe"):
        backend, report, profile = place(options.device)
        device = backend.device(report)
        allowed = _budget(options, profile, backend.memory(device).free_bytes)
        where = _Device(backend, report, profile, device, allowed, discovery.missing_languages())
    return _decide(options, where, phases)


def decide_for(options: Options, profile: Profile) -> Decisions:
    """What `decide` settles on a device of that profile with nothing else in its memory; it need not be here, and no
    engine can be built from it. BackendError: a profile without a backend. `options.device` plays no part."""
    backend = found().get(profile.backend or "")
    if backend is None:
        raise BackendError(f"{profile.name} names no backend that runs models: {', '.join(sorted(found()))} do")
    if profile.memory.usable_gib is None:
        raise BackendError(
            f"{profile.name} has its host's memory, which only the host knows: nothing is decided elsewhere"
        )
    free_bytes = int(profile.memory.usable_gib * GIB)
    report = DeviceReport(profile.vendor, profile.arch, profile.compute.units, name=profile.title)
    where = _Device(backend, report, profile, torch.device("meta"), _budget(options, profile, free_bytes), {})
    return _decide(options, where, Phases())


def _budget(options: Options, profile: Profile, free_bytes: int) -> Budget:
    return budget(options.memory, options.gpu_memory_utilization, profile, free_bytes)


def _decide(options: Options, where: _Device, phases: Phases) -> Decisions:
    with phases("read config"):
        folder = resolve_model(options.model, options.revision)
        config = read_config(folder)
    if (options.max_model_len or 0) > config.max_positions:
        raise ConfigError(
            f"max_model_len is {options.max_model_len:,}: the model was made for {config.max_positions:,}"
        )
    model = _Model.of(replace(config, dtype=run_dtype(options.dtype, config, where.profile)), options)
    binding, ledger = _settle(options, where, model, phases, lambda: list(_dtype_cures(options, where, model)))
    return Decisions(
        options, folder, where.backend, where.report, where.profile, where.device, model.config, model.model_class,
        model.quantization, binding, model.parameters, model.groups, ledger, phases.seconds,
    )  # fmt: skip


def _settle(
    options: Options, where: _Device, model: _Model, phases: Phases, cures: Callable[[], Sequence[str]] = tuple
) -> tuple[Binding, Ledger]:
    """OutOfMemory: before the trace, which makes two pages of each group, if the device has not even those free."""
    free_bytes = where.budget.free_bytes
    untraced = replace(_needs(options, where, model, None), max_model_len=_TRACED_TOKENS, max_num_seqs=1)
    fit(untraced, Budget(free_bytes, free_bytes, "all that is free"), cures)
    with phases("trace"):
        sites = trace(model.model_class, model.config, model.config.dtype, model.quantization)
    with phases("bind"):
        binding = bind(sites, where.profile, policy(options, where.profile), missing=where.missing)
    return binding, fit(_needs(options, where, model, binding), where.budget, cures)


def _needs(options: Options, where: _Device, model: _Model, binding: Binding | None) -> Needs:
    """What the memory follows from; without a binding, what is known before: weights, and tokens for pages."""
    smallest = {group.name: PageDemand(PAGES_PHSD, 1) for group in model.groups}
    layouts = sorted({layout.name for layout in binding.weight_layouts.values()}) if binding else []
    vocabulary_size = model.config.vocabulary_size
    return Needs(
        weight_bytes=model.weight_bytes(binding),
        weights=f"{model.quantization.name} {dtype_name(model.config.dtype)}, {' and '.join(layouts) or 'row_major'}",
        groups=model.groups,
        page_demands=binding.page_demands if binding else smallest,
        step=step_needs(binding.sites, vocabulary_size) if binding else StepNeeds(0, 0),
        max_model_len=options.max_model_len or model.config.max_positions,
        is_length_asked=binding is not None and options.max_model_len is not None,
        kv_cache_tokens=options.kv_cache_tokens if binding else None,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=token_budget(options, where.profile),
        has_graphs=binding is not None and options.graphs is not False and where.backend.captures,
        has_columns=where.device.type == "cpu",
        is_pool_shared=where.backend.is_asynchronous,
        has_prompt_graphs=options.prompt_graphs,
    )


def _dtype_cures(options: Options, where: _Device, model: _Model) -> Iterator[str]:
    """A dtype of half the size in which the model would fit."""
    if model.config.dtype.itemsize < torch.float32.itemsize:
        return
    for name in ("bfloat16", "float16"):
        if name in where.profile.dtypes:
            try:
                _settle(options, where, _Model.of(replace(model.config, dtype=DTYPES[name]), options), Phases())
            except ValueError:  # too large still, or what was chosen does not serve this dtype
                continue
            yield f"--dtype {name}"
            return


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
