"""What arrives: rates, lengths, shared beginnings, and traces in the Azure columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ambidex.planning.fleet.arrivals import Bursts, Poisson, Waves
from ambidex.planning.fleet.lengths import LogNormal, Pareto, Uniform
from ambidex.planning.fleet.trace import read_trace
from ambidex.planning.fleet.workload import Prompts, Traffic, draw_workload
from ambidex.runtime.errors import ConfigError

_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
KINDS: list[Any] = [
    Poisson(kind="poisson", rate_per_s=50),
    Bursts(kind="bursts", calm_per_s=20, burst_per_s=200, mean_calm_s=5, mean_burst_s=1),
    Waves(kind="waves", rate_per_s=50, swing=0.8, period_s=40),
]


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", KINDS, ids=lambda each: each.kind)
def test_arrivals_ascend_at_their_mean_rate(kind: Any) -> None:
    times = kind.times(drawn(), 50_000)
    assert len(times) == 50_000
    assert times[0] > 0
    assert (np.diff(times) >= 0).all()
    assert len(times) / times[-1] == pytest.approx(50, rel=0.06)
    assert np.array_equal(times, kind.times(drawn(), 50_000))


def counts(times: np.ndarray, seconds: float) -> np.ndarray:
    return np.bincount((times / seconds).astype(int))[:-1]


def test_bursts_are_burstier_than_poisson() -> None:
    plain, bursts, _ = (counts(kind.times(drawn(), 20_000), 1.0) for kind in KINDS)
    assert plain.var() / plain.mean() == pytest.approx(1, abs=0.2)
    assert bursts.var() / bursts.mean() > 20


def test_waves_are_low_at_the_beginning_and_high_half_a_period_later() -> None:
    found = counts(KINDS[2].times(drawn(), 50_000), 4.0)
    low, high = found[0::10].mean(), found[5::10].mean()
    assert high / low == pytest.approx(7, rel=0.1), "over a tenth of a period, of 1.8 over 0.2 at the extremes"


def test_lengths_have_their_shape_and_bounds() -> None:
    normal = LogNormal(kind="lognormal", median_tokens=500, sigma=1.0, max_tokens=8000).draw(drawn(), 20_000)
    heavy = Pareto(kind="pareto", alpha=1.1, min_tokens=100, max_tokens=100_000).draw(drawn(), 20_000)
    even = Uniform(kind="uniform", min_tokens=3, max_tokens=5).draw(drawn(), 1000)
    assert np.median(normal) == pytest.approx(500, rel=0.05)
    assert normal.max() == 8000
    assert heavy.min() == 100
    assert (heavy > 1000).mean() == pytest.approx(10**-1.1, rel=0.1)
    assert np.unique(even).tolist() == [3, 4, 5]


def traffic(**prefixes: Any) -> Traffic:
    fields = {
        "arrivals": {"kind": "poisson", "rate_per_s": 1},
        "input_tokens": {"kind": "uniform", "min_tokens": 1, "max_tokens": 60},
        "output_tokens": {"kind": "uniform", "min_tokens": 1, "max_tokens": 9},
    }
    return Traffic.model_validate({**fields, "prefixes": prefixes or None})


def test_prompts_begin_as_their_group_does_and_differ_behind() -> None:
    workload = draw_workload(traffic(groups=3, tokens=20, share=0.8), 400, 0, [1.0], Path())
    prompts = Prompts(workload, 0)
    beginnings: dict[int, list[int]] = {}
    tails = set()
    for number in range(400):
        tokens = prompts.of(number).tolist()
        assert len(tokens) == workload.input_tokens[number]
        assert prompts.of(number).tolist() == tokens
        shared = workload.shared_tokens(number)
        if workload.prefix[number] >= 0:
            longest = beginnings.setdefault(int(workload.prefix[number]), [])
            assert tokens[: min(shared, len(longest))] == longest[:shared]
            beginnings[int(workload.prefix[number])] = max(longest, tokens[:shared], key=len)
        if len(tokens) > shared:
            tails.add(tuple(tokens[shared : shared + 2]) if len(tokens) > shared + 1 else (number,))
    assert len(beginnings) == 3
    assert len({tuple(each) for each in beginnings.values()}) == 3
    assert len(tails) == sum(int(workload.input_tokens[n]) > workload.shared_tokens(n) for n in range(400))
    assert 0.7 < (workload.prefix >= 0).mean() < 0.9


def test_a_prompt_with_some_of_its_answer_goes_on_where_it_was() -> None:
    workload = draw_workload(traffic(), 3, 0, [1.0], Path())
    prompts = Prompts(workload, 0)
    longer = prompts.of(2, generated=5)
    assert len(longer) == workload.input_tokens[2] + 5
    assert np.array_equal(longer[:-5], prompts.of(2))


def test_requests_do_not_depend_on_how_many_there_are() -> None:
    few, many = (draw_workload(traffic(groups=3, tokens=20), count, 1, [1.0, 2.0], Path()) for count in (50, 90))
    for column in ("arrival_s", "input_tokens", "output_tokens", "fleet", "prefix"):
        assert np.array_equal(getattr(few, column), getattr(many, column)[:50]), column


def test_a_trace_is_read_by_time_from_zero(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "GeneratedTokens,TIMESTAMP,ContextTokens,note\n"
        "30,2023-11-16 18:15:47.5000000,300,late\n"
        "10,2023-11-16 18:15:46.2500000,100,first\n\n"
        "20,2023-11-16T18:15:46.7500000Z,200,\n"
    )
    found = read_trace(path)
    assert found.arrival_s.tolist() == [0.0, 0.5, 1.25]
    assert found.input_tokens.tolist() == [100, 200, 300]
    assert found.output_tokens.tolist() == [10, 20, 30]


def test_a_trace_is_repeated_and_hurried(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(_HEADER + "2024-05-10 00:00:00.0+00:00,5,1\n2024-05-10 00:00:04.0+00:00,6,2\n")
    asked = Traffic.model_validate({"arrivals": {"kind": "trace", "file": "t.csv", "faster": 2}})
    workload = draw_workload(asked, 5, 0, [1.0], tmp_path)
    assert workload.arrival_s.tolist() == [0.0, 2.0, 3.0, 5.0, 6.0]
    assert workload.input_tokens.tolist() == [5, 6, 5, 6, 5]
    assert workload.output_tokens.tolist() == [1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "TIMESTAMP,ContextTokens\n",
            r"t.csv:1: the trace has no column GeneratedTokens: its header is TIMESTAMP,Cont",
        ),
        ("a,b\n", "no column TIMESTAMP and none ContextTokens and none GeneratedTokens"),
        ("", "its header is empty"),
        (_HEADER, "has no requests"),
        (_HEADER + "2023-11-16 18:15:46,1,1\nyesterday,5,5\n", "t.csv:3: 'yesterday,5,5' is no request"),
        (_HEADER + "2023-11-16 18:15:46,x,1\n", "t.csv:2: .* is no request"),
        (_HEADER + "2023-11-16 18:15:46,1\n", "t.csv:2: .* is no request"),
        (_HEADER + "2023-11-16 18:15:46,0,1\n", "t.csv:2: a request has at least one token in and one out"),
        (_HEADER + "2023-11-16 18:15:46,1,-4\n", "at least one token in and one out"),
        (_HEADER + "NaT,1,4\n", "t.csv:2: .* is no request"),
        (_HEADER + "now,1,4\n", "t.csv:2: .* is no request"),
        (_HEADER + "9999-01-01,1,4\n", "t.csv:2: .* is no request"),
        (_HEADER + "2023-11-16 18:15:46+02:00,1,4\n", "t.csv:2: .* is no request"),
        (_HEADER + "2023-11-16 18:15:46,1000000000000,4\n", "t.csv:2: a request has at most 16,777,216 tokens"),
        (_HEADER + f"2023-11-16 18:15:46,1,{10**30}\n", "t.csv:2: a request has at most 16,777,216 tokens"),
    ],
)
def test_a_trace_that_is_none_says_where(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_trace(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the trace .*gone\.csv"):
        read_trace(tmp_path / "gone.csv")


def test_few_requests_of_bursts_come_as_fast_as_many() -> None:
    arrivals = {"kind": "bursts", "calm_per_s": 60, "burst_per_s": 120, "mean_calm_s": 60, "mean_burst_s": 15}
    asked = Traffic.model_validate({**traffic().model_dump(), "arrivals": arrivals})
    few, many = (draw_workload(asked, count, 1, [1.0], Path()).arrival_s for count in (60, 9000))
    assert np.array_equal(few, many[:60])
    assert 60 / few[-1] > 30
    huge = {**arrivals, "calm_per_s": 1e9, "burst_per_s": 1e9}
    hurried = draw_workload(Traffic.model_validate({**traffic().model_dump(), "arrivals": huge}), 500, 1, [1.0], Path())
    assert 500 / hurried.arrival_s[-1] == pytest.approx(1e9, rel=0.3)
    assert (np.diff(hurried.arrival_s) > 0).all()


def test_waves_keep_their_shape_over_many_periods() -> None:
    arrivals = {"kind": "waves", "rate_per_s": 1, "swing": 0.9, "period_s": 1.0}
    asked = Traffic.model_validate({**traffic().model_dump(), "arrivals": arrivals})
    phase = draw_workload(asked, 200_000, 1, [1.0], Path()).arrival_s % 1.0
    in_the_middle = (np.abs(phase - 0.5) < 0.25).mean()
    assert in_the_middle == pytest.approx(0.5 + 0.9 / np.pi, rel=0.02)


def test_a_row_of_a_trace_takes_as_many_bytes_as_its_numbers(tmp_path: Path) -> None:
    import tracemalloc

    rows = 20_000
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:15:46.6805900,4808,10\n" * rows)
    tracemalloc.start()
    found = read_trace(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.arrival_s) == rows
    assert most < 120 * rows
