"""sample on a CPU: the op's own result without sorting a vocabulary or drawing noise for all of it.

A row that draws looks at its largest logits first. Filters nearly always end among them; and as Gumbel noise is at most
MAX_GUMBEL, a token whose logit lies further below the best sum than that cannot win. Where the first look does not
decide, the whole row is done as the reference does it. Rows are worked one by one, so that batches do not matter.
"""

from __future__ import annotations

from typing import Any

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel
from ...ops.philox import MAX_GUMBEL, gumbel, uniform, uniform_at
from ...ops.sample import Sampling, filtered, processed, with_logprobs
from ...ops.types import Determinism, Reason, Site

_FIRST_LOOK = 1024


def sample_torch(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, ...]:
    raw = logits.float()
    allowed = processed(raw, sampling)
    ids = allowed.argmax(-1)
    if sampling.random:
        largest = allowed.gather(1, ids[:, None])[:, 0]
        draws = (sampling.temperature > 0) & ~largest.isnan()  # from what is no number nothing is drawn
        for row in draws.nonzero().flatten().tolist():
            ids[row] = _draw(allowed[row] / sampling.temperature[row], row, sampling)
    return with_logprobs(raw, ids, sampling.num_logprobs)


def _draw(scaled: torch.Tensor, row: int, sampling: Sampling) -> torch.Tensor:
    """The token drawn from one row of logits over temperature, [V]."""
    seed, position = sampling.seeds[row], sampling.positions[row]
    values, tokens = _largest(scaled)
    if not sampling.filtered:
        return _draw_from_all(scaled, values, tokens, seed, position)
    kept = _kept(scaled, values, row, sampling)
    if kept is None:
        left = filtered(scaled[None], _only(row, sampling))[0]
        tokens = (left > -torch.inf).nonzero().flatten()
        values = left[tokens]
    else:
        values, tokens = values[:kept], tokens[:kept]
    return _winner(values, tokens, seed, position)


def _largest(scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first look: values in falling order, equal ones in the order of their tokens."""
    tokens = scaled.topk(min(_FIRST_LOOK, scaled.shape[0]), sorted=False).indices.sort().values
    values, order = scaled[tokens].sort(descending=True, stable=True)
    return values, tokens[order]


def _kept(scaled: torch.Tensor, values: torch.Tensor, row: int, sampling: Sampling) -> int | None:
    """How many of the first look the filters keep; None if they reach beyond it (or into equals of its last)."""
    top_k, top_p, min_p = int(sampling.top_k[row]), sampling.top_p[row], sampling.min_p[row]
    least = values[0] + min_p.log()
    kept = int((values >= least).sum())
    if top_k > 0:
        kept = min(kept, top_k)
    whole = len(values) == len(scaled)
    decided = whole or bool(kept < len(values) and values[kept - 1] > values[-1])
    if float(top_p) < 1.0:
        weights = (values - values[0]).exp()
        total = weights[:kept].sum() if decided else (scaled - values[0])[scaled >= least].exp().sum()
        if not decided and top_k > 0:
            return None
        probability = weights[:kept] / total
        reached = ((probability.cumsum(0) - probability) >= top_p).nonzero()
        kept = min(kept, max(1, int(reached[0]))) if len(reached) else kept
        decided = whole or bool(kept < len(values) and values[kept - 1] > values[-1])
    return kept if decided else None


def _draw_from_all(
    scaled: torch.Tensor, values: torch.Tensor, tokens: torch.Tensor, seed: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """A draw without filters: only tokens whose logit can still reach the best sum of the first look get noise."""
    best = (values + gumbel(uniform_at(seed, position, tokens))).max()
    within = (scaled + MAX_GUMBEL >= best).nonzero().flatten()
    if 4 * len(within) > len(scaled):  # one call makes four tokens' words: beyond a quarter all at once is less work
        return (scaled + gumbel(uniform(seed[None], position[None], len(scaled))[0])).argmax()
    return _winner(scaled[within], within, seed, position)


def _winner(values: torch.Tensor, tokens: torch.Tensor, seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    sums = values + gumbel(uniform_at(seed, position, tokens))
    return tokens[sums == sums.max()].min()


def _only(row: int, sampling: Sampling) -> Sampling:
    one: dict[str, Any] = {
        name: value[row : row + 1] if isinstance(value, torch.Tensor) else value
        for name, value in vars(sampling).items()
    }
    return Sampling(**one)


def _refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    if profile.memory.kind == "dram":
        return None
    return Reason("backend", "reads its rows on the host; where that waits for the device the reference is faster")


KERNELS = (
    Kernel(
        "sample_torch", op="sample", language="torch", run=sample_torch, dtypes=frozenset({torch.float32}),
        determinism=Determinism.BATCH, priority=10, refuses=_refuses,
    ),
)  # fmt: skip
