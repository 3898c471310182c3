"""The time of a step: the sites' costs by brute force, and what must hold whatever the step."""

from dataclasses import replace

import numpy as np
import pytest
from ambidex.hwprofiles.reader import load
from ambidex.ops.step_cost import step_cost
from ambidex.planning.deployment import Deployment, deploy
from ambidex.planning.efficiency import DEFAULT, KINDS, Curve, Efficiency, ceilings
from ambidex.planning.memory import Demand
from ambidex.planning.precision import precision
from ambidex.planning.roofs import roofline_chart, site_points
from ambidex.planning.step_time import StepTime, attention_load
from ambidex.planning.subject import sized_subject
from hypothesis import given, settings
from hypothesis import strategies as st

Spans = list[tuple[int, int]]
PERFECT = replace(
    DEFAULT,
    curves={kind: Curve((1.0,), (1.0,), "all of it") for kind in KINDS},
    launch_us=dict.fromkeys(KINDS, 0.0), host_us=0.0, host_us_per_request=0.0,
)  # fmt: skip
spans = st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 3000)), min_size=1, max_size=6)


def deployed(
    format_name: str = "bf16", ranks: int = 1, reached: Efficiency = DEFAULT, prompt_graphs: bool = True
) -> Deployment:
    profile = load("nvidia-h200-sxm")
    stored = precision(format_name, profile)
    assert not isinstance(stored, str)
    demand = Demand(32_768, max_num_seqs=64, prompt_graphs=prompt_graphs)
    found = deploy(sized_subject("8B"), profile, stored, ranks, demand, reached)
    assert isinstance(found, Deployment)
    return found


WIDE, NARROW, TWO = deployed(), deployed("fp8"), deployed(ranks=2)
BUSY = deployed(reached=replace(DEFAULT, beside_reading=0.5))
HOSTED = deployed(reached=replace(DEFAULT, host_us=2e3, host_us_per_request=90.0))


def arrays(given_spans: Spans) -> tuple[np.ndarray, np.ndarray]:
    first, count = zip(*given_spans, strict=True)
    return np.array(first), np.array(count)


def seconds(deployment: Deployment, given_spans: Spans) -> float:
    return deployment.step_time.seconds(*arrays(given_spans), len(given_spans))


@settings(deadline=None)
@given(spans)
def test_bytes_and_operations_are_those_of_the_ops(given_spans: Spans) -> None:
    """A device that reaches its peaks: each site in its own limit, summed one by one."""
    ideal = deployed(reached=PERFECT, prompt_graphs=False)
    bytes_per_s, operations_per_s = ceilings(ideal.profile, "bf16")
    expected = 0.0
    for site in ideal.part.sites:
        attends = site.op == "paged_attention"
        groups = [[each for each in given_spans if (each[1] == 1) == alone] for alone in (True, False)]
        for chosen in groups if attends else [given_spans]:
            cost = step_cost([site], chosen) if chosen else None
            if cost:
                expected += max(cost.num_bytes / bytes_per_s, cost.num_operations / operations_per_s)
    assert seconds(ideal, given_spans) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(spans)
def test_the_sites_of_a_roofline_are_the_step(given_spans: Spans) -> None:
    for deployment in (WIDE, NARROW, BUSY):
        for alone in (True, False):
            chosen = [(first, 1 if alone else count + 1) for first, count in given_spans]
            step = deployment.step_time.breakdown(*arrays(chosen), len(chosen))
            points = site_points(deployment, *arrays(chosen), len(chosen))
            assert sum(each.seconds for each in points) == pytest.approx(step.bandwidth + step.compute, rel=1e-9)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (32, 1), (1, 700)])
def test_a_calibrated_devices_roofline_has_its_steps_seconds(batch: int, tokens: int) -> None:
    """Its curve of products is over rows: at an intensity below 1 it would be read at its first point."""
    curve = Curve((1.0, 100.0, 1000.0), (0.01, 0.5, 0.8), "measured")
    found = deployed(reached=replace(DEFAULT, curves={**DEFAULT.curves, "product": curve}, read_share=0.9))
    chosen = arrays([(500, tokens)] * batch)
    step = found.step_time.breakdown(*chosen, batch)
    points = site_points(found, *chosen, batch)
    assert sum(each.seconds for each in points) == pytest.approx(step.bandwidth + step.compute, rel=1e-9)


@settings(deadline=None)
@given(spans, st.integers(1, 2000), st.integers(1, 5000))
def test_more_is_never_faster(given_spans: Spans, tokens: int, context: int) -> None:
    prompts = [(first, count + 1) for first, count in given_spans]
    for deployment in (WIDE, TWO):
        here = seconds(deployment, prompts)
        (first, count), rest = prompts[0], prompts[1:]
        assert seconds(deployment, [*prompts, (0, 2)]) >= here * (1 - 1e-9)
        assert seconds(deployment, [(first, count + tokens)]) >= seconds(deployment, prompts[:1]) * (1 - 1e-9)
        # Beside others a prompt also moves the mean of the keys at which the share of all of them is read.
        assert seconds(deployment, [(first, count + tokens), *rest]) >= here * (1 - 0.02)
        decoding = [(each, 1) for each, _ in given_spans]
        longer = [(each + context, 1) for each, _ in given_spans]
        assert seconds(deployment, longer) >= seconds(deployment, decoding) * (1 - 1e-9)


@settings(deadline=None)
@given(spans)
def test_fewer_bits_and_more_ranks_are_never_slower(given_spans: Spans) -> None:
    assert seconds(NARROW, given_spans) <= seconds(WIDE, given_spans)
    alone, split = (each.step_time.breakdown(*arrays(given_spans), 1) for each in (WIDE, TWO))
    assert split.bandwidth + split.compute < alone.bandwidth + alone.compute
    assert split.link > 0 == alone.link


@settings(deadline=None)
@given(spans, st.integers(1, 30_000))
def test_a_window_never_costs_more(given_spans: Spans, window: int) -> None:
    first, count = arrays(given_spans)
    whole, keys = attention_load(first, count, 0)
    seen, fewer = attention_load(first, count, window)
    assert all(less <= more for less, more in zip(seen, whole, strict=True))
    assert fewer <= keys
    wide = attention_load(first, count, int((first + count).max()) + 1)
    assert wide[0] == whole


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 20_000), min_size=1, max_size=40), st.integers(1, 300),
    st.sampled_from([0, 1, 500]), st.sampled_from([WIDE, NARROW, TWO, BUSY, HOSTED]),
)  # fmt: skip
def test_steps_in_a_row_take_what_each_of_them_takes(
    stored: list[int], num_steps: int, window: int, deployment: Deployment
) -> None:
    """To the bit: what is foreseen of a fleet is what happens step by step."""
    windowed = tuple(
        replace(each, group=each.group and replace(each.group, window=window)) for each in deployment.part.sites[::2]
    )
    sites = (*deployment.part.sites, *windowed)
    time = StepTime(sites, deployment.profile, deployment.precision, deployment.efficiency)
    first, one = np.array(stored), np.ones(len(stored), dtype=np.int64)
    together = time.decode_seconds(first, num_steps)
    assert together.tolist() == [time.seconds(first + step, one, len(first)) for step in range(num_steps)]


def test_a_windowed_model_is_no_slower() -> None:
    sites = WIDE.part.sites
    windowed = tuple(replace(each, group=each.group and replace(each.group, window=512)) for each in sites)
    times = [StepTime(each, WIDE.profile, WIDE.precision, PERFECT) for each in (sites, windowed)]
    long, short = (time.seconds(np.array([30_000]), np.array([1]), 1) for time in times)
    assert short < long


@pytest.mark.parametrize(
    ("given_spans", "padded"),
    [
        ([(0, 16)], [(0, 16)]),
        ([(0, 100)], [(0, 128)]),
        ([(500, 1)] * 31 + [(0, 482)], [(500, 1)] * 31 + [(0, 609)]),
        ([(0, 1000)], [(0, 1024)]),
    ],
)
def test_a_step_that_reads_a_prompt_is_padded_to_its_graph(given_spans: Spans, padded: Spans) -> None:
    """Attention, which is not padded, apart: here it takes no time. Logits: of so many spans as the graph holds."""
    no_time = Curve((1.0,), (1e12,), "no time")
    curves = {kind: no_time if "attention" in kind else curve for kind, curve in PERFECT.curves.items()}
    graphs, called = (deployed(reached=replace(PERFECT, curves=curves), prompt_graphs=each) for each in (True, False))
    rows = 64 if len(given_spans) > 16 else 16
    expected = called.step_time.seconds(*arrays(padded), rows)
    assert graphs.step_time.seconds(*arrays(given_spans), 0) == pytest.approx(expected, rel=1e-9)


def test_only_a_step_that_no_graph_replays_waits_for_its_host() -> None:
    slow = replace(DEFAULT, eager_us=1000.0)
    graphs, called = (deployed(reached=slow, prompt_graphs=each) for each in (True, False))
    many = [(500, 1)] * 64
    for given_spans, waits in (
        ([(0, 1024)], False), ([(0, 1025)], True), ([(500, 1)], False), ([*many[1:], (0, 2)], False),
        ([*many, (0, 2)], True),
    ):  # fmt: skip
        step, other = (each.step_time.breakdown(*arrays(given_spans), 1) for each in (graphs, called))
        assert (step.host > 0.1) == waits
        assert (other.host > 0.1) == (given_spans != [(500, 1)])


def test_what_takes_the_time() -> None:
    one = WIDE.step_time.breakdown(np.array([100]), np.array([1]), 1)
    prompt = WIDE.step_time.breakdown(np.array([0]), np.array([8000]), 1)
    assert (one.limit, prompt.limit) == ("bandwidth", "compute")
    slow_host = deployed(reached=replace(DEFAULT, host_us=1e6)).step_time.breakdown(np.array([100]), np.array([1]), 1)
    assert (slow_host.limit, slow_host.seconds) == ("host", slow_host.host)


def test_a_roofline_lies_above_its_sites() -> None:
    chart = roofline_chart(NARROW, 32, 1000, 1000)
    roof = chart.series[0]
    assert roof.name.startswith("4.8 TB/s, fp8 1,979")
    for series in chart.series[2:]:
        for intensity, tflops in series.points:
            assert tflops < min(intensity * 4.8, 1979)
    named = {label for series in chart.series for label in series.labels}
    assert {"qkv", "gate_up", "down", "paged_attention"} <= named


def test_keys_in_eight_bits_are_half_the_bytes_that_attention_reads() -> None:
    profile, spans = load("nvidia-h200-sxm"), arrays([(16_000, 1)] * 32)
    found = []
    for kv_format in ("bf16", "fp8"):
        stored = precision("fp8", profile, kv_format)
        assert not isinstance(stored, str)
        chosen = deploy(sized_subject("8B"), profile, stored, reached=PERFECT)
        assert isinstance(chosen, Deployment)
        (point,) = [each for each in site_points(chosen, *spans, 32) if each.name.endswith("attention")]
        found.append((point.num_bytes, chosen.step_time.seconds(*spans, 32)))
    (wide_bytes, wide_s), (narrow_bytes, narrow_s) = found
    assert narrow_bytes == pytest.approx(0.5 * wide_bytes, rel=1e-3)
    bytes_per_s, _ = ceilings(profile, "fp8")
    assert wide_s - narrow_s == pytest.approx((wide_bytes - narrow_bytes) / bytes_per_s, rel=1e-6)
