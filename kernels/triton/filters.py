# pyright: basic
"""Device functions of the sampler: noise, what a row's logits become, and a draw behind filters, without a sort.

The tokens that filters keep are the first ones of the order (value falling, token rising). What is sought is where they
end. A histogram of a row's distances from its largest value tells a distance beyond which none of them lies; what is
nearer is gathered into a list, mostly of some hundred tokens, in which the end is found by halving intervals of the
order. Value and token make one 64-bit key, so that equal values have an order too.

Letters: T tokens of a tile, L entries of a list's tile, B bins.
"""

from __future__ import annotations

from typing import Any

from .language import jit, tl


@jit()
def gumbel_noise(word_T) -> Any:
    """-log(-log(u)) with u in (0, 1) from a word, as the op has it."""
    uniform_T = ((word_T >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return -tl.log(-tl.log(uniform_T))


@jit()
def philox_words(seed, position, group_T) -> Any:
    """The four words of each group of four tokens."""
    group_T = group_T.to(tl.uint32)
    zero_T = group_T * 0
    low, high = (position & 0xFFFFFFFF).to(tl.uint32), ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return tl.philox(seed, group_T, zero_T + low, zero_T + high, zero_T)


@jit()
def allowed_logits(
    raw_T, row, start, width, mask_ptr, mask_stride, counts_ptr, repetition_ptr, presence_ptr, frequency_ptr,
    TILE: tl.constexpr, MASKED: tl.constexpr, PENALIZED: tl.constexpr,
) -> Any:  # fmt: skip
    """What tokens are drawn from: a row's logits from `start` on, masked and penalized."""
    if MASKED:
        word = start // 32 + tl.arange(0, TILE // 32)
        words = tl.load(mask_ptr + row * mask_stride + word, mask=word < (width + 31) // 32, other=0)
        bits = (words[:, None] >> tl.arange(0, 32)[None, :]) & 1
        raw_T = tl.where(tl.reshape(bits, (TILE,)) != 0, raw_T, float("-inf"))
    if PENALIZED:
        token = start + tl.arange(0, TILE)
        count_T = tl.load(counts_ptr + row * width + token, mask=token < width, other=0)
        produced_T = (count_T & 0x7FFFFFFF).to(tl.float32)
        factor_T = tl.where(count_T != 0, tl.load(repetition_ptr + row), 1.0)
        raw_T = tl.where(raw_T > 0, tl.div_rn(raw_T, factor_T), raw_T * factor_T)
        raw_T = raw_T - tl.load(frequency_ptr + row) * produced_T
        raw_T = raw_T - tl.where(produced_T > 0, tl.load(presence_ptr + row), 0.0)
    return raw_T


@jit()
def row_asks(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row) -> Any:
    """A row's temperature, top-k, top-p, min-p, and whether it draws behind a filter."""
    temperature, min_p = tl.load(temperature_ptr + row), tl.load(min_p_ptr + row)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    return temperature, top_k, top_p, min_p, (temperature > 0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0))


@jit()
def row_best(reals_ptr, best_ptr, row, num_rows, num_blocks, BLOCK_N: tl.constexpr) -> Any:
    """The largest allowed logit of a row, and its token: the first of equals."""
    block = tl.arange(0, BLOCK_N)
    plane = num_rows.to(tl.int64) * num_blocks
    best_N = tl.load(reals_ptr + 2 * plane + row * num_blocks + block, mask=block < num_blocks, other=float("-inf"))
    best, place = tl.max(best_N, axis=0, return_indices=True)
    return best, tl.load(best_ptr + row * num_blocks + place)


@jit()
def scaled_slice(
    logits_ptr, mask_ptr, counts_ptr, repetition_ptr, presence_ptr, frequency_ptr, row, start, width, logits_stride,
    mask_stride, temperature, min_p, top, TILE: tl.constexpr, BINS: tl.constexpr, BINS_PER_UNIT: tl.constexpr,
    MASKED: tl.constexpr, PENALIZED: tl.constexpr,
) -> Any:  # fmt: skip
    """Logits over temperature, -inf where min-p removes them; and the bin of each one's distance from the largest. The
    last bin is of those that are removed, the one before it has no far edge."""
    token = start + tl.arange(0, TILE)
    raw_T = tl.load(logits_ptr + row * logits_stride + token, mask=token < width, other=float("-inf"))
    allowed_T = allowed_logits(
        raw_T, row, start, width, mask_ptr, mask_stride, counts_ptr, repetition_ptr, presence_ptr, frequency_ptr,
        TILE, MASKED, PENALIZED,
    )  # fmt: skip
    scaled_T = tl.div_rn(allowed_T, temperature)
    least = tl.where(min_p > 0, top + tl.log(tl.maximum(min_p, 1e-37)), float("-inf"))
    scaled_T = tl.where(scaled_T >= least, scaled_T, float("-inf"))
    distance_T = tl.minimum(tl.maximum((top - scaled_T) * BINS_PER_UNIT, 0.0), BINS - 2).to(tl.int32)
    return scaled_T, tl.where(scaled_T > float("-inf"), distance_T, BINS - 1)


@jit()
def needed_bins(counts_B, total, top_k, top_p, BINS: tl.constexpr, BINS_PER_UNIT: tl.constexpr) -> Any:
    """How many of the nearest bins hold all that top-k and top-p keep. A bin weighs at most what it would if all of it
    lay at its near edge: what the bins from one on weigh together is bounded, and may be left out if that is little."""
    number_B = tl.cumsum(counts_B, axis=0)
    heaviest_B = counts_B.to(tl.float32) * tl.exp(-tl.arange(0, BINS).to(tl.float32) / BINS_PER_UNIT)
    rest_B = tl.cumsum(heaviest_B, axis=0, reverse=True)
    by_number = 1 + tl.sum((number_B < top_k).to(tl.int32), axis=0)
    by_weight = tl.sum((rest_B > (1.0 - top_p) * total).to(tl.int32), axis=0)
    needed = tl.where(top_k > 0, by_number, tl.where(top_p < 1.0, by_weight, BINS))
    return tl.minimum(tl.maximum(needed, 1), BINS - 1)


@jit()
def drawn_from_list(
    values, tokens, count, total, top, needed, top_k, top_p, seed, position, first, LIST_TILE: tl.constexpr,
    BINS: tl.constexpr, BINS_PER_UNIT: tl.constexpr,
) -> Any:  # fmt: skip
    """The token drawn from a row's list of `count` entries, which the `needed` bins hold. total: the weight of all that
    min-p leaves. first: the token of the largest value, `top`."""
    edge = tl.where(needed < BINS - 1, top - (needed + 1).to(tl.float32) / BINS_PER_UNIT, float("-inf"))
    low, high = _key(edge, 0x7FFFFFFF), (_key(top, 0x7FFFFFFF) >> 32) + 1 << 32
    number = count.to(tl.float32)
    if (top_k > 0) & (top_k < count):
        low, number = _end(values, tokens, count, top, low, high, number, top_k.to(tl.float32), LIST_TILE, False)
    if top_p < 1.0:
        if top_k > 0:
            total = _weight(values, tokens, count, top, low, LIST_TILE)
        low, number = _end(values, tokens, count, top, low, high, number, top_p * total, LIST_TILE, True)
    return _winner(values, tokens, count, low, seed, position, first, LIST_TILE)


@jit()
def _key(value, token) -> Any:
    """Rises with the order reversed: with the value, and among equals with falling token."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)  # no -0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) << 32) + (0x7FFFFFFF - token)


@jit()
def _listed(values, tokens, start, count, low, LIST_TILE: tl.constexpr) -> Any:
    """A tile of the list, and which of its entries have a key of at least `low`."""
    place = start + tl.arange(0, LIST_TILE)
    value_L = tl.load(values + place, mask=place < count, other=float("-inf"))
    token_L = tl.load(tokens + place, mask=place < count, other=0)
    return value_L, token_L, (place < count) & (_key(value_L, token_L) >= low)


@jit()
def _end(values, tokens, count, top, low, high, number, target, LIST_TILE: tl.constexpr, WEIGHTED: tl.constexpr) -> Any:
    """The least key of the shortest beginning of the order that holds `target` entries, or weight; and its length.
    At `low` on that is reached, with `number` entries; at `high` on there is none."""
    beyond = number * 0.0
    while (number - beyond > 1.0) & (high > low + 1):
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        number_L = tl.zeros((LIST_TILE,), dtype=tl.float32)
        measure_L = tl.zeros((LIST_TILE,), dtype=tl.float32)
        for start in range(0, count, LIST_TILE):
            value_L, _, chosen_L = _listed(values, tokens, start, count, middle, LIST_TILE)
            number_L += chosen_L.to(tl.float32)
            if WEIGHTED:
                measure_L += tl.where(chosen_L, tl.exp(value_L - top), 0.0)
        found = tl.sum(number_L, axis=0)
        measure = tl.sum(measure_L, axis=0) if WEIGHTED else found
        reached = measure >= target
        low, high = tl.where(reached, middle, low), tl.where(reached, high, middle)
        number, beyond = tl.where(reached, found, number), tl.where(reached, beyond, found)
    return low, number


@jit()
def _weight(values, tokens, count, top, low, LIST_TILE: tl.constexpr) -> Any:
    weight_L = tl.zeros((LIST_TILE,), dtype=tl.float32)
    for start in range(0, count, LIST_TILE):
        value_L, _, chosen_L = _listed(values, tokens, start, count, low, LIST_TILE)
        weight_L += tl.where(chosen_L, tl.exp(value_L - top), 0.0)
    return tl.sum(weight_L, axis=0)


@jit()
def _winner(values, tokens, count, low, seed, position, first, LIST_TILE: tl.constexpr) -> Any:
    """The token of the largest sum of value and noise; the first of equals, as the list is in the tokens' order."""
    best, winner = low.to(tl.float32) * 0.0 - float("inf"), first
    for start in range(0, count, LIST_TILE):
        value_L, token_L, chosen_L = _listed(values, tokens, start, count, low, LIST_TILE)
        word0_L, word1_L, word2_L, word3_L = philox_words(seed, position, token_L // 4)
        lane_L = token_L % 4
        word_L = tl.where(lane_L < 2, tl.where(lane_L == 0, word0_L, word1_L), tl.where(lane_L == 2, word2_L, word3_L))
        sum_L = tl.where(chosen_L, value_L + gumbel_noise(word_L), float("-inf"))
        largest = tl.max(sum_L, axis=0)
        token = tl.min(tl.where(sum_L == largest, token_L, 0x7FFFFFFF), axis=0)
        winner = tl.where(largest > best, token, winner)
        best = tl.maximum(best, largest)
    return winner
