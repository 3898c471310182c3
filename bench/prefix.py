"""What the prefix cache saves: time to the first token of prompts that share their beginning with an earlier one.

For each hit rate and repetition: a prompt that nothing was seen of (cold), then one with the same first `hit_rate` of
its tokens and another tail (warm), and so on in turn. The floor is what the operations allow: the least time of the
tail behind its prefix over that of the whole prompt, each its operations over C or its bytes over R, whichever is more.
At a hit rate of 0 the ratio is what the cache itself costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from .contenders import Process, products, prompt_ids, together
from .latency import whole_pages
from .limits import Found
from .results import conditions, spread

_KEPT_PROMPTS = 4
"""So many prompts find room, so that a prefix is still there when it is asked for."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    model: str | None = None
    device: str | None = None
    dtype: str = "auto"
    input_len: int = 1024
    hit_rates: tuple[float, ...] = (0.0, 0.5, 0.9)
    num_iters_warmup: int = 1
    num_iters: int = 5

    def shared(self, hit_rate: float) -> int:
        """Tokens that a warm prompt shares; one at least is its own."""
        return min(int(hit_rate * self.input_len), self.input_len - 1)

    def engine_options(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "max_model_len": self.input_len + 1,
            "max_num_seqs": 1,
            "kv_cache_tokens": _KEPT_PROMPTS * whole_pages(self.input_len + 1),
            "prefix_caching": True,
            "roofline_steps": {
                "cold": [(0, self.input_len)],
                **{f"{rate}": [(self.shared(rate), self.input_len - self.shared(rate))] for rate in self.hit_rates},
            },
        }


def measure(plan: Plan, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Runs the plan; `tick` is called after each repetition of a hit rate."""
    about = conditions()
    with together(plan.engine_options(), (), input_len=plan.input_len) as side_by_side:
        ours, limits = side_by_side.ours, Found(side_by_side.limits)
        answers: dict[float, list[dict[str, Any]]] = {rate: [] for rate in plan.hit_rates}
        for iteration in range(-plan.num_iters_warmup, plan.num_iters):
            limits.multiply()
            for rate in plan.hit_rates:
                limits.read()
                answer = _cold_and_warm(ours, plan, rate, iteration)
                answers[rate] += [answer] * (iteration >= 0)
                tick()
        loaded = ours.loaded
    found = limits.summary(products(loaded, plan.input_len))
    return {
        **about,
        "plan": asdict(plan),
        "manifest": loaded.pop("manifest"),
        "limits": found,
        "contenders": {"ambidex": loaded},
        "measurements": [_row(plan, rate, each, loaded["costs"], found) for rate, each in answers.items()],
    }


def _cold_and_warm(ours: Process, plan: Plan, rate: float, iteration: int) -> dict[str, Any]:
    """Seconds to the first token, and tokens that were found, of a new prompt and of one that shares its beginning."""
    size, own = ours.loaded["vocabulary_size"], plan.input_len - plan.shared(rate)
    (prefix,) = prompt_ids([plan.shared(rate)], size, f"prefix {rate} {iteration}")
    found: dict[str, Any] = {}
    for name in ("cold", "warm"):
        (tail,) = prompt_ids([own], size, f"{name} {rate} {iteration}")
        answer = ours.ask("generate", prompts=[[*prefix, *tail]], output_lens=[1])
        found |= {f"{name}_s": answer["first_s"], f"{name}_cached_tokens": answer["cached_tokens"]}
    return found


def _row(
    plan: Plan,
    rate: float,
    answers: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Sequence[int]],
    limits: Mapping[str, Any],
) -> dict[str, Any]:
    cold, warm = ([answer[f"{name}_s"] for answer in answers] for name in ("cold", "warm"))
    return {
        "hit_rate": rate,
        "shared_tokens": plan.shared(rate),
        "cold_s": spread(cold),
        "warm_s": spread(warm),
        "cold_cached_tokens": max(answer["cold_cached_tokens"] for answer in answers),
        "warm_cached_tokens": min(answer["warm_cached_tokens"] for answer in answers),
        "ratio": median(after / before for before, after in zip(cold, warm, strict=True)),
        "floor": _least_seconds(costs[f"{rate}"], limits) / _least_seconds(costs["cold"], limits),
    }


def _least_seconds(cost: Sequence[int], limits: Mapping[str, Any]) -> float:
    num_bytes, num_operations = cost
    by_reading = num_bytes / (limits["read_gb_per_s"] * 1e9)
    return float(max(by_reading, num_operations / (limits["matrix_gflops_per_s"] * 1e9)))
