"""Latency of one batch at a time: prefill and decode, against the roofline and against another runtime.

Each contender runs in a process of its own and all are asked in turn, repetition by repetition (A B, A B, …), so that
what disturbs the machine disturbs both. Prefill is the time to the first token of one prompt of `input_len`; decode is
the median time of the steps behind the first token of a batch of `decode_input_len` prompts; the result is the median
over repetitions. The roofline of a decode step: the bytes that its sites must move (at the middle of the output) over
the bandwidth that was measured in the same run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from statistics import fmean, median, quantiles
from typing import IO, Any

from ..runtime.errors import AmbidexError

_PAGE_TOKENS = 128
"""Requests are given whole pages: of this size, which every smaller page size divides."""


class ContenderFailed(AmbidexError):
    """A contender ended with an error; carries its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured. model: folder, hub id or None (embedded). compare: names of other contenders."""

    model: str | None = None
    device: str | None = None
    dtype: str = "auto"
    input_len: int = 512
    output_len: int = 128
    decode_input_len: int = 128
    batch_sizes: tuple[int, ...] = (1, 8)
    num_iters_warmup: int = 1
    num_iters: int = 5
    compare: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        return max(self.input_len + 1, self.decode_input_len + self.output_len)

    def engine_options(self) -> dict[str, Any]:
        """Arguments of `LLM`: a KV cache of what these measurements need, and not more."""
        decode_tokens = _whole_pages(self.decode_input_len + self.output_len) * max(self.batch_sizes)
        return {
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "max_model_len": self.length,
            "max_num_seqs": max(self.batch_sizes),
            "kv_cache_tokens": max(_whole_pages(self.input_len + 1), decode_tokens),
            "roofline_steps": {case.name: case.spans() for case in self.cases()},
        }

    def cases(self) -> list[Case]:
        decode = [Case("decode", size, self.decode_input_len, self.output_len) for size in self.batch_sizes]
        return [Case("prefill", 1, self.input_len, 1), *decode]


@dataclass(frozen=True)
class Case:
    """One row of the result."""

    kind: str
    batch_size: int
    input_len: int
    output_len: int

    @property
    def name(self) -> str:
        return f"{self.kind}, batch {self.batch_size}" if self.kind == "decode" else f"prefill, {self.input_len} tokens"

    def spans(self) -> list[tuple[int, int]]:
        """The step whose cost stands for the case: all of the prompt, or the token in the middle of the output."""
        if self.kind == "prefill":
            return [(0, self.input_len)]
        return [(self.input_len + self.output_len // 2, 1)] * self.batch_size

    def tokens_per_s(self, answer: dict[str, Any]) -> float:
        if self.kind == "prefill":
            return self.input_len / float(answer["first_s"])
        return self.batch_size / median(answer["step_s"])


def _whole_pages(num_tokens: int) -> int:
    return -(-num_tokens // _PAGE_TOKENS) * _PAGE_TOKENS


class Process:
    """A contender's process: asked by a JSON line, answering by one."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        command = [sys.executable, "-m", f"{__package__}.contender", name, json.dumps(options)]
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.loaded = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        print(json.dumps(request), file=_stream(self._process.stdin), flush=True)
        return self._answer()

    def run(self, case: Case, seed: int) -> dict[str, Any]:
        return self.ask(
            measure="generate",
            batch_size=case.batch_size,
            input_len=case.input_len,
            output_len=case.output_len,
            seed=seed,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            _stream(stream).close()

    def _answer(self) -> dict[str, Any]:
        line = _stream(self._process.stdout).readline()
        if not line:
            raise ContenderFailed(f"{self.name} ended without an answer (exit status {self._process.wait()})", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderFailed(f"{self.name}: {answer['error']}", answer["exit_code"])
        return answer


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@contextmanager
def contenders(plan: Plan) -> Iterator[list[Process]]:
    """Ambidex first; the others get the folder and the dtype that it settled on."""
    with ExitStack() as stack:
        processes: list[Process] = []
        for name in ("ambidex", *plan.compare):
            same = {key: processes[0].loaded[key] for key in ("folder", "dtype")} if processes else {}
            options = {"model": same["folder"], "dtype": same["dtype"]} if same else plan.engine_options()
            process = Process(name, options)
            stack.callback(process.close)
            processes.append(process)
        yield processes


def measure(plan: Plan) -> dict[str, Any]:
    """Runs the plan. JSON-able values, vLLM's keys (`avg_latency`, `latencies`, `percentiles`) among them."""
    with contenders(plan) as processes:
        answers = _repeat(plan, processes)
        memory = {process.name: process.ask(measure="memory") for process in processes}
        bandwidth = float(processes[0].ask(measure="bandwidth")["read_bandwidth_gb_per_s"])
        loaded = {process.name: process.loaded for process in processes}
    rows = [_row(case, name, answers[case, name], loaded["ambidex"], bandwidth) for case, name in answers]
    first = plan.cases()[1]
    return {
        **_vllm_keys([answer["total_s"] for answer in answers[first, "ambidex"]]),
        "plan": asdict(plan),
        "read_bandwidth_gb_per_s": bandwidth,
        "contenders": loaded,
        "measurements": rows,
        "ratios": {case.name: ratios for case in plan.cases() if (ratios := _ratios(case, rows))},
        "memory": {name: _memory(memory[name], loaded[name], loaded["ambidex"]["kv_cache_bytes"]) for name in memory},
    }


def _repeat(plan: Plan, processes: Sequence[Process]) -> dict[tuple[Case, str], list[dict[str, Any]]]:
    answers: dict[tuple[Case, str], list[dict[str, Any]]] = {}
    for iteration in range(-plan.num_iters_warmup, plan.num_iters):
        for case in plan.cases():
            for process in processes:
                answer = process.run(case, seed=iteration)
                if iteration >= 0:
                    answers.setdefault((case, process.name), []).append(answer)
    return answers


def _row(
    case: Case, name: str, answers: Iterable[dict[str, Any]], ours: dict[str, Any], bandwidth: float
) -> dict[str, Any]:
    rates = [case.tokens_per_s(answer) for answer in answers]
    num_bytes, num_operations = ours["costs"][case.name]
    tokens_a_step = case.input_len if case.kind == "prefill" else case.batch_size
    seconds = tokens_a_step / median(rates)
    return {
        "case": case.name,
        **asdict(case),
        "contender": name,
        "tokens_per_s": {"median": median(rates), "min": min(rates), "max": max(rates), "all": rates},
        "bytes_per_step": num_bytes,
        "operations_per_step": num_operations,
        "gflops_per_s": num_operations / seconds / 1e9,
        "share_of_bandwidth": num_bytes / (bandwidth * 1e9) / seconds,
    }


def _ratios(case: Case, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ambidex's median over each other contender's."""
    rates = {row["contender"]: row["tokens_per_s"]["median"] for row in rows if row["case"] == case.name}
    return {name: rates["ambidex"] / rate for name, rate in rates.items() if name != "ambidex"}


def _memory(answer: dict[str, Any], loaded: dict[str, Any], kv_cache_bytes: int) -> dict[str, Any]:
    """Peak above the state after `import torch`, next to weights and KV cache (Ambidex's, for every contender)."""
    held = loaded["weight_bytes"] + kv_cache_bytes
    return {**answer, "weight_bytes": loaded["weight_bytes"], "kv_cache_bytes": kv_cache_bytes,
            "times_held": answer["peak_bytes"] / held}  # fmt: skip


def _vllm_keys(seconds: Sequence[float]) -> dict[str, Any]:
    """Of the first batch size, prompts of decode_input_len."""
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    return {
        "avg_latency": fmean(seconds),
        "latencies": list(seconds),
        "percentiles": {str(each): cuts[each - 1] for each in (10, 25, 50, 75, 90, 99)},
    }
