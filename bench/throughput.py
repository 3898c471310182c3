"""Throughput offline: all requests at once, new tokens a second until the last has ended. Options and keys are vLLM's.

The roofline: the prompts' operations over C, and behind them the fewest decode steps that `max_num_seqs` allows, each
at the requests' mean context: its bytes over R or its operations over C, whichever takes longer (`bench.limits`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from ..runtime.errors import AmbidexError
from ..runtime.start import resolve_model
from ..runtime.tokenizer import Tokenizer
from .contenders import Peer, products, prompt_ids, together
from .latency import whole_pages
from .limits import Found
from .results import conditions, spread

_SHAREGPT_TOKENS = (4, 1024, 2048)
"""As vLLM prunes: prompts and answers of at least 4 tokens, prompts of at most 1,024, both together at most 2,048."""


class DatasetRefused(AmbidexError):
    """A data set that cannot be used: cause and cure in one line."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured. dataset: a file of ShareGPT's form, or None for random ids. range_ratio: lengths are drawn from
    (1 - r) to (1 + r) times the given ones."""

    model: str | None = None
    device: str | None = None
    dtype: str = "auto"
    dataset: str | None = None
    input_len: int = 1024
    output_len: int | None = None
    num_prompts: int = 64
    range_ratio: float = 0.0
    seed: int = 0
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    num_iters_warmup: int = 1
    num_iters: int = 3
    compare: tuple[Peer, ...] = ()


class Load(NamedTuple):
    """The requests. prompts: token ids, or None where random ones are drawn for each repetition."""

    input_lens: list[int]
    output_lens: list[int]
    prompts: list[list[int]] | None = None

    @property
    def num_tokens(self) -> int:
        return sum(self.input_lens) + sum(self.output_lens)

    def ids(self, vocabulary_size: int, seed: str) -> list[list[int]]:
        return prompt_ids(self.input_lens, vocabulary_size, seed) if self.prompts is None else self.prompts


def load(plan: Plan) -> Load:
    if plan.dataset is not None:
        return _sharegpt(plan, Tokenizer(resolve_model(plan.model)).encode)
    draw = random.Random(plan.seed)

    def length(mean: int) -> int:
        return draw.randint(max(1, round(mean * (1 - plan.range_ratio))), round(mean * (1 + plan.range_ratio)))

    sizes = range(plan.num_prompts)
    return Load([length(plan.input_len) for _ in sizes], [length(plan.output_len or 128) for _ in sizes])


def _sharegpt(plan: Plan, encode: Callable[[str], Sequence[int]]) -> Load:
    """The first two turns of conversations: a prompt, and an answer that says how long the output is to be."""
    prompts, output_lens = [], []
    least, most_prompt, most = _SHAREGPT_TOKENS
    conversations = _conversations(Path(str(plan.dataset)))
    random.Random(plan.seed).shuffle(conversations)
    for question, answer in conversations:
        ids, output_len = list(encode(question)), plan.output_len or len(encode(answer))
        if len(ids) >= least and output_len >= least and len(ids) <= most_prompt and len(ids) + output_len <= most:
            prompts.append(ids)
            output_lens.append(output_len)
        if len(prompts) == plan.num_prompts:
            return Load([len(each) for each in prompts], output_lens, prompts)
    raise DatasetRefused(f"{plan.dataset} has {len(prompts)} requests of a fit length: --num-prompts {len(prompts)}")


def _conversations(path: Path) -> list[tuple[str, str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        turns = [each["conversations"] for each in found if len(each["conversations"]) >= 2]
        return [(str(first["value"]), str(second["value"])) for first, second, *_ in turns]
    except OSError as error:
        raise DatasetRefused(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetRefused(f'{path} is not a list of {{"conversations": [{{"value": …}}, …]}}: {error!r}') from error


def decode_steps(output_lens: Sequence[int], max_num_seqs: int) -> int:
    """The fewest steps behind the prompts' own: full batches, or the longest output."""
    return max(ceil(sum(length - 1 for length in output_lens) / max_num_seqs), max(output_lens) - 1)


def engine_options(plan: Plan, requests: Load) -> dict[str, Any]:
    lengths = sorted(map(sum, zip(requests.input_lens, requests.output_lens, strict=True)), reverse=True)
    running = lengths[: plan.max_num_seqs]
    steps = decode_steps(requests.output_lens, plan.max_num_seqs)
    batch = sum(length - 1 for length in requests.output_lens) // max(steps, 1)
    context = round(fmean(requests.input_lens) + fmean(requests.output_lens) / 2)
    return {
        "model": plan.model,
        "device": plan.device,
        "dtype": plan.dtype,
        "max_model_len": lengths[0],
        "max_num_seqs": len(running),
        "max_num_batched_tokens": plan.max_num_batched_tokens,
        "kv_cache_tokens": sum(map(whole_pages, running)),
        "prefix_caching": False,
        "roofline_steps": {
            "prompts": [(0, length) for length in requests.input_lens],
            "decode": [(context, 1)] * max(batch, 1),
        },
    }


def measure(plan: Plan, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Runs the plan; `tick` is called after each run. JSON-able values, vLLM's keys among them."""
    about, requests = conditions(), load(plan)
    longest = max(requests.input_lens)
    with together(engine_options(plan, requests), plan.compare, input_len=longest) as side_by_side:
        loaded = {process.name: process.loaded for process in side_by_side.contenders}
        seconds: dict[str, list[float]] = {name: [] for name in loaded}
        limits = Found(side_by_side.limits)
        for iteration in range(-plan.num_iters_warmup, plan.num_iters):
            ids = requests.ids(loaded["ambidex"]["vocabulary_size"], f"{plan.seed} {iteration}")
            limits.multiply()
            for process in side_by_side.contenders:
                limits.read()
                answer = process.ask("generate", prompts=ids, output_lens=requests.output_lens)
                seconds[process.name] += [answer["total_s"]] * (iteration >= 0)
                tick()
    found = limits.summary(products(loaded["ambidex"], longest))
    least_s = _least_seconds(loaded["ambidex"]["costs"], decode_steps(requests.output_lens, plan.max_num_seqs), found)
    rows = [_row(name, each, requests, least_s) for name, each in seconds.items()]
    return {
        **{key: rows[0][key] for key in _VLLM_KEYS},
        **about,
        "plan": asdict(plan),
        "manifest": loaded["ambidex"].pop("manifest"),
        "limits": found,
        "least_s": least_s,
        "contenders": loaded,
        "measurements": rows,
        "ratios": {row["contender"]: row["elapsed_time"] / rows[0]["elapsed_time"] for row in rows[1:]},
    }


_VLLM_KEYS = ("elapsed_time", "num_requests", "total_num_tokens", "requests_per_second", "tokens_per_second")


def _least_seconds(costs: Mapping[str, Sequence[int]], steps: int, limits: Mapping[str, Any]) -> float:
    """Seconds that the limits allow at least; see the head of this file."""
    read, matrix = limits["read_gb_per_s"] * 1e9, limits["matrix_gflops_per_s"] * 1e9
    step_bytes, step_operations = costs["decode"]
    return float(costs["prompts"][1] / matrix + steps * max(step_bytes / read, step_operations / matrix))


def _row(name: str, seconds: Sequence[float], requests: Load, least_s: float) -> dict[str, Any]:
    elapsed, new_tokens = median(seconds), sum(requests.output_lens)
    return {
        "contender": name,
        "elapsed_time": elapsed,
        "num_requests": len(requests.input_lens),
        "total_num_tokens": requests.num_tokens,
        "requests_per_second": len(requests.input_lens) / elapsed,
        "tokens_per_second": requests.num_tokens / elapsed,
        "output_tokens_per_second": spread([new_tokens / each for each in seconds]),
        "elapsed_times": list(seconds),
        "share_of_roofline": least_s / elapsed,
    }
