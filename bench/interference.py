"""What a long prompt does to those who are already being answered: their inter-token times while it is read.

A few requests decode; then one long prompt arrives. With a step budget it is read in chunks of predicted time between
which the others go on; unchunked, it is read in one step for which all of them wait. One engine each, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

import numpy as np

from ..ops.manifest import fingerprint, manifest
from ..runtime.build import build
from ..runtime.engine import Engine
from ..runtime.messages import Submission
from ..runtime.options import Options
from ..runtime.request import SamplingParams
from ..runtime.start import Decisions, decide
from .results import conditions

_LONG = 1 << 20
"""The number of the long request; the others count from 0."""
_SETTLING_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """input_len: of the long prompt; decode_input_len: of the others' prompts."""

    model: str | None = None
    device: str | None = None
    dtype: str = "auto"
    input_len: int = 32768
    num_requests: int = 4
    decode_input_len: int = 128
    step_budget_ms: float = 200.0
    unchunked: bool = True
    determinism: str = "batch"

    @property
    def budgets_ms(self) -> list[float | None]:
        """Of each run; None: the long prompt in one step."""
        return [self.step_budget_ms, *([None] if self.unchunked else [])]


def measure(plan: Plan, tick: Callable[[float], None] = lambda tokens: None) -> dict[str, Any]:
    """The run with the step budget, and the unchunked one beside it if wanted. Times in milliseconds. `tick` is told
    how many more tokens of the long prompt are read."""
    about = conditions()
    decisions = [decide(_options(plan, budget_ms)) for budget_ms in plan.budgets_ms]
    runs = [_run(plan, budget_ms, each, tick) for budget_ms, each in zip(plan.budgets_ms, decisions, strict=True)]
    return {
        **about,
        "plan": asdict(plan),
        "manifest": manifest(decisions[0].binding),
        "fingerprint": fingerprint(decisions[0].binding),
        "runs": runs,
        "p99_over_budget": runs[0]["p99_ms"] / plan.step_budget_ms,
    }


def _run(plan: Plan, budget_ms: float | None, decided: Decisions, tick: Callable[[float], None]) -> dict[str, Any]:
    engine = build(decided)
    draw, vocabulary = np.random.default_rng(0), decided.config.vocabulary_size
    for number in range(plan.num_requests):
        _submit(engine, number, draw.integers(0, vocabulary, plan.decode_input_len), decided)
    stamps = [(_settle(engine, plan.num_requests), plan.num_requests)]
    _submit(engine, _LONG, draw.integers(0, vocabulary, plan.input_len), decided, max_tokens=1)
    long_ended, num_read = False, 0
    while not long_ended:
        progress = engine.step()
        before, num_read = num_read, max(num_read, _num_read(engine, plan))
        tick(num_read - before)
        long_ended = _LONG in progress.numbers
        stamps.append((progress.time_s, int((progress.numbers < _LONG).sum())))
    return _result(stamps, budget_ms, decided)


def _num_read(engine: Engine, plan: Plan) -> int:
    """Tokens of the long prompt that are read: of all that run it has the most, or will have them."""
    return min(int(engine.scheduler.running.computed.max()), plan.input_len)


def _result(stamps: Sequence[tuple[float, int]], budget_ms: float | None, decided: Decisions) -> dict[str, Any]:
    """Every step gives each of the others a token, so the gaps between steps are their inter-token times."""
    times = [time_s for time_s, tokens in stamps if tokens]
    gaps_ms = [1000 * (after - before) for before, after in pairwise(times)]
    cuts = quantiles(gaps_ms, n=100, method="inclusive") if len(gaps_ms) > 1 else gaps_ms * 99
    return {
        "step_budget_ms": budget_ms,
        "time_to_first_token_s": stamps[-1][0] - stamps[0][0],
        "num_gaps": len(gaps_ms),
        "median_ms": median(gaps_ms),
        "p99_ms": cuts[98],
        "max_ms": max(gaps_ms),
        "ends_s": [time_s - stamps[0][0] for time_s in times[1:]],
        "gaps_ms": gaps_ms,
        "determinism": str(decided.binding.policy.determinism),
        "profile": decided.profile.name,
    }


def _options(plan: Plan, budget_ms: float | None) -> Options:
    longest = plan.input_len + 16
    others = plan.decode_input_len + plan.input_len // 8 + 512
    return Options(
        model=plan.model, device=plan.device, dtype=plan.dtype, determinism=plan.determinism, max_model_len=longest,
        max_num_seqs=plan.num_requests + 1, kv_cache_tokens=longest + 256 + plan.num_requests * others,
        max_num_batched_tokens=2048 if budget_ms else longest, step_budget_ms=budget_ms, progress=False,
    )  # fmt: skip


def _submit(
    engine: Engine, number: int, prompt: np.ndarray[Any, Any], decided: Decisions, max_tokens: int | None = None
) -> None:
    most = max_tokens or decided.max_model_len - len(prompt)
    params = SamplingParams(temperature=0.0, max_tokens=most, ignore_eos=True)
    engine.submit(Submission(number=number, prompt_ids=prompt.astype(np.int64), params=params))


def _settle(engine: Engine, num_requests: int) -> float:
    """Steps until all of them decode; when the last of these steps ended."""
    tokens, end_s = 0, 0.0
    while tokens < num_requests * _SETTLING_TOKENS:
        progress = engine.step()
        tokens, end_s = tokens + len(progress.numbers), progress.time_s
    return end_s
