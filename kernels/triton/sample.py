# pyright: basic
"""sample in Triton: without a sort, without a read by the host, the op's own ids.

Rows are spread over many programs, so that a single one occupies the device: each finds its block's largest logit, the
sum of its exponentials, and the best sum of logit and noise. A last launch, a program a row, joins the blocks. Where
rows are filtered two launches in between list the tokens that the filters may keep (`listing.py`), and the last one
draws from those. Penalties count a row's tokens first. How a row is cut follows from the vocabulary alone: its bits do
not depend on its company.

Letters: L rows, V vocabulary, T tokens of a block, N blocks of a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel, Launch
from ...ops.sample import Sampling
from ...ops.types import Determinism, Site
from .filters import (
    allowed_logits,
    drawn_from_list,
    gumbel_noise,
    philox_words,
    row_asks,
    row_best,
)
from .language import jit, tl
from .launching import power, warps
from .listing import BINS, BINS_PER_UNIT, UNALIGNED, fill, room, rounded_options
from .overlap import joined, overlaps, released

_BLOCK, _BLOCK_THREADS = 2048, 128  # four 16-byte loads of logits a thread
_SLICE, _MAX_SLICES, _SLICE_VALUES = 2048, 64, 16  # of a row; and logits of a slice a thread
_LIST_TILE, _ROW_THREADS = 1024, 256
_COUNTED_TOKENS = 1024  # of a program that counts


@jit(do_not_specialize=["width", "tokens_stride"], do_not_specialize_on_alignment=UNALIGNED)
def _sample_counts_kernel(
    tokens_ptr, prompt_lengths_ptr, lengths_ptr, counts_ptr, width, tokens_stride, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """By row and token: how often it was produced, and in the highest bit whether the prompt has it."""
    joined(PDL)
    released(PDL)
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    prompt_length, length = tl.load(prompt_lengths_ptr + row), tl.load(lengths_ptr + row)
    token = tl.load(tokens_ptr + row * tokens_stride + place, mask=place < length, other=0)
    target = counts_ptr + row * width + token
    one = tl.full((BLOCK,), 1, dtype=tl.int32)
    tl.atomic_add(target, one, mask=(place >= prompt_length) & (place < length))
    tl.atomic_or(target, one << 31, mask=(place < prompt_length) & (place < length))


@jit(do_not_specialize=["num_rows", "mask_stride"], do_not_specialize_on_alignment=UNALIGNED)
def _sample_blocks_kernel(
    logits_ptr, mask_ptr, counts_ptr, repetition_ptr, presence_ptr, frequency_ptr, temperature_ptr, top_k_ptr,
    top_p_ptr, min_p_ptr, seeds_ptr, positions_ptr, reals_ptr, best_ptr, num_rows, width, logits_stride, mask_stride,
    BLOCK: tl.constexpr, MASKED: tl.constexpr, PENALIZED: tl.constexpr, RANDOM: tl.constexpr, FILTERED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    joined(PDL)
    released(PDL)
    row, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    token = start + tl.arange(0, BLOCK)
    raw_T = tl.load(logits_ptr + row * logits_stride + token, mask=token < width, other=float("-inf"))
    number_T = tl.where(raw_T == raw_T, raw_T, float("-inf"))  # NaN is not drawn; the weight and the logprob show it
    largest = tl.max(number_T, axis=0)
    weight = tl.sum(tl.exp(raw_T - tl.where(largest == float("-inf"), 0.0, largest)), axis=0)
    allowed_T = allowed_logits(
        number_T, row, start, width, mask_ptr, mask_stride, counts_ptr, repetition_ptr, presence_ptr, frequency_ptr,
        BLOCK, MASKED, PENALIZED,
    )  # fmt: skip
    best, place = tl.max(allowed_T, axis=0, return_indices=True)
    plane = num_rows.to(tl.int64) * tl.num_programs(1)
    own = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(reals_ptr + own, largest)
    tl.store(reals_ptr + plane + own, weight)
    tl.store(reals_ptr + 2 * plane + own, best)
    tl.store(best_ptr + own, start + place)
    if RANDOM:
        temperature, _, _, _, is_filtered = row_asks(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row)
        if (temperature > 0) & ~(is_filtered & FILTERED):
            seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
            words = philox_words(seed, position, start // 4 + tl.arange(0, BLOCK // 4))
            word_T = tl.reshape(tl.join(tl.join(words[0], words[2]), tl.join(words[1], words[3])), (BLOCK,))
            sum_T = tl.div_rn(allowed_T, temperature) + gumbel_noise(word_T)
            drawn, place = tl.max(sum_T, axis=0, return_indices=True)
            tl.store(reals_ptr + 3 * plane + own, drawn)
            tl.store(best_ptr + plane + own, start + place)


@jit(do_not_specialize=["num_rows", "num_blocks", "num_slices"], do_not_specialize_on_alignment=UNALIGNED)
def _sample_rows_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seeds_ptr, positions_ptr, reals_ptr, best_ptr,
    totals_ptr, values_ptr, tokens_ptr, starts_ptr, ids_ptr, logprobs_ptr, normaliser_ptr, num_rows, num_blocks,
    num_slices, width, logits_stride, BLOCK_N: tl.constexpr, LIST_TILE: tl.constexpr,
    BINS: tl.constexpr, BINS_PER_UNIT: tl.constexpr, RANDOM: tl.constexpr, FILTERED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    joined(PDL)
    released(PDL)
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_N)
    plane, own = num_rows.to(tl.int64) * num_blocks, row * num_blocks + block
    largest_N = tl.load(reals_ptr + own, mask=block < num_blocks, other=float("-inf"))
    weight_N = tl.load(reals_ptr + plane + own, mask=block < num_blocks, other=0.0)
    largest = tl.max(largest_N, axis=0)
    normaliser = largest + tl.log(tl.sum(weight_N * tl.exp(largest_N - largest), axis=0))
    best, token = row_best(reals_ptr, best_ptr, row, num_rows, num_blocks, BLOCK_N)
    if RANDOM:
        temperature, top_k, top_p, _min_p, is_filtered = row_asks(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row)
        is_filtered &= FILTERED
        if is_filtered:
            starts = starts_ptr + row * (num_slices + 2)
            token = drawn_from_list(
                values_ptr + row * width, tokens_ptr + row * width, tl.load(starts + 1 + num_slices),
                tl.load(totals_ptr + row), tl.div_rn(best, temperature), tl.load(starts), top_k,
                top_p, tl.load(seeds_ptr + row), tl.load(positions_ptr + row), token, LIST_TILE, BINS, BINS_PER_UNIT,
            )  # fmt: skip
        if (temperature > 0) & ~is_filtered:
            drawn_N = tl.load(reals_ptr + 3 * plane + own, mask=block < num_blocks, other=float("-inf"))
            _drawn, place = tl.max(drawn_N, axis=0, return_indices=True)
            token = tl.load(best_ptr + plane + row * num_blocks + place)
    tl.store(ids_ptr + row, token.to(tl.int64))
    tl.store(logprobs_ptr + row, tl.load(logits_ptr + row * logits_stride + token) - normaliser)
    tl.store(normaliser_ptr + row, normaliser)


def sample_triton(
    logits: torch.Tensor, sampling: Sampling, *, block: int, block_warps: int, slice_size: int, slice_warps: int,
    list_tile: int, row_warps: int, pdl: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    num_rows, width = logits.shape
    if num_rows == 0:
        none = logits.new_empty(0)
        return none.long(), none, *_top(logits, none, sampling.num_logprobs)
    call = _Call(logits, sampling, block, slice_size, pdl)
    _sample_blocks_kernel[(num_rows, call.num_blocks)](
        logits, *call.asked, call.reals, call.best, num_rows, *call.strides, BLOCK=block, **call.flags,
        RANDOM=sampling.random, FILTERED=call.is_filtered, PDL=pdl, **rounded_options(block_warps, pdl=pdl),
    )  # fmt: skip
    if call.is_filtered:
        fill(
            call.lists, (logits, *call.asked, call.reals, call.best), call.num_blocks, call.strides, call.flags,
            slice_size=slice_size, num_warps=slice_warps, pdl=pdl,
        )  # fmt: skip
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    logprobs, normaliser = (torch.empty(num_rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    _sample_rows_kernel[(num_rows,)](
        logits, *call.asked[5:], call.reals, call.best, *call.lists[2:], ids, logprobs, normaliser, num_rows,
        call.num_blocks, call.num_slices, width, logits.stride(0), BLOCK_N=power(call.num_blocks),
        LIST_TILE=list_tile, BINS=BINS, BINS_PER_UNIT=BINS_PER_UNIT,
        RANDOM=sampling.random, FILTERED=call.is_filtered, PDL=pdl,
        **rounded_options(row_warps if call.is_filtered else block_warps, pdl=pdl),
    )  # fmt: skip
    return ids, logprobs, *_top(logits, normaliser, sampling.num_logprobs)


class _Call:
    """What the launches of one call share.

    asked: mask, counts, and what the rows ask for, in the order of the kernels' operands; logits where nothing is read.
    reals, best: [4, L, N] and [2, L, N], what the first launch finds. lists: of tokens that filters may keep.
    """

    def __init__(self, logits: torch.Tensor, sampling: Sampling, block: int, slice_size: int, pdl: bool) -> None:
        (num_rows, width), self.logits = logits.shape, logits
        self.num_blocks, self.num_slices = -(-width // block), -(-width // slice_size)
        self.is_filtered = sampling.random and sampling.filtered
        self.flags = {"MASKED": sampling.mask is not None, "PENALIZED": sampling.penalized}
        self.pdl = pdl
        self.asked = _asked(logits, sampling, pdl)
        self.strides = (width, logits.stride(0), self.asked[0].stride(0))
        self.reals = self._room(torch.float32, 4, num_rows, self.num_blocks)
        self.best = self._room(torch.int32, 2, num_rows, self.num_blocks)
        self.lists = room(logits, num_rows if self.is_filtered else 0, self.num_slices)

    def _room(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.logits.device)


def _asked(logits: torch.Tensor, sampling: Sampling, pdl: bool) -> tuple[torch.Tensor, ...]:
    mask = logits if sampling.mask is None else sampling.mask.contiguous()
    counts = _counts(logits, sampling, pdl) if sampling.penalized else logits
    rows = (
        sampling.repetition, sampling.presence, sampling.frequency, sampling.temperature, sampling.top_k,
        sampling.top_p, sampling.min_p, sampling.seeds, sampling.positions,
    )  # fmt: skip
    return mask, counts, *(each.contiguous() for each in rows)


def _counts(logits: torch.Tensor, sampling: Sampling, pdl: bool) -> torch.Tensor:
    """[L, V] int32, as `_sample_counts_kernel` says."""
    num_rows, width = logits.shape
    counts = torch.zeros((num_rows, width), dtype=torch.int32, device=logits.device)
    tokens = sampling.tokens if sampling.tokens.stride(1) == 1 else sampling.tokens.contiguous()
    if tokens.shape[1]:
        _sample_counts_kernel[(num_rows, -(-tokens.shape[1] // _COUNTED_TOKENS))](
            tokens, sampling.prompt_lengths.contiguous(), sampling.lengths.contiguous(), counts, width,
            tokens.stride(0), BLOCK=_COUNTED_TOKENS, PDL=pdl, **rounded_options(4, pdl=pdl),
        )  # fmt: skip
    return counts


def _top(logits: torch.Tensor, normaliser: torch.Tensor, num_logprobs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable tokens and their log-probabilities."""
    if not num_logprobs:
        none = (len(logits), 0)
        return torch.empty(none, dtype=torch.int64, device=logits.device), torch.empty(none, device=logits.device)
    top = logits.topk(num_logprobs, dim=-1)
    return top.indices, top.values - normaliser[:, None]


def _launch(site: Site, profile: Profile, bucket: int) -> Launch:
    return _of(site, profile, _BLOCK, _slice(site))


def _slice(site: Site) -> int:
    """Of a wide vocabulary longer, so that a row's counts stay in one program's registers."""
    return max(_SLICE, power(-(-site.dim("V") // _MAX_SLICES)))


def _of(site: Site, profile: Profile, block: int, slice_size: int) -> Launch:
    width = max(32, power(site.dim("V")))
    slice_size = min(slice_size, width)
    return {
        "block": min(block, width),
        "block_warps": warps(_BLOCK_THREADS, profile),
        "slice_size": slice_size,
        "slice_warps": warps(slice_size // _SLICE_VALUES, profile),
        "list_tile": min(_LIST_TILE, width),
        "row_warps": warps(_ROW_THREADS, profile),
        "pdl": overlaps(profile),
    }


def _configurations(site: Site, profile: Profile, bucket: int) -> Iterator[Launch]:
    """Each keeps a row's bits by itself, whatever the bucket."""
    for block in (_BLOCK // 2, _BLOCK, 2 * _BLOCK):
        for slice_size in (_slice(site), 2 * _slice(site)):
            yield _of(site, profile, block, slice_size)


KERNELS = (
    Kernel(
        "sample_triton", op="sample", language="triton", run=sample_triton, dtypes=frozenset({torch.float32}),
        determinism=Determinism.BATCH, priority=50, launch=_launch, configurations=_configurations,
    ),
)  # fmt: skip
