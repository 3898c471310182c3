"""The cost of a step: work of spans by hand, and agreement with a count over (query, key) pairs."""

import numpy as np
import pytest
import torch
from ambidex.ops.state import Plane, StateGroup
from ambidex.ops.step_cost import Span, decode_bytes, load_coefficients, site_work, step_cost
from ambidex.ops.types import Site, WeightSpec, Work
from hypothesis import given
from hypothesis import strategies as st

SPANS: list[Span] = [(0, 5), (7, 1), (3, 4), (0, 1), (20, 3)]


def site(rows: str = "tokens", window: int = 0) -> Site:
    group = StateGroup("kv", "paged", (Plane("k", (2, 8), torch.float32),), 1, window)
    return Site("op", "label", {}, {}, rows=rows, group=group)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [0, 1, 4, 6, 100])
def test_work_is_what_counting_gives(window: int) -> None:
    keys = [
        [k for k in range(position + 1) if not window or position - k < window]
        for first, count in SPANS
        for position in range(first, first + count)
    ]
    contexts = 0
    for first, count in SPANS:
        seen = {k for q in range(first, first + count) for k in range(q + 1) if not window or q - k < window}
        contexts += len(seen)
    work = site_work(site(window=window), SPANS)
    assert work == Work(rows=14, num_requests=5, context_tokens=contexts, pairs=sum(map(len, keys)))


def test_rows_of_logits_are_requests() -> None:
    assert site_work(site("logits"), SPANS).rows == len(SPANS)


def test_every_layer_counts_and_a_weight_counts_once_a_step() -> None:
    weight = WeightSpec("layers.*.o", (32, 16), torch.bfloat16, "dense", 1024)
    dtypes = {"x": torch.bfloat16, "y": torch.bfloat16}
    linear = Site("linear", "layers.*.o", {"N": 32, "K": 16}, dtypes, weights=(weight,), num_layers=3)
    assert step_cost([linear], [(0, 1)]).num_bytes == 3 * (1024 + 2 * (32 + 16))
    assert step_cost([linear], [(0, 5)]).num_bytes == 3 * (1024 + 5 * 2 * (32 + 16))
    assert step_cost([linear, linear], [(9, 2)]).num_operations == 2 * 3 * 2 * 2 * 32 * 16
    assert decode_bytes([linear], 4, 10) == 3 * (1024 + 4 * 2 * (32 + 16))


def some_sites(window: int) -> list[Site]:
    """What costs by the weight, by tokens, by rows of logits, by the keys read and by pairs."""
    x = {"x": torch.bfloat16, "y": torch.bfloat16}
    weight = WeightSpec("layers.*.o", (32, 16), torch.bfloat16, "dense", 1024)
    group = StateGroup("kv", "paged", (Plane("k", (2, 8), torch.bfloat16),), 5, window)
    attention = {"H": 4, "G": 2, "D": 8, "softcap": 0}
    return [
        Site("linear", "layers.*.o", {"N": 32, "K": 16}, x, weights=(weight,), num_layers=3),
        Site("linear", "head", {"N": 32, "K": 16}, x, rows="logits", weights=(weight,)),
        Site("paged_attention", "layers.*.attention", attention, x, group=group, num_layers=5),
    ]


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 600)), min_size=1, max_size=9))
def test_coefficients_times_a_load_are_the_cost_of_its_step(spans: list[Span]) -> None:
    sites = some_sites(window=0)
    pairs = sum(position + 1 for first, count in spans for position in range(first, first + count))
    rows, context = sum(count for _, count in spans), sum(first + count for first, count in spans)
    load = np.array([1, rows, len(spans), context, pairs, len(spans)])
    num_bytes, operations = (coefficients @ load for coefficients in load_coefficients(sites))
    for index, each in enumerate(sites):
        cost = step_cost([each], spans)
        assert (num_bytes[index], operations[index]) == pytest.approx((cost.num_bytes, cost.num_operations))
    windowed = step_cost(some_sites(window=7), spans)
    assert num_bytes.sum() >= windowed.num_bytes
    assert operations.sum() >= windowed.num_operations
