"""Every kernel that an engine may launch, compiled before it serves: on its device at start, elsewhere ahead of time.

The engine's own code runs on meta tensors: slot table, worker's batches, ladder of graphs, model; only the ops are
those of a rehearsal. Steps are chosen so that every bucket of rows is met with every form that a launch tells apart:
one row, multiples of 16, all remainders by 4 (what is cut from one tensor is aligned by those), short and long
contexts, prompts and decoding, and what the sampler is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch

from ..backends.contract import Backend
from ..ops import discovery
from ..ops.bound import BoundSite
from ..ops.rehearsal import Rehearsal
from ..ops.types import ONE_DEVICE
from .arena import Arena, arena_bytes
from .batch import State
from .execute.graphs import Graphs
from .execute.slots import SlotTable
from .execute.worker import Worker, allocate_state, state_tensors
from .loading import empty_weights
from .options import token_budget
from .start import Decisions
from .step import Step

_META = torch.device("meta")
_WORD_BITS = 32


class _NoDevice(Backend):
    """Memory that is not there, and graphs that are run and not kept."""

    name, vendor = "meta", "none"

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        return function


def compiled(decided: Decisions, num_threads: int | None = None) -> list[Any]:
    """Compiles what the engine may launch into its languages' caches, or finds it there; the entries, as the language
    has them (name, constants, types, code, was_cached, seconds). Imports no language that serves no site.

    num_threads: of the compiler; None: as many as there are cores. Errors: those of the language's compiler.
    """
    used = _languages(decided.binding.sites)
    languages = {name: found for name, found in discovery.compiled_languages().items() if name in used}
    if not languages:
        return []
    with ExitStack() as stack:
        collected = [
            stack.enter_context(found.collecting(found.Target.of(decided.profile), num_threads or _num_cores()))
            for found in languages.values()
        ]
        Rehearsed(decided, languages).run()
    return [entry for entries in collected for entry in entries.values()]


def _languages(sites: tuple[BoundSite, ...]) -> set[str]:
    kernels = discovery.kernels()
    own = {kernels[choice.chosen].language for site in sites for choice in site.choices if choice.chosen in kernels}
    return own.union(*(_languages(site.parts) for site in sites))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Rehearsed:
    """An engine's parts on meta tensors, of which steps launch the kernels of these languages."""

    def __init__(self, decided: Decisions, languages: Mapping[str, Any]) -> None:
        nowhere, demands = _NoDevice(), decided.binding.page_demands
        self._decided = decided
        self._ops = Rehearsal(decided.binding.sites, discovery.ops(), discovery.kernels(), languages)
        weights = empty_weights(
            decided.parameters, decided.binding.weight_layouts, decided.dtype, decided.quantization,
            Arena(decided.weight_bytes, nowhere, _META).take,
        )  # fmt: skip
        self._model = decided.model_class(decided.config, weights, _META)
        pages = Arena(arena_bytes(state_tensors(decided.groups, demands, decided.num_pages)), nowhere, _META)
        self._state: State = allocate_state(decided.groups, demands, decided.num_pages, pages)
        longest = decided.ledger.needs.num_pages(decided.max_model_len)
        self._slots = SlotTable(
            decided.options.max_num_seqs, decided.max_model_len, longest, decided.config.vocabulary_size, _META
        )
        self._worker = Worker(self._model, self._state, decided.binding.ops, self._slots)

    @torch.inference_mode()
    def run(self) -> None:
        """All graphs, and the steps that stand for all steps."""
        self.capture(one_of_each(self._decided.binding.policy.buckets, self._decided.ledger.needs.prompt_sizes.tokens))
        for step in self._steps():
            self.step(step)

    @torch.inference_mode()
    def capture(self, prompt_sizes: tuple[int, ...]) -> None:
        """The graphs of decode steps, and of steps that read prompts those of so many tokens."""
        sizes = self._decided.ledger.needs.graph_sizes
        graphs = Graphs(sizes, _NoDevice(), self._slots, self._decided.page_sizes, self._forward)
        (graphs.with_prompts(prompt_sizes) if prompt_sizes else graphs).capture_all()

    @torch.inference_mode()
    def step(self, step: Step) -> None:
        self._sample(step, self._forward(self._worker.batch(step)))

    def _forward(self, batch: Any) -> torch.Tensor:
        self._ops.begin()
        return self._model.forward(batch, None, self._state, self._ops, ONE_DEVICE)

    def _sample(self, step: Step, logits: torch.Tensor) -> None:
        slots = self._slots.to_device(step.spans[step.logits[:, 0], 0])
        self._ops.sample(logits, self._slots.sampling(slots, step))

    def _steps(self) -> Iterator[Step]:
        """Decode steps with all that may be asked of the sampler; then prompts, alone and among decoding requests."""
        options, longest = self._decided.options, self._decided.max_model_len
        buckets = self._decided.binding.policy.buckets
        budget = token_budget(options, self._decided.profile)
        for count in representatives(buckets, min(options.max_num_seqs, budget)):
            for sampling in self._samplings(count):
                yield step_of([1] * count, 0, **sampling)
            yield step_of([1] * count, longest - 1)
        for count in representatives(buckets, budget):
            for first in {0, max(0, longest - count)}:
                yield step_of([min(count, longest)], first)
            if 1 < count <= options.max_num_seqs:
                yield step_of([2, *[1] * (count - 1)], 0)

    def _samplings(self, count: int) -> Iterator[dict[str, Any]]:
        words = np.full(-(-self._decided.config.vocabulary_size // _WORD_BITS), -1, dtype=np.int32)
        for random, filtered, penalized, masked, logprobs in product((False, True), repeat=5):
            yield {
                "random": random,
                "filtered": filtered,
                "penalized": penalized,
                "masks": {0: words} if masked else {},
                "num_logprobs": 5 if logprobs else 0,
            }


def step_of(counts: list[int], first: int, **sampling: Any) -> Step:
    """A step of requests with so many tokens each, from position `first`; each yields logits for its last."""
    spans = np.array([(slot, first, count) for slot, count in enumerate(counts)], dtype=np.int64)
    logits = np.array([(slot, count - 1) for slot, count in enumerate(counts)], dtype=np.int64)
    return Step(spans=spans, logits=logits, **sampling)


def one_of_each(buckets: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The largest size in each bucket: sizes of prompts' graphs are multiples of 16, whose launches are alike there."""
    bounds = (0, *buckets, max(sizes, default=0))
    found = ([size for size in sizes if low < size <= high] for low, high in pairwise(bounds))
    return tuple(sorted({each[-1] for each in found if each}))


def representatives(buckets: tuple[int, ...], most: int) -> list[int]:
    """Of each bucket its first four numbers, its last, and its last multiple of 16; none above `most`, and `most`."""
    found: set[int] = {most}
    for low, high in zip((0, *buckets), (*(min(bound, most) for bound in buckets), most), strict=True):
        found |= {*range(low + 1, low + 5), high, high // 16 * 16}
    return sorted(number for number in found if 1 <= number <= most)
