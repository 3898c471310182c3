"""Philox 4x32-10, a counter-based generator: random bits as a pure function of (key, counter).

Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC'11. Counter-based means that a request's draws depend on
its seed, its position and the token alone, never on what else is in the batch; Triton's `tl.philox` is the same.
Words are uint32 held in int64 tensors.
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counters: tuple[torch.Tensor, ...], keys: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Four words for each counter of four words, under a key of two; tensors broadcast."""
    c0, c1, c2, c3 = counters
    k0, k1 = keys
    for _ in range(_ROUNDS):
        # The int64 product wraps modulo 2^64, which keeps all 64 bits of the unsigned product.
        high0, low0 = _split(c0 * _MULTIPLIERS[0])
        high1, low1 = _split(c2 * _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _split(product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (product >> 32) & _MASK, product & _MASK


def uniform(seeds: torch.Tensor, positions: torch.Tensor, width: int) -> torch.Tensor:
    """[L, width] float32 in (0, 1): column v of row l from counter (v // 4, position_l), key seed_l.

    seeds, positions: [L] int64. 23 bits and a half, so that neither 0 nor 1 can come out in float32.
    """
    groups = torch.arange(-(-width // 4), device=seeds.device)[None, :]
    words = torch.stack(_words(seeds[:, None], positions[:, None], groups), dim=-1).flatten(1)[:, :width]
    return _fraction(words)


def uniform_at(seed: torch.Tensor, position: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The columns `tokens` ([n] int64) of one row of `uniform`, without the others. seed, position: scalars."""
    words = torch.stack(_words(seed, position, tokens // 4), dim=-1)
    return _fraction(words.gather(-1, (tokens % 4)[:, None])[:, 0])


def _words(seeds: torch.Tensor, positions: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, ...]:
    counters = (groups, positions & _MASK, (positions >> 32) & _MASK, torch.zeros_like(groups))
    return philox(counters, (seeds & _MASK, (seeds >> 32) & _MASK))


def _fraction(words: torch.Tensor) -> torch.Tensor:
    return ((words >> 9).float() + 0.5) * 2.0**-23


def gumbel(uniforms: torch.Tensor) -> torch.Tensor:
    """Gumbel noise -log(-log(u)): added to logits, the largest sum is a draw from their softmax."""
    return -torch.log(-torch.log(uniforms))


MAX_GUMBEL = 16.7
"""Above the largest noise that `uniform` can give: its numbers are at most 1 - 2^-24."""
