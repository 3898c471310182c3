"""The cost of a step: work of spans by hand, and agreement with a count over (query, key) pairs."""

import pytest
import torch
from ambidex.ops.state import Plane, StateGroup
from ambidex.ops.step_cost import Span, decode_bytes, site_work, step_cost
from ambidex.ops.types import Site, WeightSpec, Work

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
