# pyright: basic
"""The tokens of a row that top-k, top-p and min-p may keep, listed in the tokens' order, without a sort.

A row is cut into slices. One launch counts each slice's tokens by their distance from the row's largest value; the last
program of a row to arrive adds the counts up, which tells how many of the nearest bins hold all that is kept
(`filters.py`) and where each slice's tokens of those begin in the list. A second launch lists them; slices without any
read nothing.

Letters: L rows, V vocabulary, T tokens of a slice, N blocks of a row, S slices of a row, B bins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .arrivals import NUM_COUNTERS, counters, is_last
from .filters import needed_bins, row_asks, row_best, scaled_slice
from .language import jit, tl
from .launching import options, power
from .overlap import joined, released

BINS, BINS_PER_UNIT = 128, 4
"""Distances up to 32, in natural logarithms; what lies further away shares a bin."""

# A row of these tensors begins wherever the number of rows puts it: one kernel serves them all.
UNALIGNED = [
    "repetition_ptr", "presence_ptr", "frequency_ptr", "temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr",
    "seeds_ptr", "positions_ptr", "prompt_lengths_ptr", "lengths_ptr",
]  # fmt: skip


@jit(do_not_specialize=["num_rows", "num_blocks", "mask_stride"], do_not_specialize_on_alignment=UNALIGNED)
def _sample_distances_kernel(
    logits_ptr, mask_ptr, counts_ptr, repetition_ptr, presence_ptr, frequency_ptr, temperature_ptr, top_k_ptr,
    top_p_ptr, min_p_ptr, seeds_ptr, positions_ptr, reals_ptr, best_ptr, bins_ptr, weights_ptr, totals_ptr,
    starts_ptr, arrived_ptr, num_rows, num_blocks, width, logits_stride, mask_stride, BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr, SLICE: tl.constexpr, BINS: tl.constexpr, BINS_PER_UNIT: tl.constexpr, MASKED: tl.constexpr,
    PENALIZED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """How many of a slice's tokens lie in each bin of distances from the row's largest value, and what they weigh. From
    all of them a row's last program finds the bins that are needed, and where each slice's tokens of those begin."""
    joined(PDL)
    released(PDL)
    row, num_slices = tl.program_id(0).to(tl.int64), tl.num_programs(1)
    temperature, top_k, top_p, min_p, is_filtered = row_asks(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row)
    if is_filtered:
        best, _token = row_best(reals_ptr, best_ptr, row, num_rows, num_blocks, BLOCK_N)
        top = tl.div_rn(best, temperature)
        scaled_T, bin_T = scaled_slice(
            logits_ptr, mask_ptr, counts_ptr, repetition_ptr, presence_ptr, frequency_ptr, row,
            tl.program_id(1) * SLICE, width, logits_stride, mask_stride, temperature, min_p, top, SLICE, BINS,
            BINS_PER_UNIT, MASKED, PENALIZED,
        )  # fmt: skip
        own, distance = row * num_slices + tl.program_id(1), tl.arange(0, BINS)
        tl.store(bins_ptr + own * BINS + distance, tl.histogram(bin_T, BINS))
        tl.store(weights_ptr + own, tl.sum(tl.exp(scaled_T - top), axis=0))
        if is_last(arrived_ptr + row, num_slices - 1):
            part = tl.arange(0, BLOCK_S)
            bins = bins_ptr + (row * num_slices + part[:, None]) * BINS + distance[None, :]
            held_SB = (part < num_slices)[:, None] & (distance >= 0)[None, :]
            counts_SB = tl.load(bins, mask=held_SB, other=0, cache_modifier=".cg")
            weights = weights_ptr + row * num_slices + part
            weight_S = tl.load(weights, mask=part < num_slices, other=0.0, cache_modifier=".cg")
            total = tl.sum(weight_S, axis=0)
            needed = needed_bins(tl.sum(counts_SB, axis=0), total, top_k, top_p, BINS, BINS_PER_UNIT)
            listed_S = tl.sum(tl.where((distance < needed)[None, :], counts_SB, 0), axis=1)
            starts = starts_ptr + row * (num_slices + 2)
            tl.store(totals_ptr + row, total)
            tl.store(starts, needed)
            tl.store(starts + 1, 0)
            tl.store(starts + 2 + part, tl.cumsum(listed_S, axis=0), mask=part < num_slices)


@jit(do_not_specialize=["num_rows", "num_blocks", "mask_stride"], do_not_specialize_on_alignment=UNALIGNED)
def _sample_gather_kernel(
    logits_ptr, mask_ptr, counts_ptr, repetition_ptr, presence_ptr, frequency_ptr, temperature_ptr, top_k_ptr,
    top_p_ptr, min_p_ptr, seeds_ptr, positions_ptr, reals_ptr, best_ptr, values_ptr, tokens_ptr, starts_ptr,
    num_rows, num_blocks, width, logits_stride, mask_stride, BLOCK_N: tl.constexpr, SLICE: tl.constexpr,
    BINS: tl.constexpr, BINS_PER_UNIT: tl.constexpr, MASKED: tl.constexpr, PENALIZED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Lists a slice's tokens of the needed bins, in order, behind those of the slices before it."""
    joined(PDL)
    released(PDL)
    row, number, num_slices = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    temperature, _, _, min_p, is_filtered = row_asks(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row)
    starts = starts_ptr + row * (num_slices + 2)
    begin = tl.load(starts + 1 + number, mask=is_filtered, other=0)
    if begin < tl.load(starts + 2 + number, mask=is_filtered, other=0):
        best, _token = row_best(reals_ptr, best_ptr, row, num_rows, num_blocks, BLOCK_N)
        start = number * SLICE
        scaled_T, bin_T = scaled_slice(
            logits_ptr, mask_ptr, counts_ptr, repetition_ptr, presence_ptr, frequency_ptr, row, start, width,
            logits_stride, mask_stride, temperature, min_p, tl.div_rn(best, temperature), SLICE, BINS,
            BINS_PER_UNIT, MASKED, PENALIZED,
        )  # fmt: skip
        kept_T = bin_T < tl.load(starts)
        place_T = row * width + begin + tl.cumsum(kept_T.to(tl.int32), axis=0) - 1
        tl.store(values_ptr + place_T, scaled_T, mask=kept_T)
        tl.store(tokens_ptr + place_T, start + tl.arange(0, SLICE), mask=kept_T)


class Lists(NamedTuple):
    """bins: [L, S, B], the counts. weights, totals: [L, S] and [L], what a slice and a row weigh. values, tokens:
    [L, V], the list. starts: [L, S + 2], the bins that are needed, and where each slice's tokens begin, and the last
    one's end."""

    bins: torch.Tensor
    weights: torch.Tensor
    totals: torch.Tensor
    values: torch.Tensor
    tokens: torch.Tensor
    starts: torch.Tensor


def room(logits: torch.Tensor, num_rows: int, num_slices: int) -> Lists:
    """For so many rows of logits, uninitialised."""

    def of(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty((num_rows, *shape), dtype=dtype, device=logits.device)

    values, tokens = of(torch.float32, logits.shape[1]), of(torch.int32, logits.shape[1])
    bins, weights = of(torch.int32, num_slices, BINS), of(torch.float32, num_slices)
    return Lists(bins, weights, of(torch.float32), values, tokens, of(torch.int32, num_slices + 2))


def fill(
    lists: Lists, found: tuple[torch.Tensor, ...], num_blocks: int, strides: tuple[int, ...], flags: dict[str, bool], *,
    slice_size: int, num_warps: int, pdl: bool,
) -> None:  # fmt: skip
    """found: logits, what the rows ask for, and each block's best, in the order of the kernels' operands."""
    num_rows, num_slices = lists.weights.shape
    assert num_rows <= NUM_COUNTERS, "each row has a counter"
    shared: dict[str, Any] = {
        "BLOCK_N": power(num_blocks), "SLICE": slice_size, "BINS": BINS, "BINS_PER_UNIT": BINS_PER_UNIT, **flags,
        "PDL": pdl, **rounded_options(num_warps, pdl=pdl),
    }  # fmt: skip
    _sample_distances_kernel[(num_rows, num_slices)](
        *found, lists.bins, lists.weights, lists.totals, lists.starts, counters(found[0].device), num_rows, num_blocks,
        *strides, BLOCK_S=power(num_slices), **shared,
    )  # fmt: skip
    _sample_gather_kernel[(num_rows, num_slices)](
        *found, lists.values, lists.tokens, lists.starts, num_rows, num_blocks, *strides, **shared
    )


def rounded_options(num_warps: int, *, pdl: bool) -> dict[str, Any]:
    """Products and sums are rounded one by one, as the reference does it: its ids are wanted."""
    return {**options(num_warps, pdl=pdl), "enable_fp_fusion": False}
