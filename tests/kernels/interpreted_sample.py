"""sample in Triton's interpreter against the op: the same ids for the same seeds, whatever is asked for.

Run by test_triton_sample.py in a process of its own, as the interpreter is chosen when a kernel is decorated. Blocks,
slices and lists are made small, so that a row of some hundred tokens has several of each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ambidex.bench.operands import Poison
from ambidex.kernels.triton.arrivals import counters
from ambidex.kernels.triton.language import INTERPRETED
from ambidex.kernels.triton.sample import sample_triton
from ambidex.ops.sample import OP, Sampling
from hypothesis import given, settings
from hypothesis import strategies as st

LAUNCH = {
    "block": 64, "block_warps": 1, "slice_size": 128, "slice_warps": 1, "list_tile": 32, "row_warps": 1, "pdl": False,
}  # fmt: skip

of_numpy = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's own about NaN; a device says nothing

assert INTERPRETED, "TRITON_INTERPRET=1 is to be set before the process starts"


def sampled(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, ...]:
    with Poison():
        return sample_triton(logits, sampling, **LAUNCH)


def reference(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, ...]:
    assert OP.reference is not None
    return tuple(OP.reference(logits, sampling))


def same(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    assert ours[0].tolist() == theirs[0].tolist()
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-5)
    assert ours[2].tolist() == theirs[2].tolist()
    torch.testing.assert_close(ours[3], theirs[3], rtol=1e-5, atol=1e-5)


def asked(rows: int, vocabulary: int, seed: int, **changes: Any) -> tuple[torch.Tensor, Sampling]:
    """Logits, and rows that ask for all that there is; row 0 is greedy."""
    (logits, sampling), _ = OP.inputs(
        {"L": rows, "V": vocabulary}, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(seed)
    )
    return logits, replace(sampling, **{"seeds": sampling.seeds * 31 + seed, **changes})


def all_rows(rows: int, value: float) -> torch.Tensor:
    return torch.full((rows,), value)


shares = st.sampled_from([0.02, 0.3, 0.75, 0.9, 0.99, 0.9999, 1.0])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 2), st.integers(33, 700), st.integers(0, 10**6), st.sampled_from([0, 1, 2, 7, 40, 5000]), shares,
    st.sampled_from([0.0, 0.001, 0.2, 1.0]), st.sampled_from([0.05, 0.7, 1.0, 3.0]), st.booleans(), st.booleans(),
    st.sampled_from([0.5, 4.0]),
)  # fmt: skip
def test_filters_keep_what_the_op_keeps(
    rows: int, vocabulary: int, seed: int, top_k: int, top_p: float, min_p: float, temperature: float, masked: bool,
    penalized: bool, spread: float,
) -> None:  # fmt: skip
    logits, sampling = asked(
        rows, vocabulary, seed, top_k=torch.full((rows,), top_k), top_p=all_rows(rows, top_p),
        min_p=all_rows(rows, min_p), temperature=all_rows(rows, temperature), penalized=penalized, num_logprobs=1,
    )  # fmt: skip
    sampling = sampling if masked else replace(sampling, mask=None)
    logits = spread * logits
    same(sampled(logits, sampling), reference(logits, sampling))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(33, 400), st.integers(0, 10**6), st.sampled_from([1, 3, 10, 60]), st.sampled_from([1.0, 0.37]))
def test_equal_logits_are_told_apart_by_their_tokens(vocabulary: int, seed: int, top_k: int, top_p: float) -> None:
    logits, sampling = asked(
        1, vocabulary, seed, top_k=torch.tensor([top_k]), top_p=torch.tensor([top_p]), min_p=torch.zeros(1),
        temperature=torch.ones(1), penalized=False, mask=None, num_logprobs=0,
    )  # fmt: skip
    logits = (logits / 2).round()
    same(sampled(logits, sampling), reference(logits, sampling))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 500), st.integers(0, 10**6), st.booleans(), st.booleans())
def test_greedy_rows_and_rows_without_filters(
    rows: int, vocabulary: int, seed: int, random: bool, filtered: bool
) -> None:
    off = {"top_k": torch.zeros(rows, dtype=torch.int64), "top_p": torch.ones(rows), "min_p": torch.zeros(rows)}
    logits, sampling = asked(rows, vocabulary, seed, random=random, filtered=filtered, num_logprobs=0, **off)
    same(sampled(logits, sampling), reference(logits, sampling))


def test_rows_of_all_kinds_in_one_batch_in_any_order_of_programs() -> None:
    """Greedy, drawn without a filter, and behind each: none reaches another. The counters end at zero."""
    kinds = {
        "temperature": torch.tensor([0.0, 0.8, 0.8, 0.8, 0.8]), "top_k": torch.tensor([5, 0, 7, 0, 0]),
        "top_p": torch.tensor([0.5, 1.0, 1.0, 0.6, 1.0]), "min_p": torch.tensor([0.0, 0.0, 0.0, 0.0, 0.1]),
    }  # fmt: skip
    logits, sampling = asked(5, 900, 3, num_logprobs=0, **kinds)
    for order in (torch.arange(5), torch.tensor([3, 1, 4, 0, 2])):
        turned = {
            name: value[order] for name, value in vars(sampling).items() if isinstance(value, torch.Tensor)
        }  # fmt: skip
        mixed = replace(sampling, **turned)
        same(sampled(logits[order], mixed), reference(logits[order], mixed))
    assert not counters(logits.device).any()


def test_a_row_of_many_that_lie_far_apart_or_close_together() -> None:
    """Beyond the last bin's near edge, and all of them in the first."""
    for logits in (torch.linspace(-400, 90, 300)[None], 3 + 1e-4 * torch.arange(300.0)[None]):
        for top_k, top_p in ((0, 0.5), (150, 1.0), (290, 0.999999), (3, 0.9), (0, 0.0)):
            _, sampling = asked(
                1, 300, top_k, top_k=torch.tensor([top_k]), top_p=torch.tensor([top_p]), temperature=torch.ones(1),
                penalized=False, mask=None, num_logprobs=0,
            )  # fmt: skip
            same(sampled(logits, sampling), reference(logits, sampling))


def test_rows_of_a_wider_tensor_are_read_where_they_lie() -> None:
    logits, sampling = asked(3, 130, 5)
    wide = torch.full((3, 150), torch.nan)
    wide[:, :130] = logits
    same(sampled(wide[:, :130], sampling), reference(logits, sampling))
    same(sampled(logits.T.contiguous().T, sampling), reference(logits, sampling))


def test_no_rows() -> None:
    logits, sampling = asked(2, 130, 5)
    none = replace(sampling, **{k: v[:0] for k, v in vars(sampling).items() if isinstance(v, torch.Tensor)})
    assert [tuple(each.shape) for each in sampled(logits[:0], none)] == [(0,), (0,), (0, 3), (0, 3)]


@of_numpy
@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf])
def test_what_is_no_number_shows_in_the_logprob_and_nowhere_else(value: float) -> None:
    logits, sampling = asked(4, 130, 5, mask=None)
    spoilt = logits.clone()
    spoilt[1:3] = value
    ids, logprobs, *_ = sampled(spoilt, sampling)
    healthy = sampled(logits, sampling)
    assert logprobs[1:3].isnan().all()
    assert ((ids >= 0) & (ids < 130)).all()
    assert torch.equal(ids[[0, 3]], healthy[0][[0, 3]])
    assert torch.equal(logprobs[[0, 3]], healthy[1][[0, 3]])


@of_numpy
def test_one_number_that_is_none_spoils_a_row() -> None:
    logits, sampling = asked(2, 130, 5, mask=None)
    logits[1, 129] = torch.nan
    ids, logprobs, *_ = sampled(logits, sampling)
    assert logprobs.isnan().tolist() == [False, True]
    assert 0 <= int(ids[1]) < 130


def test_draws_follow_the_softmax() -> None:
    """Of 600 positions; the bound is passed by chance once in ten thousand seeds."""
    logits, rows = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]]), 600
    _, sampling = asked(
        rows, 5, 1, positions=torch.arange(rows), seeds=torch.full((rows,), 77), temperature=torch.ones(rows),
        penalized=False, filtered=False, mask=None, num_logprobs=0,
    )  # fmt: skip
    counts = sampled(logits.expand(rows, 5), sampling)[0].bincount(minlength=5)
    expected = rows * logits[0].softmax(-1)
    assert float(((counts - expected) ** 2 / expected).sum()) < 23.5
