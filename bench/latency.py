"""Latency of one batch at a time: prefill, decode and mixed batches, against the machine's limits and other runtimes.

Prefill is the time to the first token of one prompt of `input_len`; decode is the median time of the steps behind the
first token of a batch of `decode_input_len` prompts; a mixed batch has prompts and outputs of unequal lengths, and its
new tokens count over the whole time. The result is the median over repetitions. Decode is held against R: the bytes
that its sites must move (at the middle of the output) over the bandwidth; prefill against C: its sites' operations over
the rate of the products (`bench.limits`; both are measured between the contenders' turns).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from .contenders import Peer, Process, Together, products, prompt_ids, together
from .limits import Found
from .results import conditions, spread, vllm_latencies

_PAGE_TOKENS = 128
"""Requests are given whole pages: of this size, which every smaller page size divides."""


@dataclass(frozen=True)
class Case:
    """One row of the result. A mixed batch has lengths from a quarter of the given ones up to them."""

    kind: str
    batch_size: int
    input_len: int
    output_len: int

    @property
    def name(self) -> str:
        return (
            f"prefill, {self.input_len} tokens" if self.kind == "prefill" else f"{self.kind}, batch {self.batch_size}"
        )

    def lengths(self) -> tuple[list[int], list[int]]:
        """Tokens of each prompt, and of each output; a mixed batch is drawn once, the same for everybody."""
        if self.kind != "mixed":
            return [self.input_len] * self.batch_size, [self.output_len] * self.batch_size
        draw = random.Random(self.name)
        inputs = [draw.randint(max(1, self.input_len // 4), self.input_len) for _ in range(self.batch_size)]
        return inputs, [draw.randint(max(1, self.output_len // 4), self.output_len) for _ in range(self.batch_size)]

    def spans(self) -> list[tuple[int, int]]:
        """The step whose cost stands for the case: all of the prompt, or the token in the middle of the output."""
        if self.kind == "prefill":
            return [(0, self.input_len)]
        return [(inputs + outputs // 2, 1) for inputs, outputs in zip(*self.lengths(), strict=True)]

    def tokens_per_s(self, answer: Mapping[str, Any]) -> float:
        if self.kind == "prefill":
            return self.input_len / float(answer["first_s"])
        if self.kind == "mixed":
            return sum(self.lengths()[1]) / float(answer["total_s"])
        return self.batch_size / median(answer["step_s"])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured. model: folder, hub id or None (embedded)."""

    model: str | None = None
    device: str | None = None
    dtype: str = "auto"
    input_len: int = 512
    output_len: int = 128
    decode_input_len: int = 128
    batch_sizes: tuple[int, ...] = (1, 8)
    mixed_batch: int | None = None
    num_iters_warmup: int = 1
    num_iters: int = 5
    compare: tuple[Peer, ...] = ()

    def engine_options(self) -> dict[str, Any]:
        """Arguments of `LLM`: a KV cache of what these measurements need, and not more, and no prefix found in it."""
        return {
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "max_model_len": max(self.input_len + 1, self.decode_input_len + self.output_len),
            "max_num_seqs": max(case.batch_size for case in self.cases()),
            "kv_cache_tokens": max(map(_kv_tokens, self.cases())),
            "prefix_caching": False,
            "roofline_steps": {case.name: case.spans() for case in self.cases() if case.kind != "mixed"},
        }

    def cases(self) -> list[Case]:
        decode = [Case("decode", size, self.decode_input_len, self.output_len) for size in self.batch_sizes]
        mixed = [Case("mixed", self.mixed_batch, self.decode_input_len, self.output_len)] if self.mixed_batch else []
        return [Case("prefill", 1, self.input_len, 1), *decode, *mixed]


def _kv_tokens(case: Case) -> int:
    return sum(whole_pages(sum(lengths)) for lengths in zip(*case.lengths(), strict=True))


def whole_pages(num_tokens: int) -> int:
    return -(-num_tokens // _PAGE_TOKENS) * _PAGE_TOKENS


def measure(plan: Plan, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Runs the plan; `tick` is called after each run.

    JSON-able values, vLLM's keys (`avg_latency`, `latencies`, `percentiles`) among them."""
    about = conditions()
    with together(plan.engine_options(), plan.compare, input_len=plan.input_len) as side_by_side:
        limits = Found(side_by_side.limits)
        answers = _repeat(plan, side_by_side, limits, tick)
        memory = {process.name: process.ask("memory") for process in side_by_side.contenders}
        loaded = {process.name: process.loaded for process in side_by_side.contenders}
    ours = loaded["ambidex"]
    found = limits.summary(products(ours, plan.input_len))
    rows = [_row(case, name, answers[case, name], ours, found) for case, name in answers]
    first = plan.cases()[1]
    return {
        **vllm_latencies([answer["total_s"] for answer in answers[first, "ambidex"]]),
        **about,
        "plan": asdict(plan),
        "manifest": ours.pop("manifest"),
        "limits": found,
        "contenders": loaded,
        "measurements": rows,
        "ratios": {case.name: ratios for case in plan.cases() if (ratios := _ratios(case, rows))},
        "same_first_tokens": {name: _agreement(answers, name) for name in loaded if name != "ambidex"},
        "memory": {name: _memory(memory[name], loaded[name], ours["kv_cache_bytes"]) for name in memory},
    }


def _repeat(
    plan: Plan, side_by_side: Together, limits: Found, tick: Callable[[], None]
) -> dict[tuple[Case, str], list[dict[str, Any]]]:
    """The answers of the repetitions that count, by case and contender, the limits measured between them."""
    vocabulary_size = side_by_side.ours.loaded["vocabulary_size"]
    answers: dict[tuple[Case, str], list[dict[str, Any]]] = {}
    for iteration in range(-plan.num_iters_warmup, plan.num_iters):
        limits.multiply()
        for case in plan.cases():
            limits.read()
            for process in side_by_side.contenders:
                answer = run(process, case, vocabulary_size, seed=f"{case.name} {iteration}")
                if iteration >= 0:
                    answers.setdefault((case, process.name), []).append(answer)
                tick()
    return answers


def run(process: Process, case: Case, vocabulary_size: int, seed: str) -> dict[str, Any]:
    inputs, outputs = case.lengths()
    return process.ask("generate", prompts=prompt_ids(inputs, vocabulary_size, seed), output_lens=outputs)


def _row(
    case: Case, name: str, answers: Iterable[dict[str, Any]], ours: Mapping[str, Any], limits: Mapping[str, Any]
) -> dict[str, Any]:
    rates = spread([case.tokens_per_s(answer) for answer in answers])
    row = {"case": case.name, **asdict(case), "contender": name, "tokens_per_s": rates}
    if case.kind == "mixed":
        return row
    num_bytes, num_operations = ours["costs"][case.name]
    seconds = (case.input_len if case.kind == "prefill" else case.batch_size) / rates["median"]
    return {
        **row,
        "bytes_per_step": num_bytes,
        "operations_per_step": num_operations,
        "gflops_per_s": num_operations / seconds / 1e9,
        "share_of_bandwidth": num_bytes / (limits["read_gb_per_s"] * 1e9) / seconds,
        "share_of_matrix_rate": num_operations / (limits["matrix_gflops_per_s"] * 1e9) / seconds,
    }


def _ratios(case: Case, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ambidex's median over each other contender's."""
    rates = {row["contender"]: row["tokens_per_s"]["median"] for row in rows if row["case"] == case.name}
    return {name: rates["ambidex"] / rate for name, rate in rates.items() if name != "ambidex"}


def _agreement(answers: Mapping[tuple[Case, str], Sequence[dict[str, Any]]], name: str) -> float:
    """Share of the prompts whose first new token is Ambidex's: the same model, up to the rounding of near ties."""
    cases = {case for case, _ in answers}
    pairs = [
        each
        for case in cases
        for ours, theirs in zip(answers[case, "ambidex"], answers[case, name], strict=True)
        for each in zip(ours["ids"], theirs["ids"], strict=True)
    ]
    return fmean(ours == theirs for ours, theirs in pairs)


def _memory(answer: dict[str, Any], loaded: dict[str, Any], kv_cache_bytes: int) -> dict[str, Any]:
    """Peak above the state after the imports, next to weights and KV cache (Ambidex's, for every contender)."""
    held = loaded["weight_bytes"] + kv_cache_bytes
    return {**answer, "weight_bytes": loaded["weight_bytes"], "kv_cache_bytes": kv_cache_bytes,
            "times_held": answer["peak_bytes"] / held}  # fmt: skip
