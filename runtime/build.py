"""From decisions to a running engine: weights, state, worker, scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..ops.discovery import forbid_compiling
from ..ops.step_cost import load_coefficients
from ..ops.types import ONE_DEVICE, Determinism, dtype_name
from .ahead import compiled
from .arena import Arena, arena_bytes
from .batch import State
from .checkpoint import Checkpoint
from .engine import Engine
from .execute.graphs import Graphs
from .execute.sampling import SamplingGraphs
from .execute.slots import SlotTable
from .execute.worker import Worker, allocate_state, state_tensors
from .holdings import Holdings
from .intake import Intake
from .loading import load_weights
from .messages import Limits
from .model import Model
from .options import token_budget
from .phases import Phases
from .rates import rates
from .schedule.pace import Pace
from .schedule.pages import PagePool
from .schedule.scheduler import Scheduler
from .start import Decisions

_LOG = logging.getLogger("ambidex")


class Built(NamedTuple):
    """An engine, and what it holds of the device's memory."""

    engine: Engine
    holdings: Holdings


def build(decided: Decisions, progress: Callable[[float], None] | None = None) -> Engine:
    """Loads the weights, allocates the state, and puts the engine together.

    progress: told the share of the weights that is loaded; None: as the options say.
    """
    return build_measured(decided, progress).engine


def build_measured(
    decided: Decisions, progress: Callable[[float], None] | None = None, load: Callable[[Arena], Model] | None = None
) -> Built:
    """`build`, and the means to measure what was predicted. load: makes the model, instead of from the checkpoint."""
    backend, device, demands = decided.backend, decided.device, decided.binding.page_demands
    phases = Phases(decided.phase_seconds)
    if decided.options.jit == "forbid":
        forbid_compiling()
    with phases("kernels"):
        compiled(decided)
    with phases("load weights"):
        weights = Arena(decided.weight_bytes, backend, device)
        if load is None:
            model = _load(decided, weights, decided.options.progress if progress is None else progress)
        else:
            model = load(weights)
    longest = decided.ledger.needs.num_pages(decided.max_model_len)
    vocabulary_size = decided.config.vocabulary_size
    slots = SlotTable(decided.options.max_num_seqs, decided.max_model_len, longest, vocabulary_size, device)
    pages = Arena(arena_bytes(state_tensors(decided.groups, demands, decided.num_pages)), backend, device)
    state = allocate_state(decided.groups, demands, decided.num_pages, pages)
    scheduler = _scheduler(decided)
    with phases("capture graphs"):
        graphs = _graphs(decided, model, state, slots)
    engine = _engine(decided, model, state, slots, graphs, scheduler, phases.seconds)
    return Built(engine, Holdings(decided.ledger, backend, device, weights, pages, (slots, scheduler.running), graphs))


def _load(decided: Decisions, arena: Arena, progress: bool | Callable[[float], None]) -> Model:
    weights = load_weights(
        Checkpoint.open(decided.folder), decided.parameters, decided.binding.weight_layouts, decided.dtype,
        decided.device, allocate=arena.take, quantization=decided.quantization,
        explicit_dtype=decided.options.dtype != "auto", progress=progress,
    )  # fmt: skip
    return decided.model_class(decided.config, weights, decided.device)


def _engine(
    decided: Decisions,
    model: Model,
    state: State,
    slots: SlotTable,
    graphs: Graphs | None,
    scheduler: Scheduler,
    phase_seconds: Mapping[str, float],
) -> Engine:
    options, backend = decided.options, decided.backend
    overlap = options.overlap if options.overlap is not None else backend.is_asynchronous
    limits = Limits(
        max_model_len=decided.max_model_len,
        vocabulary_size=decided.config.vocabulary_size,
        eos_ids=frozenset(decided.config.eos_ids),
        kv_cache_tokens=decided.kv_cache_tokens,
        max_queued=options.max_queued,
    )
    held = {group: count * decided.page_sizes[group] for group, count in decided.num_pages.items()}
    intake = Intake(limits, model=str(decided.folder), seed=options.seed, ageing_s=options.ageing_s, longest=held)
    worker = Worker(model, state, decided.binding.ops, slots, concurrent=overlap, graphs=graphs)
    return Engine(scheduler, worker, intake, limits, overlap=overlap, clock=backend.clock, phase_seconds=phase_seconds)


def _scheduler(decided: Decisions) -> Scheduler:
    options = decided.options
    return Scheduler(
        {group: PagePool(count) for group, count in decided.num_pages.items()},
        decided.page_sizes,
        num_slots=options.max_num_seqs,
        max_length=decided.max_model_len,
        token_budget=token_budget(options, decided.profile),
        max_queued=options.max_queued,
        prefix_caching=options.prefix_caching,
        pace=_pace(decided),
    )


def _graphs(decided: Decisions, model: Model, state: State, slots: SlotTable) -> Graphs | None:
    """The ladder of decode steps, recorded when first needed or, where recording would hold up a request, now."""
    sizes, ops, backend = decided.ledger.needs.graph_sizes, decided.binding.ops, decided.backend
    if not sizes:
        return None
    # Where a launch returns when it is done, as on a CPU, a call of the sampler costs less than what a graph adds.
    sampling = SamplingGraphs(sizes[-1], backend, slots, ops.sample) if backend.is_asynchronous else None
    graphs = Graphs(
        sizes,
        backend,
        slots,
        decided.page_sizes,
        lambda batch: model.forward(batch, None, state, ops, ONE_DEVICE),
        sampling,
    )
    if backend.is_asynchronous:
        prompt_sizes = decided.ledger.needs.prompt_sizes.tokens
        (graphs.with_prompts(prompt_sizes) if prompt_sizes else graphs).capture_all()
        for refusal in graphs.refusals:
            _LOG.warning("called and not replayed, which takes the host longer: %s", refusal)
    return graphs


def _pace(decided: Decisions) -> Pace | None:
    """What sizes the chunks of prompts, where a step has a budget of time."""
    options, profile = decided.options, decided.profile
    if options.step_budget_ms is None:
        return None
    level, backend = decided.binding.policy.determinism, decided.backend
    found = rates(profile, dtype_name(decided.dtype), level, lambda: backend.read_bandwidth_gb_per_s(decided.device))
    bytes_of, operations_of = load_coefficients(bound.site for bound in decided.binding.sites)
    return Pace(
        bytes_of,
        operations_of,
        bytes_per_s=found.bytes_per_s,
        operations_per_s=found.operations_per_s,
        budget_s=options.step_budget_ms / 1000,
        adapts=level is not Determinism.RUN,
    )
