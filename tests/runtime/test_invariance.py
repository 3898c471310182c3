"""determinism="batch": tokens and log-probabilities do not change in one bit, whatever the company, the chunks, the
prefixes found, the preemptions, the overlap, and whether steps are replayed or run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ambidex.runtime.build import build
from ambidex.runtime.engine import Engine
from ambidex.runtime.messages import Submission
from ambidex.runtime.options import Options
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.start import decide
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LONGEST = 60
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-bfloat16": ("llama", {"dtype": torch.bfloat16}),
    "two-groups-float32": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-prefixes": {"prefix_caching": False},
    "overlap": {"overlap": True},
    "chunks-of-16": {"max_num_batched_tokens": 16},
    "chunks-of-64-overlap-eager": {"max_num_batched_tokens": 64, "overlap": True, "graphs": False},
    "preempting": {"kv_cache_tokens": 96, "max_num_batched_tokens": 512},
    "preempting-overlap": {"kv_cache_tokens": 96, "max_num_batched_tokens": 16, "overlap": True},
    "paced": {"step_budget_ms": 1e-4},
    "one-slot": {"max_num_seqs": 1},
}
BEGINNINGS = [[], [*range(10, 42)], [*range(10, 26), *range(60, 70)], [50] * 17]


@dataclass(frozen=True)
class Arrival:
    step: int
    prompt: tuple[int, ...]
    params: SamplingParams
    priority: int


Rows = list[tuple[int, bytes, tuple[int, ...], bytes]]


class Fleet:
    """One engine for each way of running the same weights; what they cached of earlier work stays."""

    def __init__(self, folder: Path) -> None:
        self.engines = {name: engine(folder, **{"max_num_seqs": 4, **options}) for name, options in WAYS.items()}
        self.alone = engine(folder, prefix_caching=False, max_num_batched_tokens=512, graphs=False)


def engine(folder: Path, **options: Any) -> Engine:
    defaults = {"determinism": "batch", "device": "cpu", "max_model_len": LONGEST, "max_num_seqs": 8, "progress": False}
    return build(decide(Options(model=str(folder), **{**defaults, **options})))


def run(owner: Engine, arrivals: list[Arrival]) -> list[Rows]:
    """Id, bits of its log-probability, and the likeliest ones with theirs, for each token of each completion."""
    rows: dict[int, Rows] = {}
    asked: dict[int, int] = {}
    waiting, ended, index, number = list(arrivals), list[int](), 0, 0
    while waiting or owner.has_work:
        for each in [each for each in waiting if each.step <= index]:
            waiting.remove(each)
            owner.submit(
                Submission(number=number, prompt_ids=np.array(each.prompt), params=each.params, priority=each.priority)
            )
            for completion in range(number, number + each.params.n):
                rows[completion], asked[completion] = [], each.params.logprobs or 0
            number += each.params.n
        progress = owner.step()
        index += 1
        for row, completion in enumerate(progress.numbers.tolist()):
            wide = asked[completion]
            top = progress.top_ids[row, :wide].tolist(), progress.top_logprobs[row, :wide].tobytes()
            rows[completion].append((int(progress.ids[row]), progress.logprobs[row].tobytes(), tuple(top[0]), top[1]))
        ended += [each.number for each in progress.ended]
    assert sorted(ended) == sorted(rows), "each ends, once"
    free, _, pages = owner.scheduler.page_counts()
    assert free == pages
    return [rows[completion] for completion in sorted(rows)]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def fleet(
    request: pytest.FixtureRequest, make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Fleet:
    model_type, fields = CHECKPOINTS[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    dtype = fields.get("dtype", torch.float32)
    make_model(model_type, **fields).to(dtype).save_pretrained(folder)
    return Fleet(folder)


PARAMS = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 2]),
    temperature=st.sampled_from([0.0, 0.8]),
    top_p=st.sampled_from([1.0, 0.9]),
    top_k=st.sampled_from([0, 7]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 9),
    max_tokens=st.integers(1, 24),
    min_tokens=st.integers(0, 1),
    logprobs=st.sampled_from([None, 0, 3]),
    ignore_eos=st.booleans(),
)
ARRIVALS = st.builds(
    lambda step, beginning, rest, params, priority: Arrival(step, (*beginning, *rest), params, priority),
    st.integers(0, 12),
    st.sampled_from(BEGINNINGS),
    st.lists(st.integers(3, 100), min_size=1, max_size=20),
    PARAMS,
    st.integers(0, 1),
)


def test_a_load_for_which_every_way_is_gone(fleet: Fleet) -> None:
    """The test below says something: prefixes are found, requests preempted, prompts cut, steps replayed.

    It comes first: how long answers become is learned, and so who is let in when."""
    new = range(41, 9, -1)
    prompts = [(*new, 90), (70,) * 14, (71,) * 14, (*new, 91), (72,) * 15, (73,) * 13]
    params = SamplingParams(max_tokens=24, temperature=0.8, ignore_eos=True, logprobs=2, seed=3)
    arrivals = [
        Arrival(index, prompt, replace(params, n=2 if index < 2 else 1), 0) for index, prompt in enumerate(prompts)
    ]
    alone = [rows for each in arrivals for rows in run(fleet.alone, [replace(each, step=0)])]
    gained: dict[str, dict[str, int]] = {}
    for name, owner in fleet.engines.items():
        before = owner.counters()
        assert run(owner, arrivals) == alone, name
        after = owner.counters()
        gained[name] = {field: getattr(after, field) - getattr(before, field) for field in after.__struct_fields__}
    assert gained["plain"]["cached_prompt_tokens"] > gained["no-prefixes"]["cached_prompt_tokens"] > 0
    assert fleet.engines["preempting"].counters().preemptions > 0
    assert fleet.engines["preempting-overlap"].counters().preemptions > 0
    assert gained["plain"]["preemptions"] == 0
    assert gained["one-slot"]["steps"] > gained["chunks-of-16"]["steps"] > gained["plain"]["steps"]
    assert gained["paced"]["steps"] > gained["plain"]["steps"]
    graphs = {name: owner.worker.graphs for name, owner in fleet.engines.items()}  # type: ignore[attr-defined]
    assert [name for name, each in graphs.items() if each is None] == ["chunks-of-64-overlap-eager"]
    assert all(each.refusal is None and each.num_captured > 0 for name, each in graphs.items() if each), {
        name: each.refusal for name, each in graphs.items() if each
    }


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(arrivals=st.lists(ARRIVALS, min_size=3, max_size=7))
def test_bits_depend_on_the_request_alone(fleet: Fleet, arrivals: list[Arrival]) -> None:
    alone = [rows for each in arrivals for rows in run(fleet.alone, [replace(each, step=0)])]
    in_order = sorted(range(len(arrivals)), key=lambda index: arrivals[index].step)
    numbers = np.cumsum([0, *(each.params.n for each in arrivals)])
    order = [number for index in in_order for number in range(numbers[index], numbers[index + 1])]
    for name, owner in fleet.engines.items():
        assert run(owner, arrivals) == [alone[number] for number in order], name
