"""What goes wrong for one request stays with it: others keep their tokens to the last bit, and nothing is left behind.

The checkpoint's row of one embedding is not a number: whoever reads that token computes nothing else from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ambidex.backends.contract import Backend
from ambidex.backends.cpu import CpuBackend
from ambidex.runtime.build import build
from ambidex.runtime.engine import Engine
from ambidex.runtime.errors import QueueFull, RequestError
from ambidex.runtime.messages import TIMEOUT, Ended, Submission
from ambidex.runtime.options import Options
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.start import decide

BROKEN = 77
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.9, max_tokens=12, ignore_eos=True, seed=4)
FILTERED = replace(DRAWN, top_p=0.9, top_k=20, repetition_penalty=1.2)
CLEAN = [*range(10, 42)]


@pytest.fixture(scope="module")
def folder(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, path = make_model("llama"), tmp_path_factory.mktemp("broken")
    model.model.embed_tokens.weight.data[BROKEN] = torch.nan
    model.save_pretrained(path)
    return path


@pytest.fixture(params=[False, True], ids=["in-turn", "overlap"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    return make(folder, overlap=request.param)


def make(folder: Path, backend: Backend | None = None, **options: Any) -> Engine:
    defaults = {"max_model_len": 60, "max_num_seqs": 4, "max_num_batched_tokens": 24, "progress": False}
    decided = decide(Options(model=str(folder), determinism="batch", device="cpu", **{**defaults, **options}))
    return build(replace(decided, backend=backend or decided.backend))


class Ask:
    """Submits to an engine and gathers what comes of it, by number."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[int, list[tuple[int, bytes]]] = {}
        self.ended: dict[int, Ended] = {}
        self.cached: dict[int, int] = {}

    def submit(self, number: int, prompt: Sequence[int], params: SamplingParams = GREEDY, **more: Any) -> None:
        self.engine.submit(Submission(number=number, prompt_ids=np.array(prompt), params=params, **more))
        self.tokens |= {number + index: [] for index in range(params.n)}

    def step(self) -> None:
        progress = self.engine.step()
        for number, token, logprob in zip(
            progress.numbers.tolist(), progress.ids.tolist(), progress.logprobs, strict=True
        ):
            assert number not in self.ended
            self.tokens[number].append((token, logprob.tobytes()))
        assert not {each.number for each in progress.ended} & set(self.ended)
        self.ended |= {each.number: each for each in progress.ended}
        self.cached |= {each.number: each.num_cached_tokens for each in progress.started}

    def all(self) -> Ask:
        while self.engine.has_work:
            self.step()
        assert set(self.ended) == set(self.tokens)
        free, _, pages = self.engine.scheduler.page_counts()
        assert free == pages
        return self

    def reasons(self, *numbers: int) -> list[str]:
        return [self.ended[number].reason for number in numbers]


@pytest.mark.parametrize("params", [GREEDY, DRAWN, FILTERED], ids=["greedy", "drawn", "filtered"])
@pytest.mark.parametrize("place", [0, 9, 29], ids=["first", "middle", "last"])
def test_a_request_that_computes_no_numbers_ends_with_an_error_and_harms_nobody(
    engine: Engine, params: SamplingParams, place: int
) -> None:
    mates = {1: [5, 6, 7], 2: [*range(40, 70)], 3: CLEAN[:20]}
    clean = Ask(engine)
    for number, prompt in mates.items():
        clean.submit(number, prompt, params)
    clean.all()
    spoilt = Ask(engine)
    bad = [*range(45, 75)]
    bad[place] = BROKEN
    spoilt.submit(0, bad, params)
    for number, prompt in mates.items():
        spoilt.submit(number, prompt, params)
    spoilt.all()
    assert spoilt.reasons(0, 1, 2, 3) == ["error", "length", "length", "length"]
    assert "not numbers" in (spoilt.ended[0].message or "")
    assert spoilt.tokens[0] == []
    assert {number: spoilt.tokens[number] for number in mates} == clean.tokens


def test_a_token_that_breaks_the_request_ends_it_behind_that_token(engine: Engine) -> None:
    ask = Ask(engine)
    ask.submit(0, CLEAN, replace(GREEDY, allowed_token_ids=[BROKEN]))
    ask.submit(1, CLEAN[:9])
    ask.all()
    assert [token for token, _ in ask.tokens[0]] == [BROKEN]
    assert ask.reasons(0, 1) == ["error", "length"]


def test_every_completion_of_a_broken_prompt_ends_once(engine: Engine) -> None:
    ask = Ask(engine)
    ask.submit(0, [*CLEAN, BROKEN], replace(DRAWN, n=3))
    ask.all()
    assert ask.reasons(0, 1, 2) == ["error"] * 3


def test_what_a_failed_request_computed_is_not_found_and_its_pages_serve_others(folder: Path, engine: Engine) -> None:
    """All pages of a tiny cache pass through the hands of the failing; what they leave in them must not be seen."""
    tiny = make(folder, kv_cache_tokens=64, overlap=engine.overlap)
    wanted = Ask(make(folder, prefix_caching=False))
    wanted.submit(0, CLEAN[:18])
    wanted.all()
    for _ in range(3):
        ask = Ask(tiny)
        ask.submit(0, [*CLEAN, BROKEN, *CLEAN[:20]])
        ask.all()
        assert ask.reasons(0) == ["error"]
        assert tiny.counters().cached_pages == 0
        ask.submit(1, CLEAN[:18])
        ask.all()
        assert (ask.cached[1], ask.tokens[1]) == (0, wanted.tokens[0])
        ask.submit(2, [BROKEN] * 47)
        assert ask.all().reasons(2) == ["error"]


@pytest.mark.parametrize(
    ("prompt", "params", "more", "said"),
    [
        ([], {}, {}, "the prompt is empty"),
        ([[1, 2], [3, 4]], {}, {}, "the prompt is empty"),
        ([3] * 60, {}, {}, "the prompt has 60 tokens, the context holds 60"),
        ([3, 101], {}, {}, "token id 101 is outside the vocabulary of 101"),
        ([3, -1], {}, {}, "token id -1 is outside"),
        ([3], {"stop_token_ids": [500]}, {}, "token id 500 is outside"),
        ([3], {"allowed_token_ids": [101]}, {}, "token id 101 is outside"),
        ([3], {"allowed_token_ids": [2], "min_tokens": 1, "ignore_eos": False}, {}, "nothing could be drawn"),
        ([3], {}, {"timeout_s": 0.0}, "timeout_s is 0.0"),
        ([3], {}, {"timeout_s": float("nan")}, "timeout_s is nan"),
        ([3], {}, {"priority": 10**400}, "the priority must be a whole number from"),
    ],
)
def test_what_cannot_be_served_is_refused_alone(
    engine: Engine, prompt: list[Any], params: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    ask = Ask(engine)
    ask.submit(0, CLEAN)
    ask.step()
    before = engine.counters()
    with pytest.raises(RequestError, match=said) as caught:
        engine.submit(
            Submission(number=1, prompt_ids=np.array(prompt, np.int64), params=replace(GREEDY, **params), **more)
        )
    assert "\n" not in str(caught.value)
    assert engine.counters() == before
    assert ask.all().reasons(0) == ["length"]


def test_a_request_that_the_cache_can_never_hold_is_refused_before_it_waits(folder: Path) -> None:
    small = make(folder, kv_cache_tokens=32, max_model_len=32)
    ask = Ask(small)
    ask.submit(0, CLEAN[:20])
    assert ask.all().reasons(0) == ["length"]
    with pytest.raises(RequestError, match="the context holds 32"):
        ask.submit(1, CLEAN)


def test_a_full_queue_says_so_and_takes_again_later(folder: Path) -> None:
    ask = Ask(make(folder, max_queued=2, max_num_seqs=1))
    for number in range(2):
        ask.submit(number, [number + 3])
    with pytest.raises(QueueFull, match="2 requests are waiting, max_queued is 2"):
        ask.submit(2, [9], replace(GREEDY, n=2))
    assert ask.engine.counters().waiting == 2
    ask.step()
    ask.submit(2, [9], replace(GREEDY, n=2))
    assert ask.all().reasons(0, 1, 2, 3) == ["length"] * 4


def test_a_deadline_ends_what_waits_and_what_runs_and_nothing_else(folder: Path) -> None:
    now_s = [0.0]
    backend = CpuBackend()
    backend.clock = lambda: now_s[0]  # type: ignore[method-assign]
    ask = Ask(make(folder, backend=backend, max_num_seqs=1))
    ask.submit(0, CLEAN, timeout_s=5.0)
    ask.submit(1, CLEAN, replace(GREEDY, n=2), timeout_s=4.0)
    ask.submit(3, [8], timeout_s=60.0)
    ask.step()
    now_s[0] = 4.0
    ask.step()
    assert ask.reasons(1, 2) == ["abort", "abort"]
    assert {ask.ended[number].message for number in (1, 2)} == {TIMEOUT}
    assert 0 not in ask.ended
    now_s[0] = 5.5
    ask.all()
    assert ask.reasons(0, 3) == ["abort", "length"]
    assert ask.ended[0].message == TIMEOUT


@pytest.mark.parametrize("steps", range(7))
def test_an_abort_at_any_moment_ends_one_and_harms_nobody(engine: Engine, steps: int) -> None:
    """After 0 steps it waits, after 1 and 2 it is in its prompt of 50 in chunks, then it decodes, in flight or not."""
    wanted = Ask(engine)
    wanted.submit(1, CLEAN[:20], DRAWN)
    wanted.all()
    ask = Ask(engine)
    ask.submit(0, [*range(20, 70)], replace(DRAWN, n=2, max_tokens=9))
    ask.submit(2, CLEAN[:20], DRAWN)
    for _ in range(steps):
        ask.step()
    so_far = {number: len(ask.tokens[number]) for number in (0, 1)}
    engine.abort([0, 1, 1, 12345])
    engine.abort([0])
    ask.all()
    assert ask.reasons(0, 1, 2) == ["abort", "abort", "length"]
    assert ask.ended[0].message is None
    assert {number: len(ask.tokens[number]) for number in (0, 1)} == so_far, "nothing comes after the abort"
    assert ask.tokens[2] == wanted.tokens[1]


def test_an_end_in_the_step_of_the_abort_is_said_once(engine: Engine) -> None:
    ask = Ask(engine)
    ask.submit(0, [8], replace(GREEDY, max_tokens=1))
    while 0 not in ask.ended:
        ask.step()
    engine.abort([0])
    assert ask.all().reasons(0) == ["length"]
