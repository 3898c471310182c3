"""The ledger of an engine's memory: what each part takes, in bytes, before anything is allocated.

S slots, C tokens of the longest request, T tokens of a step, L = min(S, T) rows that yield logits, V vocabulary:

    weights    every tensor in its format and layout, padding included, each cut aligned
    KV cache   of each state group: its pages, over all planes and layers, each plane cut aligned
    requests   the slot table, S × (8 C + 4 a page of C of each group + 56); on the host the scheduler's columns are in
               the same memory: S × (4 C + 80)
    workspace  T × a row of a layer + L × (4 V × (1 + the sampler's copies) + 20 C), and the step's page tables
    graphs     rows × (a row of a layer + 4 V), over all sizes; where they share a pool those of the largest: with 8 V,
               what it yields and the place where all leave their logits, V / 8 of masks, and instead of a row of a
               layer what the sampler's graph keeps, or the rows of the largest graph for prompts, if that is more

The page pool gets what the others leave of the budget, at most S requests of C tokens. Outside the budget: interpreter,
libraries, driver. What `workspace` does not see is said in `workspace.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..ops.state import StateGroup
from ..ops.support import PageDemand
from .arena import arena_bytes
from .budget import Budget, shown_bytes, size_option
from .errors import OutOfMemory
from .execute.graphs import ladder
from .execute.prompts import PromptSizes, prompt_ladder
from .execute.worker import state_tensors
from .workspace import PENALTY_TOKEN_BYTES, StepNeeds

MAX_GRAPH_ROWS, GRAPH_STEP = 512, 8

_SLOT_BYTES, _COLUMN_BYTES = 56, 80
_MIN_TOKENS = 256
"""With less than this (or the whole of a shorter context) no engine starts unasked."""
_SHORTEST = 16
"""A cure that asks for fewer tokens than this is none."""

Limit = Literal["memory", "requests", "asked"]


@dataclass(frozen=True)
class Needs:
    """What an engine's memory follows from. max_model_len: the longest request that is wanted; `is_length_asked`:
    it was asked for, so a shorter one will not do. has_columns: the scheduler's columns lie in the same memory.
    is_pool_shared: graphs use one memory in turn. has_prompt_graphs: steps with prompts have some, too."""

    weight_bytes: int
    weights: str
    groups: tuple[StateGroup, ...]
    page_demands: Mapping[str, PageDemand]
    step: StepNeeds
    max_model_len: int
    is_length_asked: bool
    kv_cache_tokens: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    has_graphs: bool
    has_columns: bool
    is_pool_shared: bool = False
    has_prompt_graphs: bool = False

    @property
    def page_unit(self) -> int:
        """Tokens of the largest page."""
        return max((demand.page_size for demand in self.page_demands.values()), default=1)

    @property
    def logit_rows(self) -> int:
        return min(self.max_num_seqs, self.max_num_batched_tokens)

    @property
    def graph_sizes(self) -> tuple[int, ...]:
        return ladder(min(self.max_num_seqs, MAX_GRAPH_ROWS), GRAPH_STEP) if self.has_graphs else ()

    @property
    def prompt_sizes(self) -> PromptSizes:
        """Of the graphs for steps that read prompts, where calling the kernels would hold up the device."""
        has_them = self.has_graphs and self.is_pool_shared and self.has_prompt_graphs
        return (
            PromptSizes(prompt_ladder(self.max_num_batched_tokens), self.graph_sizes[-1]) if has_them else PromptSizes()
        )

    @property
    def least(self) -> tuple[int, int]:
        """The shortest context and smallest KV cache, in tokens, with which the engine may start."""
        if self.kv_cache_tokens is not None:
            return min(self.max_model_len, self.kv_cache_tokens), self.kv_cache_tokens
        length = self.max_model_len if self.is_length_asked else min(self.max_model_len, _MIN_TOKENS)
        return length, length

    def num_pages(self, tokens: int) -> dict[str, int]:
        """Pages of each group that hold so many tokens."""
        return {group: -(-tokens // demand.page_size) for group, demand in self.page_demands.items()}

    def page_bytes(self, tokens: int, groups: Sequence[StateGroup] | None = None) -> int:
        chosen = self.groups if groups is None else tuple(groups)
        return arena_bytes(state_tensors(chosen, self.page_demands, self.num_pages(tokens)))

    def slot_bytes(self, length: int) -> int:
        table = 8 * length + 4 * sum(self.num_pages(length).values()) + _SLOT_BYTES
        return self.max_num_seqs * (table + (4 * length + _COLUMN_BYTES if self.has_columns else 0))

    def workspace_bytes(self, length: int) -> int:
        row = self.step.logits_bytes * (1 + self.step.sampler_copies) + PENALTY_TOKEN_BYTES * length
        tables = 4 * self.max_num_seqs * sum(self.num_pages(length).values())
        return (
            self.step.fixed_bytes + self.max_num_batched_tokens * self.step.row_bytes + self.logit_rows * row + tables
        )

    def graph_bytes(self, length: int) -> int:
        row, sizes = self.step.row_bytes + 4 * sum(self.num_pages(length).values()), self.graph_sizes
        if self.is_pool_shared:
            logits, rows = self.step.logits_bytes, max(sizes, default=0)
            pool = max(
                rows * max(row, self.step.sampler_copies * logits), max(self.prompt_sizes.tokens, default=0) * row
            )
            return pool + rows * (2 * logits + logits // 32 + 4)
        return sum(sizes) * (row + self.step.logits_bytes)

    def total_bytes(self, length: int, tokens: int) -> int:
        fixed = self.weight_bytes + self.slot_bytes(length) + self.workspace_bytes(length) + self.graph_bytes(length)
        return fixed + self.page_bytes(tokens)


@dataclass(frozen=True)
class Ledger:
    """What was decided about memory. limit: what keeps the page pool from being larger."""

    needs: Needs
    budget: Budget
    max_model_len: int
    kv_cache_tokens: int
    limit: Limit

    @property
    def predicted(self) -> dict[str, int]:
        """Bytes of each part."""
        length = self.max_model_len
        return {
            "weights": self.needs.weight_bytes,
            "KV cache": self.needs.page_bytes(self.kv_cache_tokens),
            "requests": self.needs.slot_bytes(length),
            "workspace": self.needs.workspace_bytes(length),
            "graphs": self.needs.graph_bytes(length),
        }

    @property
    def total_bytes(self) -> int:
        return sum(self.predicted.values())

    def summary(self) -> str:
        """What was decided, and why, in a line."""
        parts = ", ".join(f"{name} {shown_bytes(size)}" for name, size in self.predicted.items() if size)
        return (
            f"{self.kv_cache_tokens:,} tokens of KV; {self._holds()}; takes {shown_bytes(self.total_bytes)} ({parts}) "
            f"of {shown_bytes(self.budget.num_bytes)}, {self.budget.source}"
        )

    def lines(self) -> list[str]:
        """The decisions, a line each, with the reason where there was a choice."""
        needs, predicted = self.needs, self.predicted
        texts = {
            "memory": f"{shown_bytes(self.budget.num_bytes)}, {self.budget.source}; "
            f"{shown_bytes(self.budget.num_bytes - self.total_bytes)} of it unused",
            "weights": f"{needs.weights}, {shown_bytes(predicted['weights'])}",
            "KV cache": "; ".join(self._cache_texts()) + f": {self._holds()}",
            "requests": f"{needs.max_num_seqs} at once, at most {self.max_model_len:,} tokens each{self._shortened()}, "
            f"{shown_bytes(predicted['requests'])}",
            "workspace": f"steps of at most {needs.max_num_batched_tokens:,} tokens and {needs.logit_rows} rows of "
            f"logits, {shown_bytes(predicted['workspace'])}",
            "graphs": f"{self._graphs_text()}, {shown_bytes(predicted['graphs'])}",
        }
        return [f"{name:<10} {text}" for name, text in texts.items()]

    def _cache_texts(self) -> Iterator[str]:
        pages = self.needs.num_pages(self.kv_cache_tokens)
        for group in self.needs.groups:
            demand, count = self.needs.page_demands[group.name], pages[group.name]
            name = f" of {group.name}" if len(self.needs.groups) > 1 else ""
            size = shown_bytes(self.needs.page_bytes(self.kv_cache_tokens, [group]))
            tokens = f"{self.kv_cache_tokens:,} tokens{name} in {count:,} pages of {demand.page_size}"
            yield f"{tokens} ({demand.layout.name}), {size}"

    def _graphs_text(self) -> str:
        sizes, prompts = self.needs.graph_sizes, self.needs.prompt_sizes
        if not sizes:
            return "none"
        reading = (
            f"{len(prompts.graphs)} for steps that read up to {prompts.tokens[-1]:,} tokens" if prompts.tokens else ""
        )
        return ", ".join(filter(None, (f"decode steps of {len(sizes)} sizes up to {sizes[-1]} requests", reading)))

    def _holds(self) -> str:
        unit = self.needs.page_unit
        held = -(-self.kv_cache_tokens // unit) // -(-self.max_model_len // unit)
        why = {
            "memory": "what the memory leaves",
            "requests": "all that can run at once",
            "asked": "as asked for",
        }[self.limit]
        return f"{held:,} {'request' if held == 1 else 'requests'} of {self.max_model_len:,} ({why})"

    def _shortened(self) -> str:
        wanted = self.needs.max_model_len
        if self.max_model_len == wanted:
            return ""
        reason = "kv_cache_tokens" if self.limit == "asked" else "the memory"
        return f" (not {wanted:,}, because of {reason})"


def fit(needs: Needs, budget: Budget, more_cures: Callable[[], Sequence[str]] = tuple) -> Ledger:
    """The largest page pool, and where no length was asked for the longest requests, that the budget holds.

    OutOfMemory: not even the least does; says what is short, and which options would cure it (`more_cures`: those that
    are looked for elsewhere, should it come to that).
    """
    length, tokens = needs.least
    if needs.total_bytes(length, tokens) > budget.num_bytes:
        raise OutOfMemory(_shortage(needs, budget, more_cures))
    if needs.kv_cache_tokens is not None:
        return Ledger(needs, budget, length, tokens, "asked")

    def leaves(length: int, tokens: int) -> bool:
        return needs.total_bytes(length, tokens) <= budget.num_bytes

    length = _largest(length, needs.max_model_len, lambda each: leaves(each, each))
    most = needs.max_num_seqs * -(-length // needs.page_unit) * needs.page_unit
    tokens = _largest(length, most, lambda each: leaves(length, each))
    return Ledger(needs, budget, length, tokens, "requests" if tokens == most else "memory")


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest of `low` … `high` that fits; `low` does, and beyond the first that does not none does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _shortage(needs: Needs, budget: Budget, more_cures: Callable[[], Sequence[str]]) -> str:
    length, tokens = needs.least
    least = needs.total_bytes(length, tokens)
    parts = Ledger(needs, budget, length, tokens, "asked").predicted
    shown = ", ".join(f"{name} {shown_bytes(size)}" for name, size in parts.items() if size)
    cures = [*_cures(needs, budget), *more_cures()]
    cure = " or ".join(cures) if cures else "no option does: take a smaller model, or a device with more memory"
    return (
        f"{shown_bytes(least - budget.num_bytes)} of memory are missing: with {tokens:,} tokens of KV cache the engine "
        f"takes {shown_bytes(least)} ({shown}), and may take {shown_bytes(budget.num_bytes)}, {budget.source}; "
        f"what cures it: {cure}"
    )


def _cures(needs: Needs, budget: Budget) -> Iterator[str]:
    """Options under which the least would fit, each by itself, with the value nearest to what was asked."""
    least = needs.total_bytes(*needs.least)
    if least <= budget.free_bytes:
        yield f"--memory {size_option(least, budget.free_bytes)}"
    asked = {"max_num_seqs": needs.max_num_seqs, "max_num_batched_tokens": needs.max_num_batched_tokens}
    if needs.is_length_asked:
        asked["max_model_len"] = needs.max_model_len
    if needs.kv_cache_tokens is not None:
        asked["kv_cache_tokens"] = needs.kv_cache_tokens

    if needs.has_graphs and replace(needs, has_graphs=False).total_bytes(*needs.least) <= budget.num_bytes:
        yield "--no-graphs"
    if needs.prompt_sizes.tokens:
        called = replace(needs, has_prompt_graphs=False)
        if called.total_bytes(*needs.least) <= budget.num_bytes:
            yield "--no-prompt-graphs"

    for name, value in asked.items():

        def fits(value: int, name: str = name) -> bool:
            smaller = replace(needs, **{name: value})  # type: ignore[arg-type]
            return smaller.total_bytes(*smaller.least) <= budget.num_bytes

        low = 1 if name == "max_num_seqs" else min(value, _SHORTEST)
        if fits(low):
            yield f"--{name.replace('_', '-')} {_largest(low, value, fits)}"
