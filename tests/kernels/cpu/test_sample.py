"""The C sampler against its meaning: masks, penalties, filters, ties; levels, company, threads; what it refuses."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from ambidex.kernels.cpu import language
from ambidex.kernels.cpu.arguments import SampleArgs
from ambidex.kernels.cpu.levels import LEVELS
from ambidex.kernels.cpu.library import KernelError, load
from ambidex.kernels.cpu.sample import sample_cpu
from ambidex.ops import discovery
from ambidex.ops.reference import ReferenceOps
from ambidex.ops.sample import Sampling
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(language.missing() is not None, reason=str(language.missing()))

MEANING = ReferenceOps(discovery.ops()).function(discovery.ops()["sample"])
BLOCK = 4096


def usable_levels() -> list[str]:
    return [name for name, code in LEVELS.items() if code <= load().cpu_level]


def best_level() -> str:
    return usable_levels()[-1]


def noise(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn((rows, width), generator=torch.Generator().manual_seed(seed))


def asking(rows: int, **more: Any) -> Sampling:
    """Rows that ask for nothing, with what is given instead."""
    ones, zeros, none = torch.ones(rows), torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)
    asked = {
        "temperature": zeros, "top_k": none, "top_p": ones, "min_p": zeros, "repetition": ones, "presence": zeros,
        "frequency": zeros, "seeds": torch.arange(rows), "positions": none + 5, "tokens": none[:, None],
        "prompt_lengths": none, "lengths": none, **more,
    }  # fmt: skip
    return Sampling(**asked)


def row_of(sampling: Sampling, index: int) -> Sampling:
    values = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    return Sampling(**{k: v[index : index + 1] if isinstance(v, torch.Tensor) else v for k, v in values.items()})


@st.composite
def requests(draw: st.DrawFn) -> tuple[torch.Tensor, Sampling]:
    """Logits in steps of 1/4, so that equals abound, some -inf, and any mixture of wishes."""
    rows, width = draw(st.integers(1, 4)), draw(st.sampled_from([1, 31, 64, 517, 3000, BLOCK + 1, 2 * BLOCK + 77]))
    seed = draw(st.integers(0, 2**31))
    logits = (4 * noise(rows, width, seed)).round() / 4
    logits[noise(rows, width, seed + 1) > 4] = -torch.inf
    generator = torch.Generator().manual_seed(seed)

    def either(*choices: float) -> torch.Tensor:
        return torch.tensor([draw(st.sampled_from(choices)) for _ in range(rows)])

    lengths = torch.tensor([draw(st.integers(0, 20)) for _ in range(rows)])
    words = torch.randint(-(2**31), 2**31, (rows, -(-width // 32)), generator=generator).int()
    return logits, asking(
        rows,
        temperature=either(0.0, 0.3, 1.0, 20.0),
        top_k=either(0, 1, 40, 2000).long(),
        top_p=either(1.0, 0.9017, 0.2113, 0.9991),
        min_p=either(0.0, 0.05, 0.5, 1.0),
        repetition=either(1.0, 1.5, 0.75),
        presence=either(0.0, 0.25),
        frequency=either(0.0, 0.5),
        seeds=torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        positions=torch.randint(0, 2**40, (rows,), generator=generator),
        tokens=torch.randint(0, width, (rows, 20), generator=generator),
        prompt_lengths=lengths // 2,
        lengths=lengths,
        mask=words if draw(st.booleans()) else None,
        num_logprobs=draw(st.integers(0, min(20, width))),
        random=True,
        filtered=draw(st.booleans()),
        penalized=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(requests())
def test_every_level_takes_the_tokens_that_the_reference_takes(request: tuple[torch.Tensor, Sampling]) -> None:
    logits, sampling = request
    wanted = MEANING(logits, sampling)
    for level in usable_levels():
        ids, logprobs, top_ids, top_logprobs = sample_cpu(logits, sampling, level=level)
        assert ids.tolist() == wanted[0].tolist()
        torch.testing.assert_close(logprobs, wanted[1], rtol=1e-6, atol=3e-6, equal_nan=True)
        torch.testing.assert_close(top_logprobs, wanted[3], rtol=1e-6, atol=3e-6, equal_nan=True)
        order = logits.sort(dim=-1, descending=True, stable=True).indices
        assert torch.equal(top_ids, order[:, : sampling.num_logprobs])


@pytest.mark.parametrize("level", usable_levels() if language.missing() is None else [])
@pytest.mark.parametrize("width", [5, BLOCK, 9 * BLOCK + 3])
def test_a_row_has_the_same_bits_alone_in_company_and_on_one_thread(level: str, width: int) -> None:
    rows, third = 7, torch.arange(7) % 3
    logits = noise(rows, width)
    sampling = asking(
        rows, temperature=0.5 * third, top_p=1 - 0.1 * third, num_logprobs=5, random=True, filtered=True
    )  # fmt: skip
    together = sample_cpu(logits, sampling, level=level)
    alone = [sample_cpu(logits[i : i + 1], row_of(sampling, i), level=level) for i in range(rows)]
    before = int(load().functions.ambidex_num_threads())
    load().set_num_threads(1)
    try:
        by_one = sample_cpu(logits, sampling, level=level)
    finally:
        load().set_num_threads(before)
    for number, whole in enumerate(together):
        assert torch.equal(whole, by_one[number])
        assert torch.equal(whole, torch.cat([each[number] for each in alone]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 17, BLOCK, BLOCK + 100])
def test_a_row_that_holds_no_numbers_says_so_and_its_neighbours_do_not(bad: float, place: int) -> None:
    logits = noise(3, BLOCK + 101)
    logits[1, place] = bad
    sampling = asking(3, num_logprobs=3, temperature=torch.ones(3), random=True)
    for level in usable_levels():
        ids, logprobs, top_ids, top_logprobs = sample_cpu(logits, sampling, level=level)
        assert logprobs.isnan().tolist() == top_logprobs.isnan().all(1).tolist() == [False, True, False]
        assert bool(((ids >= 0) & (ids < BLOCK + 101)).all())
        assert bool(((top_ids >= 0) & (top_ids < BLOCK + 101)).all())


@pytest.mark.parametrize("filler", [torch.nan, -torch.inf])
def test_a_row_of_nothing_gives_the_first_token_without_a_logprob(filler: float) -> None:
    logits = torch.full((1, 50), filler)
    for temperature in (0.0, 1.0):
        asked = asking(
            1, temperature=torch.tensor([temperature]), top_p=torch.tensor([0.5]), random=True, filtered=True
        )
        ids, logprobs, *_ = sample_cpu(logits, asked, level=best_level())
        assert (ids.item(), logprobs.isnan().item()) == (0, True)


def test_one_allowed_token_is_taken_whatever_the_filters_say() -> None:
    mask = torch.zeros((1, 32), dtype=torch.int32)
    mask[0, 31] = -(2**31)
    asked = asking(
        1, temperature=torch.tensor([0.7]), top_p=torch.tensor([0.9]), top_k=torch.tensor([30]), random=True,
        filtered=True, mask=mask,
    )  # fmt: skip
    for level in usable_levels():
        assert sample_cpu(noise(1, 1024), asked, level=level)[0].tolist() == [1023]


@pytest.mark.parametrize("temperature", [1e-30, 1e-40])
def test_a_temperature_that_overflows_is_greedy(temperature: float) -> None:
    logits = noise(1, 300)
    logits[0, 200] = logits.max() + 1
    asked = asking(1, temperature=torch.tensor([temperature]), random=True)
    for filters in ({}, {"top_k": torch.tensor([5])}, {"top_p": torch.tensor([0.5])}, {"min_p": torch.tensor([0.5])}):
        sampling = replace(asked, filtered=bool(filters), **filters)
        taken = int(sample_cpu(logits, sampling, level=best_level())[0])
        assert logits[0, taken] > 0
        if temperature > 1e-35:
            assert taken == 200


def test_strided_operands_are_read_as_they_lie() -> None:
    wide = torch.full((3, 700), torch.nan)
    wide[:, :600] = noise(3, 600)
    table = torch.rand((3, 6), generator=torch.Generator().manual_seed(1)) + 0.3
    asked = asking(3, temperature=table[:, 0], top_p=table[:, 1] / 2, random=True, filtered=True, num_logprobs=2)
    wanted = MEANING(wide[:, :600].contiguous(), asked)
    found = sample_cpu(wide[:, :600], asked, level=best_level())
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[2], wanted[2])


def refused(**wrong: Any) -> str:
    logits, integers, reals = torch.zeros((2, 40)), torch.zeros(80, dtype=torch.int64), torch.zeros(80)
    right = {
        "level": 0, "num_rows": 2, "num_columns": 40, "logits": logits.data_ptr(), "logits_stride": 40,
        "ids": integers.data_ptr(), "logprobs": reals.data_ptr(),
    }  # fmt: skip
    load().sample(SampleArgs(**right))
    with pytest.raises(KernelError) as caught:
        load().sample(SampleArgs(**{**right, **wrong}))
    return str(caught.value).rpartition(" ")[2]


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("level", 9, "BAD_LEVEL"), ("logits_stride", 39, "BAD_SHAPE"), ("num_columns", 0, "BAD_SHAPE"),
        ("num_rows", -1, "BAD_SHAPE"), ("logits", 0, "BAD_POINTER"), ("ids", 0, "BAD_POINTER"),
        ("logprobs", 0, "BAD_POINTER"), ("num_top", 3, "BAD_POINTER"), ("mask", 8, "BAD_POINTER"),
        ("tokens", 8, "BAD_POINTER"), ("temperature", 8, "BAD_POINTER"), ("top_k", 8, "BAD_POINTER"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(field: str, value: int, status: str) -> None:
    assert refused(**{field: value}) == status


def test_more_logprobs_than_tokens_and_tokens_beyond_the_row_are_refused() -> None:
    logits = noise(1, 40)
    with pytest.raises(KernelError, match="BAD_SHAPE"):
        sample_cpu(logits, asking(1, num_logprobs=41), level=best_level())
    one = torch.ones(1, dtype=torch.int64)
    for tokens in ([[40, 1]], [[-1, 1]]):
        asked = asking(1, tokens=torch.tensor(tokens), lengths=one, penalized=True)
        with pytest.raises(KernelError, match="BAD_SHAPE"):
            sample_cpu(logits, asked, level=best_level())
    asked = asking(1, tokens=torch.tensor([[1, 2]]), lengths=3 * one, penalized=True)
    with pytest.raises(KernelError, match="BAD_SHAPE"):
        sample_cpu(logits, asked, level=best_level())
