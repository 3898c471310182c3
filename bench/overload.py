"""Ten times more requests than the pages hold: what is lost, what is leaked, and what the crowd costs.

Two phases on one engine process, each a closed loop of clients. First as many as the KV cache holds at once; then
`times` as many, with a waiting queue that does not take them all: who is refused is told so and tries again. Afterwards
pages, memory and file descriptors are compared with what they were between the phases.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..runtime.async_llm import AsyncLLM
from ..runtime.errors import QueueFull
from ..runtime.request import SamplingParams
from .results import conditions

_RETRY_S = 0.25
_TICK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """fitting: requests of input_len + output_len that the KV cache holds at once."""

    model: str | None = None
    device: str | None = None
    dtype: str = "auto"
    input_len: int = 64
    output_len: int = 64
    fitting: int = 16
    times: int = 10
    seconds: float = 60.0
    determinism: str = "run"

    @property
    def warm_up_s(self) -> float:
        return min(self.seconds / 6, 10.0)

    def engine_options(self) -> dict[str, Any]:
        length = self.input_len + self.output_len
        return {
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "determinism": self.determinism,
            "max_model_len": length + 1,
            "max_num_seqs": 2 * self.fitting,
            "kv_cache_tokens": self.fitting * -(-length // 128) * 128,
            "max_queued": (self.times - 2) * self.fitting,
        }


@dataclass
class _Tally:
    ended: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list[str])


def measure(plan: Plan, tick: Callable[[float], None] = lambda seconds: None) -> dict[str, Any]:
    """`tick` is told how many more seconds of the phases are over."""
    about, found = conditions(), asyncio.run(_measure(plan, tick))
    return {**about, "plan": asdict(plan), "manifest": _manifest(plan, found["fingerprint"]), **found}


def _manifest(plan: Plan, expected: str) -> dict[str, Any]:
    """Of the engine that ran, decided again in this process: the engine's own stays with it. Made last: until then
    this process is measured too, and holds no torch."""
    from ..ops.manifest import fingerprint, manifest
    from ..runtime.options import Options
    from ..runtime.start import decide

    binding = decide(Options(**plan.engine_options())).binding
    assert fingerprint(binding) == expected, "the same options are decided alike"
    return manifest(binding)


async def _measure(plan: Plan, tick: Callable[[float], None]) -> dict[str, Any]:
    async with AsyncLLM(**plan.engine_options()) as llm:
        _, facts, _ = await llm.facts()
        await _phase(llm, plan, plan.fitting, plan.warm_up_s, tick)  # what is only taken once is taken now
        before = await _state(llm)
        alone = await _phase(llm, plan, plan.fitting, plan.seconds, tick)
        between = await _state(llm)
        crowded = await _phase(llm, plan, plan.times * plan.fitting, plan.seconds, tick)
        after = await _state(llm)
    return {
        "fingerprint": facts.fingerprint,
        "uncontended": alone,
        "overload": crowded,
        "throughput_ratio": crowded["tokens_per_s"] / alone["tokens_per_s"],
        "state": {"before": before, "between": between, "after": after},
    }


async def _phase(
    llm: AsyncLLM, plan: Plan, num_clients: int, seconds: float, tick: Callable[[float], None]
) -> dict[str, Any]:
    """A closed loop: each client asks again as soon as it is answered, until the time is over."""
    tally, draw = _Tally(), np.random.default_rng(num_clients)
    vocabulary = (await llm.facts())[0].vocabulary_size
    begun, first = perf_counter(), await llm.counters()
    end = begun + seconds

    def prompt() -> list[int]:
        return [int(each) for each in draw.integers(0, vocabulary, plan.input_len)]

    clients = [asyncio.create_task(_client(llm, plan, prompt, end, tally)) for _ in range(num_clients)]
    while (left_s := end - perf_counter()) > 0:
        await asyncio.sleep(min(left_s, _TICK_S))
        tick(min(left_s, _TICK_S))
    last, elapsed = await llm.counters(), perf_counter() - begun
    await asyncio.gather(*clients)
    return {
        "clients": num_clients,
        "tokens_per_s": (last.sampled_tokens - first.sampled_tokens) / elapsed,
        "requests_ended": tally.ended,
        "requests_refused": tally.refused,
        "requests_broken": tally.broken,
        "preemptions": last.preemptions - first.preemptions,
    }


async def _client(llm: AsyncLLM, plan: Plan, prompt: Callable[[], list[int]], end: float, tally: _Tally) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=plan.output_len, ignore_eos=True, detokenize=False)
    while perf_counter() < end:
        try:
            stream = await llm.submit(prompt(), params)
        except QueueFull:
            tally.refused += 1
            await asyncio.sleep(_RETRY_S)
            continue
        async for _ in stream:
            pass
        result = stream.output.outputs[0]
        tally.ended += 1
        if result.finish_reason != "length" or len(result.token_ids) != plan.output_len:
            tally.broken.append(f"{stream.output.request_id}: {result.finish_reason}, {len(result.token_ids)} tokens")


async def _state(llm: AsyncLLM) -> dict[str, int]:
    """Pages, and what both processes hold."""
    counters = await llm.counters()
    return {
        "free_pages": counters.free_pages,
        "num_pages": counters.num_pages,
        "running": counters.running,
        "waiting": counters.waiting,
        **{f"engine_{name}": value for name, value in _process(llm.process_id).items()},
        **{f"client_{name}": value for name, value in _process(os.getpid()).items()},
    }


def _process(pid: int | None) -> dict[str, int]:
    """Resident bytes and open files of a process; nothing where the system does not tell."""
    folder = Path(f"/proc/{pid}")
    if pid is None or not folder.is_dir():
        return {}
    status = (folder / "status").read_text(encoding="ascii")
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return {"resident_bytes": int(resident.split()[1]) * 1024, "open_files": len(list((folder / "fd").iterdir()))}
