"""llama-bench's tests on Ambidex: pp (a prompt), tg (new tokens), pp+tg, each at a depth of context.

pp N: N tokens over the time to the first new token. tg N: N tokens over the time of their N steps, one request. At
depth d that many tokens were there before and are not timed: for pp they are found in the prefix cache, for tg they are
the prompt. Building text is in none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ..runtime.errors import AmbidexError
from .contenders import Process, ambidex, prompt_ids
from .latency import whole_pages
from .results import conditions, deviation


class DepthRefused(AmbidexError):
    """A depth that the prefix cache does not hold exactly."""

    exit_code = 2


@dataclass(frozen=True)
class Measurement:
    """One row: a prompt of `num_prompt` tokens behind `depth`, then `num_new` tokens."""

    num_prompt: int
    num_new: int
    depth: int

    @property
    def name(self) -> str:
        parts = [f"pp{self.num_prompt}"] * (self.num_prompt > 0) + [f"tg{self.num_new}"] * (self.num_new > 0)
        return "+".join(parts) + (f" @ d{self.depth}" if self.depth else "")

    @property
    def length(self) -> int:
        """Tokens of context at the end; a test of new tokens alone begins with one."""
        return self.depth + (self.num_prompt or 1) + self.num_new + 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    model: str | None = None
    device: str | None = None
    dtype: str = "auto"
    prompts: tuple[int, ...] = (512,)
    new: tuple[int, ...] = (128,)
    both: tuple[tuple[int, int], ...] = ()
    depths: tuple[int, ...] = (0,)
    batch_tokens: int | None = None
    threads: int | None = None
    repetitions: int = 5

    def tests(self) -> Iterator[Measurement]:
        """In llama-bench's order: for each depth the prompts, the new tokens, both. A size of 0 leaves a row out."""
        for depth in self.depths:
            sizes = [*((size, 0) for size in self.prompts), *((0, size) for size in self.new), *self.both]
            yield from (Measurement(prompt, new, depth) for prompt, new in sizes if prompt or new)

    def engine_options(self) -> dict[str, Any]:
        length = max(test.length for test in self.tests())
        return {
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "max_model_len": length,
            "max_num_seqs": 1,
            "max_num_batched_tokens": self.batch_tokens,
            "kv_cache_tokens": 3 * whole_pages(length),
            "prefix_caching": any(self.depths),
            "roofline_steps": {},
        }


def measure(plan: Plan, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Runs the plan: one row a test under llama-bench's field names, times in nanoseconds. `tick` is called after each
    repetition."""
    about = conditions()
    with ambidex(plan.engine_options()) as ours:
        rows = [_row(test, _samples(ours, plan, test, tick), ours.loaded, plan) for test in plan.tests()]
        loaded = ours.loaded
    return {
        **about,
        "plan": asdict(plan),
        "manifest": loaded.pop("manifest"),
        "contenders": {"ambidex": loaded},
        "measurements": [{**row, "test_time": about["date"]} for row in rows],
    }


def _samples(ours: Process, plan: Plan, test: Measurement, tick: Callable[[], None]) -> list[float]:
    """Seconds of each repetition, behind one that does not count."""
    samples = []
    for index in range(-1, plan.repetitions):
        samples.append(_seconds(ours, test, f"{test.name} {index}"))
        tick()
    return samples[1:]


def _seconds(ours: Process, test: Measurement, seed: str) -> float:
    size = ours.loaded["vocabulary_size"]
    context, prompt = prompt_ids([test.depth, test.num_prompt or 1], size, seed)
    if not test.num_prompt:
        answer = ours.ask("generate", prompts=[[*context, *prompt]], output_lens=[test.num_new + 1])
        return sum(answer["step_s"])
    if context:
        ours.ask("generate", prompts=[[*context, prompt[0]]], output_lens=[1])
    answer = ours.ask("generate", prompts=[[*context, *prompt]], output_lens=[test.num_new + 1])
    if answer["cached_tokens"] != test.depth:
        raise DepthRefused(
            f"{answer['cached_tokens']} of the {test.depth} tokens of depth lie in whole pages of the prefix cache: "
            "take a multiple of 128"
        )
    return float(answer["total_s"] if test.num_new else answer["first_s"])


def _row(test: Measurement, seconds: Sequence[float], loaded: dict[str, Any], plan: Plan) -> dict[str, Any]:
    rates = [(test.num_prompt + test.num_new) / each for each in seconds]
    nanoseconds = [each * 1e9 for each in seconds]
    return {
        "build_commit": loaded["fingerprint"],
        "cpu_info": loaded["device_name"],
        "backends": loaded["place"].partition(":")[0].upper(),
        "model_type": model_name(loaded),
        "model_size": loaded["weight_bytes"],
        "model_n_params": loaded["num_parameters"],
        "n_batch": plan.batch_tokens,
        "n_threads": loaded["threads"],
        "n_prompt": test.num_prompt,
        "n_gen": test.num_new,
        "n_depth": test.depth,
        "test": test.name,
        "avg_ns": round(fmean(nanoseconds)),
        "stddev_ns": round(deviation(nanoseconds)),
        "avg_ts": fmean(rates),
        "stddev_ts": deviation(rates),
        "samples_ns": [round(each) for each in nanoseconds],
        "samples_ts": rates,
    }


def model_name(loaded: dict[str, Any]) -> str:
    """As llama-bench writes it: `llama 0.39B BF16`."""
    short = {"bfloat16": "BF16", "float16": "F16", "float32": "all F32"}[loaded["dtype"]]
    count = loaded["num_parameters"]
    return f"{loaded['model_type']} {f'{count / 1e9:.2f}B' if count >= 1e8 else f'{count / 1e6:.2f}M'} {short}"
