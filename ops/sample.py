"""sample: the next token of each row of logits, and the log-probabilities asked for.

In order, per row l: log-probabilities of the raw logits are kept; tokens outside the mask are removed; penalties
(repetition r: z > 0 ? z/r : z·r over prompt and output, Keskar et al., arXiv:1909.05858; presence, frequency over the
output); temperature 0 takes the largest (first of equals); else z/temperature, then min-p (p ≥ min_p · p_max,
arXiv:2407.01082), top-k, top-p (the fewest tokens whose probability reaches it, Holtzman et al., arXiv:1904.09751), and
the draw: argmax_v z_v + g_v with Gumbel noise g from Philox under (seed, position, v): a function of the request's own
seed, position and logits.

logits: [L, V] float32; sampling: `Sampling`. Returns ids [L] int64, logprobs [L] float32 of the chosen ids,
top_ids [L, n] int64 and top_logprobs [L, n] float32 with n = sampling.num_logprobs. ValueError: shapes that disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .contract import Arguments, Case, Op, Signature
from .philox import gumbel, uniform
from .types import Cost, Site, Work
from .validation import expect_shape, random_tensor


@dataclass(eq=False)
class Sampling:
    """What L rows ask of the sampler: device tensors, one entry a row, and what the host knows of them.

    temperature, top_p, min_p, repetition, presence, frequency: [L] float32; top_k: [L] int64, 0 = off;
    seeds, positions: [L] int64, position counts the tokens before the one drawn.
    tokens: [L, C] int64, prompt then output; prompt_lengths, lengths: [L] int64 (read where penalized).
    mask: [L, ceil(V/32)] int32 or None: bit v%32 of word v//32 allows token v.
    random, filtered, penalized: whether any row draws, filters (top-k, top-p, min-p) or is penalized.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor
    tokens: torch.Tensor
    prompt_lengths: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor | None = None
    num_logprobs: int = 0
    random: bool = False
    filtered: bool = False
    penalized: bool = False


def _label(logits: torch.Tensor, sampling: Sampling) -> str:
    return "logits"


def _check(logits: torch.Tensor, sampling: Sampling) -> Signature:
    expect_shape("sample", "logits", logits, None, None)
    rows, vocabulary = logits.shape
    expect_shape("sample", "temperature", sampling.temperature, rows)
    if sampling.mask is not None:
        expect_shape("sample", "mask", sampling.mask, rows, -(-vocabulary // 32))
    wide = (rows, sampling.num_logprobs)
    outputs = ((rows,), torch.int64), ((rows,), torch.float32), (wide, torch.int64), (wide, torch.float32)
    return Signature({"V": vocabulary}, {"x": logits.dtype}, outputs)


def masked(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """-inf where the bit of a token is 0."""
    token = torch.arange(logits.shape[1], device=logits.device)
    allowed = (mask[:, token // 32] >> (token % 32).int()) & 1
    return logits.masked_fill(allowed == 0, -torch.inf)


def penalized(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Repetition, presence and frequency penalties, from the rows' own tokens."""
    place = torch.arange(sampling.tokens.shape[1], device=logits.device)[None, :]
    present = (place < sampling.lengths[:, None]).to(logits.dtype)
    produced = present * (place >= sampling.prompt_lengths[:, None])
    seen = torch.zeros_like(logits).scatter_add_(1, sampling.tokens, present)
    counts = torch.zeros_like(logits).scatter_add_(1, sampling.tokens, produced)
    factor = torch.where(seen > 0, sampling.repetition[:, None], 1.0)
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    return logits - sampling.frequency[:, None] * counts - sampling.presence[:, None] * (counts > 0)


def filtered(scaled: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """min-p, top-k and top-p on logits already divided by the temperature: what falls out becomes -inf."""
    least = scaled.max(dim=-1, keepdim=True).values + sampling.min_p[:, None].log()
    scaled = scaled.masked_fill(scaled < least, -torch.inf)
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scaled.shape[1], device=scaled.device)[None, :]
    limit = torch.where(sampling.top_k > 0, sampling.top_k, scaled.shape[1])[:, None]
    ordered = ordered.masked_fill(rank >= limit, -torch.inf)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    # At 1 it is off: rounding must not cut the tail where the sum reaches 1 early.
    reached = (before >= sampling.top_p[:, None]) & (sampling.top_p < 1.0)[:, None]
    ordered = ordered.masked_fill(reached & (rank > 0), -torch.inf)
    return torch.empty_like(scaled).scatter_(1, order, ordered)


def _draw(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    greedy = logits.argmax(-1)
    if not sampling.random:
        return greedy
    drawn = sampling.temperature > 0
    scaled = logits / torch.where(drawn, sampling.temperature, 1.0)[:, None]
    if sampling.filtered:
        scaled = filtered(scaled, sampling)
    noise = gumbel(uniform(sampling.seeds, sampling.positions, logits.shape[1]))
    return torch.where(drawn, (scaled + noise).argmax(-1), greedy)


def processed(raw: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What tokens are drawn from: the raw logits, masked and penalized where that was asked for."""
    allowed = raw if sampling.mask is None else masked(raw, sampling.mask)
    return penalized(allowed, sampling) if sampling.penalized else allowed


def with_logprobs(raw: torch.Tensor, ids: torch.Tensor, num_logprobs: int) -> tuple[torch.Tensor, ...]:
    """The op's results for the chosen ids."""
    # log_softmax sums each row in one order, whatever the number of rows and threads (logsumexp splits a lone row).
    logprobs = raw.log_softmax(-1)
    chosen = logprobs.gather(1, ids[:, None])[:, 0]
    if not num_logprobs:
        return ids, chosen, ids.new_empty((len(ids), 0)), chosen.new_empty((len(ids), 0))
    top = logprobs.topk(num_logprobs, dim=-1)
    return ids, chosen, top.indices, top.values


def _reference(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, ...]:
    raw = logits.float()
    return with_logprobs(raw, _draw(processed(raw, sampling), sampling), sampling.num_logprobs)


def _cost(site: Site, work: Work) -> Cost:
    elements = work.rows * site.dim("V")
    return Cost(elements * site.dtypes["x"].itemsize, 4 * elements, torch.float32)


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    rows, vocabulary, length = dims["L"], dims["V"], 12
    logits = 4 * random_tensor((rows, vocabulary), torch.float32, device, generator)
    index = torch.arange(rows, device=device)
    alternate = (index % 2).float()
    sampling = Sampling(
        temperature=alternate * 0.8,
        top_k=(index % 3) * 5,
        top_p=1.0 - 0.1 * alternate,
        min_p=0.02 * alternate,
        repetition=1.0 + 0.2 * alternate,
        presence=0.1 * alternate,
        frequency=0.1 * alternate,
        seeds=index * 0x9E3779B97F4A7C + 7,
        positions=index + length,
        tokens=torch.randint(0, vocabulary, (rows, length), generator=generator).to(device),
        prompt_lengths=torch.full((rows,), length // 2, device=device),
        lengths=torch.full((rows,), length, device=device),
        mask=torch.randint(-(2**31), 2**31, (rows, -(-vocabulary // 32)), generator=generator).int().to(device),
        num_logprobs=3,
        random=True,
        filtered=True,
        penalized=True,
    )
    return (logits, sampling), {}


CASES = (
    Case("llama-3.2-1b", {"L": 8, "V": 128256}, {"L": 3, "V": 200}),
    Case("odd", {"L": 5, "V": 1003}, {"L": 5, "V": 67}),
    Case("llama-3.1-8b-32", {"L": 32, "V": 128256}, {"L": 3, "V": 200}),
    Case("qwen3-8b", {"L": 8, "V": 151936}, {"L": 3, "V": 200}),
)


def _case_at(site: Site, rows: int) -> Mapping[str, Any]:
    return {"L": rows, "V": site.dim("V")}


OP = Op(
    "sample", _label, _check, _cost, _inputs, CASES, {torch.float32: 1e-5}, reference=_reference, case_at=_case_at,
)  # fmt: skip
