"""Plan against actual: a model is loaded and run, and what was predicted of it stands beside what was measured.

decode   whole steps of the engine (`steady.py`) that give each of so many requests at a context its next token.
prefill  a prompt alone, from its arrival to its first token.
memory   each part of the ledger, after the largest steps, all graphs recorded and all pages written.

The plan stands on the calibration's ceilings or, without one, on the profile's. A shared machine gives other ones from
minute to minute, so under a calibration R and C are read again before and after each case, and the same shares of
these give a second prediction: its error is the model's own, that of the first also the machine's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from ..hwprofiles.records import RATE_OF_DTYPE, RateName
from ..ops.manifest import manifest
from ..ops.types import dtype_name
from ..planning.calibration import Calibration, with_ceilings
from ..planning.deployment import Deployment
from ..planning.point import decode_step, prompt_s
from ..planning.present import present
from ..planning.step_time import StepTime
from ..runtime.build import Built, build_measured
from ..runtime.errors import ConfigError
from ..runtime.holdings import run_and_measure
from ..runtime.options import Options
from ..runtime.start import Decisions, decide
from .ceilings import Ceilings, Gauge
from .results import conditions
from .shapes import Shape, write_config
from .steady import SPARE_TOKENS, Steady, Taken, built_at_random
from .stopwatch import Stopwatch

Row = dict[str, Any]
_WATCH_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """model: a folder, a hub id, or None for the embedded one; shape: random weights of it instead. Cases that the
    model's context or the memory does not hold are left out, and told."""

    model: str | None = None
    shape: Shape | None = None
    device: str | None = None
    batches: tuple[int, ...] = (1, 8, 32)
    contexts: tuple[int, ...] = (128, 512, 1024, 2048, 4096)
    prompts: tuple[int, ...] = (128, 512, 1024, 2048)
    budget_s: float = 0.4

    def cases(self) -> list[tuple[int, int]]:
        """(requests, context) of the decode steps; (0, length) of the prompts."""
        return [*((b, c) for b in self.batches for c in self.contexts), *((0, length) for length in self.prompts)]


def measure(plan: Plan, calibration: Calibration | None, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Every case as plain values. calibration: of the present device's profile. Errors: those of
    `runtime.start.decide`, and `planning.present.present`; ConfigError: no case fits."""
    with _folder(plan) as folder:
        decided, cases = _decided(plan, folder)
        planned = present(decided, calibration)  # refused before anything is loaded
        built = built_at_random(decided) if plan.shape else build_measured(decided)
    about = conditions()
    steady = Steady(built)
    memory = _memory(planned, built, steady)
    tick()
    runs = _Runs(planned, decided, steady, plan.budget_s, has_ceilings=calibration is not None)
    rows = []
    for case in cases:
        rows.append(runs.row(*case))
        tick()
    return {
        **about,
        "device": decided.report.name,
        "manifest": manifest(decided.binding),
        "efficiency_source": planned.efficiency.source,
        "rows": rows,
        "left_out": [list(case) for case in plan.cases() if case not in cases],
        "memory": memory,
        **runs.ceilings(),
        "summary": summary(rows, memory),
    }


def summary(rows: list[Row], memory: Row) -> dict[str, float | None]:
    """Median and worst error of the rows, as shares; of the plan, and of the plan at the run's own ceilings."""
    found: dict[str, float | None] = {"memory_error": memory["error"]}
    for key in ("error", "error_at_ceilings"):
        errors = [abs(row[key]) for row in rows if row[key] is not None]
        found |= {f"median_{key}": median(errors) if errors else None, f"worst_{key}": max(errors, default=None)}
    return found


@contextmanager
def _folder(plan: Plan) -> Iterator[str | None]:
    if plan.shape is None:
        yield plan.model
        return
    with tempfile.TemporaryDirectory() as folder:
        write_config(plan.shape, Path(folder))
        yield folder


def _decided(plan: Plan, folder: str | None) -> tuple[Decisions, list[tuple[int, int]]]:
    """An engine for the cases that fit, and these."""
    longest = max(*plan.contexts, *plan.prompts) + SPARE_TOKENS
    options = Options(
        model=folder, device=plan.device, dtype="bfloat16" if plan.shape else "auto", max_num_seqs=max(plan.batches),
        max_num_batched_tokens=max(plan.prompts), prefix_caching=False, progress=False,
    )  # fmt: skip
    free = decide(options)
    most = min(longest, free.max_model_len)
    unit = free.ledger.needs.page_unit

    def held(batch: int, context: int) -> int:
        return max(batch, 1) * -(-(context + SPARE_TOKENS) // unit) * unit

    cases = [case for case in plan.cases() if case[1] + SPARE_TOKENS <= most and held(*case) <= free.kv_cache_tokens]
    if not cases:
        shortest = min(length for _, length in plan.cases())
        raise ConfigError(
            f"no case fits: the shortest has {shortest:,} tokens and {SPARE_TOKENS} to spare, requests may be {most:,} "
            f"long and the cache holds {free.kv_cache_tokens:,} tokens"
        )
    tokens = max(held(*case) for case in cases)
    return decide(replace(options, max_model_len=most, kv_cache_tokens=tokens)), cases


def _memory(planned: Deployment, built: Built, steady: Steady) -> Row:
    """Predicted and measured bytes by part; the error is of their sum, over the parts that were measured."""
    graphs = steady.worker.graphs
    if graphs is not None:
        graphs.capture_all()
    with steady.computing_all():
        run_and_measure(built.engine, built.holdings)
    predicted, measured = planned.ledger.predicted, built.holdings.measured()
    parts = {name: {"predicted": predicted[name], **found._asdict()} for name, found in measured.items()}
    known = [each for each in parts.values() if each["num_bytes"] is not None]
    total = sum(each["num_bytes"] for each in known)
    return {"parts": parts, "error": sum(each["predicted"] for each in known) / total - 1 if total else None}


class _Runs:
    def __init__(
        self, planned: Deployment, decided: Decisions, steady: Steady, budget_s: float, *, has_ceilings: bool
    ) -> None:
        self._planned, self._steady, self._budget_s, self._decided = planned, steady, budget_s, decided
        watch = Stopwatch(decided.backend, decided.device, min(_WATCH_S, budget_s))
        self._dtype = dtype_name(decided.dtype)
        self._gauge = Gauge(watch, [decided.dtype]) if has_ceilings else None
        self._seen: list[Ceilings] = []

    def row(self, batch: int, length: int) -> Row:
        """What was predicted and measured of one case."""
        taken, around, is_steady = self._measured(partial(self._taken, batch, length))
        self._seen += around
        measured_s = median(taken.seconds)
        predicted_s, limit = _predicted(self._planned, batch, taken)
        at_ceilings_s = _predicted(self._at(around), batch, taken)[0] if around else None
        return {
            **({"batch": batch, "context": length} if batch else {"prompt": length}),
            "measured_ms": 1e3 * measured_s,
            "num_samples": len(taken.seconds),
            "predicted_ms": 1e3 * predicted_s,
            "error": predicted_s / measured_s - 1,
            "at_ceilings_ms": at_ceilings_s and 1e3 * at_ceilings_s,
            "error_at_ceilings": at_ceilings_s and at_ceilings_s / measured_s - 1,
            "limit": limit,
            "is_steady": is_steady,
            **(self._mean(around) if around else {}),
        }

    def _measured(self, work: Callable[[], Taken]) -> tuple[Taken, tuple[Ceilings, ...], bool]:
        return self._gauge.steady(self._dtype, work) if self._gauge else (work(), (), True)

    def ceilings(self) -> Row:
        """What the plan stands on, and what the run gave: least, median and most."""
        if not self._seen:
            return {"ceilings": None}
        reads = [each.read_gb_per_s for each in self._seen]
        rates = [each.matrix_tflops[self._dtype] for each in self._seen]
        planned = self._planned.profile
        return {"ceilings": {
            "read_gb_per_s": {"planned": planned.memory.bandwidth_gb_per_s.measured, **_range(reads)},
            "matrix_tflops": {"planned": planned.dense_tflops(self._planned.precision.rate), **_range(rates)},
        }}  # fmt: skip

    def _taken(self, batch: int, length: int) -> Taken:
        if batch:
            return self._steady.decode(batch, length, self._budget_s)
        return self._steady.prompt(length, self._budget_s)

    def _mean(self, around: tuple[Ceilings, ...]) -> dict[str, float]:
        return {
            "read_gb_per_s": fmean(each.read_gb_per_s for each in around),
            "matrix_tflops": fmean(each.matrix_tflops[self._dtype] for each in around),
        }

    def _at(self, around: tuple[Ceilings, ...]) -> Deployment:
        """The plan at the ceilings before and after a case."""
        planned, now = self._planned, self._mean(around)
        rates: dict[RateName, float] = {RATE_OF_DTYPE[self._dtype]: now["matrix_tflops"]}
        profile = with_ceilings(planned.profile, now["read_gb_per_s"], rates, "of this moment")
        sizes = planned.ledger.needs.prompt_sizes
        time = StepTime(planned.part.sites, profile, planned.precision, planned.efficiency, prompt_sizes=sizes)
        return replace(planned, profile=profile, step_time=time)


def _predicted(planned: Deployment, batch: int, taken: Taken) -> tuple[float, str]:
    """Seconds, and what sets them."""
    if batch:
        found = decode_step(planned, batch, taken.context)
        return found.seconds, found.limit
    length = int(taken.context)
    seconds, _ = prompt_s(planned, length, 0, 0.0)
    chunk = np.array([min(length, planned.token_budget)])
    return seconds, planned.step_time.breakdown(np.zeros(1, dtype=np.int64), chunk, 1).limit


def _range(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}
