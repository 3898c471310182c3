"""Sampling: known answers of Philox, the distribution, the filters and penalties against transformers', invariance."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from ambidex.kernels.cpu import language
from ambidex.kernels.torch.sample import sample_torch
from ambidex.ops import discovery
from ambidex.ops.philox import MAX_GUMBEL, gumbel, philox, uniform, uniform_at
from ambidex.ops.reference import ReferenceOps
from ambidex.ops.sample import Sampling, filtered, masked, penalized
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

REFERENCE = ReferenceOps(discovery.ops()).function(discovery.ops()["sample"])


def sample_cpu(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, ...]:
    from ambidex.kernels.cpu.library import load
    from ambidex.kernels.cpu.sample import sample_cpu

    return sample_cpu(logits, sampling, level=load().cpu_level.name.lower())


built = pytest.mark.skipif(language.missing() is not None, reason=str(language.missing()))
SAMPLERS = pytest.mark.parametrize(
    "sample",
    [
        pytest.param(REFERENCE, id="reference"),
        pytest.param(sample_torch, id="torch"),
        pytest.param(sample_cpu, id="cpu", marks=built),
    ],
)
KERNELS = pytest.mark.parametrize(
    "sample", [pytest.param(sample_torch, id="torch"), pytest.param(sample_cpu, id="cpu", marks=built)]
)


def normal(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn((rows, vocabulary), generator=torch.Generator().manual_seed(seed))


def sampling(rows: int, **more: Any) -> Sampling:
    """Rows that ask for nothing, with what is given instead."""
    ones, zeros = torch.ones(rows), torch.zeros(rows)
    integers = torch.zeros(rows, dtype=torch.int64)
    given = {
        "temperature": zeros, "top_k": integers, "top_p": ones, "min_p": zeros, "repetition": ones, "presence": zeros,
        "frequency": zeros, "seeds": torch.arange(rows), "positions": integers + 5,
        "tokens": torch.zeros((rows, 1), dtype=torch.int64), "prompt_lengths": integers, "lengths": integers, **more,
    }  # fmt: skip
    return Sampling(**given)


def drawing(rows: int, **more: Any) -> Sampling:
    return sampling(rows, **{"temperature": torch.ones(rows), "random": True, **more})


def row(wanted: Sampling, index: int) -> Sampling:
    cut = {f.name: getattr(wanted, f.name) for f in fields(wanted)}
    return Sampling(**{k: v[index : index + 1] if isinstance(v, torch.Tensor) else v for k, v in cut.items()})


# Philox


PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
KNOWN = [
    ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (*PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_answers(counter: tuple[int, ...], key: tuple[int, int], words: str) -> None:
    """From kat_vectors of Random123, the authors' implementation."""
    found = philox(tuple(torch.tensor(c) for c in counter), (torch.tensor(key[0]), torch.tensor(key[1])))
    assert " ".join(f"{int(word):08x}" for word in found) == words


def test_uniform_is_a_function_of_seed_position_and_token() -> None:
    seeds, positions = torch.tensor([3, 3, -4, 2**62]), torch.tensor([0, 1, 0, 2**33])
    found = uniform(seeds, positions, 103)
    assert found.dtype == torch.float32
    assert 0.0 < found.min().item() < found.max().item() < 1.0
    assert len({tuple(line) for line in found[:, :8].tolist()}) == 4
    assert torch.equal(uniform(seeds[2:3], positions[2:3], 40), found[2:3, :40])


def test_one_column_can_be_had_without_the_others() -> None:
    tokens = torch.tensor([0, 3, 4, 101, 5])
    whole = uniform(torch.tensor([9]), torch.tensor([4]), 102)[0]
    assert torch.equal(uniform_at(torch.tensor(9), torch.tensor(4), tokens), whole[tokens])


def test_noise_is_bounded() -> None:
    largest = gumbel(torch.tensor([(2**23 - 0.5) * 2.0**-23]))
    assert MAX_GUMBEL - 0.1 < largest.item() < MAX_GUMBEL


def test_uniform_is_uniform() -> None:
    found = uniform(torch.arange(50), torch.zeros(50, dtype=torch.int64), 2000).flatten()
    counts = torch.histc(found, bins=20, min=0.0, max=1.0)
    assert chi_square(counts, torch.full((20,), 1 / 20)) < 43.8  # 0.999 at 19 degrees of freedom


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    wanted = probabilities * counts.sum()
    return float(((counts - wanted).square() / wanted).sum())


# Draws


@SAMPLERS
def test_greedy_takes_the_first_of_the_largest(sample: Any) -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [2.0, -1.0, 0.0, 2.0]])
    ids, logprobs, top_ids, top_logprobs = sample(logits, sampling(2, num_logprobs=2))
    assert ids.tolist() == [1, 0]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])
    assert {*top_ids[0].tolist()} == {1, 2}
    torch.testing.assert_close(top_logprobs[0], logits[0].log_softmax(-1)[1:3])
    assert (ids.dtype, logprobs.dtype, top_ids.dtype) == (torch.int64, torch.float32, torch.int64)


@SAMPLERS
def test_draws_follow_the_distribution(sample: Any) -> None:
    logits, rows = normal(1, 9), 2500
    for temperature in (0.7, 1.5):
        asked = drawing(rows, temperature=torch.full((rows,), temperature))
        ids = sample(logits.expand(rows, -1), asked)[0]
        counts = torch.bincount(ids, minlength=9).float()
        assert chi_square(counts, (logits[0] / temperature).softmax(-1)) < 26.1  # 0.999 at 8 degrees


@SAMPLERS
def test_a_filtered_draw_follows_what_the_filters_leave(sample: Any) -> None:
    logits, rows = normal(1, 40), 1500
    asked = drawing(rows, top_k=torch.full((rows,), 12), top_p=torch.full((rows,), 0.8), filtered=True)
    counts = torch.bincount(sample(logits.expand(rows, -1), asked)[0], minlength=40).float()
    left = filtered(logits, row(asked, 0))[0].softmax(-1)
    assert counts[left == 0].sum() == 0
    kept = left > 0
    assert chi_square(counts[kept], left[kept]) < 32.9  # 0.999 at 12 degrees, an upper bound of those kept


@SAMPLERS
@pytest.mark.parametrize("vocabulary", [97, 5003])
def test_a_draw_does_not_depend_on_the_batch(sample: Any, vocabulary: int) -> None:
    rows = 7
    alternate = torch.arange(rows) % 3
    asked = drawing(
        rows, temperature=0.5 * alternate, top_k=5 * alternate, top_p=1 - 0.1 * alternate, min_p=0.01 * alternate,
        filtered=True, num_logprobs=2,
    )  # fmt: skip
    logits = normal(rows, vocabulary)
    together = sample(logits, asked)
    for index in range(rows):
        for alone, whole in zip(sample(logits[index : index + 1], row(asked, index)), together, strict=True):
            assert torch.equal(alone[0], whole[index])


@SAMPLERS
def test_seed_and_position_move_the_draw_and_nothing_else_does(sample: Any) -> None:
    logits = torch.zeros((64, 1000))
    first = sample(logits, drawing(64))[0]
    assert torch.equal(first, sample(logits, drawing(64))[0])
    assert not torch.equal(first, sample(logits, drawing(64, positions=torch.full((64,), 6)))[0])
    assert not torch.equal(first, sample(logits, drawing(64, seeds=torch.arange(64) + 64))[0])
    assert len(set(first.tolist())) > 50


@KERNELS
def test_a_kernel_draws_what_the_reference_draws(sample: Any) -> None:
    for vocabulary in (67, 3001, 20_000):
        logits = normal(9, vocabulary, seed=vocabulary)
        third = torch.arange(9) % 3
        for asked in (
            drawing(9),
            drawing(9, temperature=0.4 * third),
            drawing(9, temperature=torch.full((9,), 5.0)),
            drawing(9, top_k=40 * third, filtered=True),
            drawing(9, top_p=1 - 0.3 * third, filtered=True),
            drawing(9, min_p=0.05 * third, filtered=True),
            drawing(9, top_k=2_000 * third, top_p=1 - 0.01 * third, min_p=1e-4 * third, filtered=True),
            drawing(9, temperature=torch.full((9,), 30.0), top_p=torch.full((9,), 0.999), filtered=True),
        ):
            wanted, found = REFERENCE(logits, asked), sample(logits, asked)
            assert torch.equal(found[0], wanted[0])
            torch.testing.assert_close(found[1], wanted[1], rtol=1e-6, atol=2e-6)


@KERNELS
def test_ties_are_cut_alike(sample: Any) -> None:
    logits = (4 * normal(16, 3000)).round() / 4
    for asked in (
        drawing(16, top_k=torch.full((16,), 50), filtered=True),
        drawing(16, top_p=torch.full((16,), 0.9), filtered=True),
        drawing(16, min_p=torch.full((16,), 0.1), filtered=True),
    ):
        assert torch.equal(sample(logits, asked)[0], REFERENCE(logits, asked)[0])


# Filters


@pytest.mark.parametrize("k", [1, 3, 50, 96, 200])
def test_top_k_is_transformers(k: int) -> None:
    logits = normal(4, 97)
    wanted = TopKLogitsWarper(top_k=k)(torch.empty(0), logits)
    assert torch.equal(filtered(logits, sampling(4, top_k=torch.full((4,), k))), wanted)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.99])
def test_top_p_is_transformers(p: float) -> None:
    logits = normal(4, 97)
    wanted = TopPLogitsWarper(top_p=p)(torch.empty(0), logits)
    assert torch.equal(filtered(logits, sampling(4, top_p=torch.full((4,), p))), wanted)


@pytest.mark.parametrize("p", [0.01, 0.2, 1.0])
def test_min_p_is_transformers(p: float) -> None:
    logits = normal(4, 97)
    wanted = MinPLogitsWarper(min_p=p)(torch.empty(0), logits)
    assert torch.equal(filtered(logits, sampling(4, min_p=torch.full((4,), p))), wanted)


def test_top_p_counts_what_top_k_leaves() -> None:
    logits = normal(4, 97)
    wanted = TopPLogitsWarper(top_p=0.7)(torch.empty(0), TopKLogitsWarper(top_k=9)(torch.empty(0), logits))
    asked = sampling(4, top_k=torch.full((4,), 9), top_p=torch.full((4,), 0.7))
    assert torch.equal(filtered(logits, asked), wanted)


def test_filters_that_are_off_change_nothing() -> None:
    logits = normal(3, 50_000, seed=2)
    assert torch.equal(filtered(logits, sampling(3)), logits)


def test_one_token_is_always_left() -> None:
    tight = sampling(2, top_k=torch.ones(2, dtype=torch.int64), top_p=torch.full((2,), 1e-9), min_p=torch.ones(2))
    left = filtered(normal(2, 30), tight)
    assert (left > -torch.inf).sum(-1).tolist() == [1, 1]


# Penalties and masks


def test_repetition_is_transformers() -> None:
    logits, tokens = normal(2, 30), torch.tensor([[1, 2, 2, 7], [4, 4, 9, 0]])
    wanted = RepetitionPenaltyLogitsProcessor(penalty=1.3)(tokens, logits.clone())
    lengths = torch.full((2,), 4)
    asked = sampling(2, repetition=torch.full((2,), 1.3), tokens=tokens, lengths=lengths, prompt_lengths=lengths)
    torch.testing.assert_close(penalized(logits, asked), wanted)


def test_presence_and_frequency_count_the_output_alone() -> None:
    logits, tokens = torch.zeros((1, 6)), torch.tensor([[1, 1, 2, 2, 2, 3, 5]])
    asked = sampling(
        1, presence=torch.tensor([0.5]), frequency=torch.tensor([0.25]), tokens=tokens,
        prompt_lengths=torch.tensor([2]), lengths=torch.tensor([6]),
    )  # fmt: skip
    assert penalized(logits, asked)[0].tolist() == [0.0, 0.0, -1.25, -0.75, 0.0, 0.0]


def test_a_mask_bit_allows_its_token() -> None:
    mask = torch.zeros((1, 2), dtype=torch.int32)
    mask[0, 0], mask[0, 1] = -(2**31) + 4, 1
    left = masked(torch.zeros((1, 40)), mask)
    assert (left[0] == 0).nonzero().flatten().tolist() == [2, 31, 32]


@SAMPLERS
def test_logprobs_are_of_the_raw_logits(sample: Any) -> None:
    logits = normal(1, 70)
    mask = torch.zeros((1, 3), dtype=torch.int32)
    mask[0, 1] = 1
    asked = replace(drawing(1), mask=mask)
    ids, logprobs, *_ = sample(logits, asked)
    assert ids.tolist() == [32]
    torch.testing.assert_close(logprobs[0], logits[0].log_softmax(-1)[32])
