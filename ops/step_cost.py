"""What one step of a model must move and compute at least: the sites' own costs, added up in closed form.

A step is given as spans, one a request: (first, count) computes `count` tokens behind `first` that are stored, as in
`runtime.step.Step`. Every request yields one row of logits. The sum is a bound, not a forecast: caches that hold
weights between steps can beat it, everything else stays above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from . import discovery
from .contract import Op
from .types import Cost, Site, Work

Span = tuple[int, int]

_UNIT = 1024


def site_work(site: Site, spans: Sequence[Span]) -> Work:
    """The dynamic sizes of a site in a step. A window hides keys that lie further back than it reaches."""
    rows = len(spans) if site.rows == "logits" else sum(count for _, count in spans)
    return _work(site, spans, rows)


def _work(site: Site, spans: Sequence[Span], rows: int) -> Work:
    window = site.group.window if site.group else 0
    contexts = (min(first, window - 1) + count if window else first + count for first, count in spans)
    pairs = sum(_pairs(first, count, window) for first, count in spans)
    return Work(rows, len(spans), sum(contexts), pairs)


def _pairs(first: int, count: int, window: int) -> int:
    """(query, key) pairs of one causal span, at most `window` keys a query."""
    if window and first + 1 >= window:
        return count * window
    growing = min(count, window - first) if window else count
    return growing * first + growing * (growing + 1) // 2 + (count - growing) * window


def step_cost(sites: Iterable[Site], spans: Sequence[Span]) -> Cost:
    """Bytes that must move and operations of one step, over all layers; the dtype is the first site's."""
    ops = discovery.ops()
    costs = [(ops[site.op].cost(site, work), layers) for site in sites for work, layers in _works(site, spans)]
    num_bytes = sum(cost.num_bytes * layers for cost, layers in costs)
    num_operations = sum(cost.num_operations * layers for cost, layers in costs)
    return Cost(num_bytes, num_operations, costs[0][0].dtype)


def _works(site: Site, spans: Sequence[Span]) -> Iterator[tuple[Work, int]]:
    """A site's work in its layers, and in those that look at the rows of logits alone."""
    few = site.num_logit_layers if site.rows == "tokens" else 0
    yield site_work(site, spans), site.num_layers - few
    if few:
        yield _work(site, spans, len(spans)), few


def decode_bytes(sites: Iterable[Site], num_requests: int, context_tokens: float) -> int:
    """Bytes that a step moves which gives each request one token, at `context_tokens` of context on average."""
    first = max(int(context_tokens) - 1, 0)
    return step_cost(sites, [(first, 1)] * num_requests).num_bytes


def load_coefficients(sites: Iterable[Site]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bytes and operations of each site over all its layers, [sites, 6]: factors of 1, tokens, requests, keys read,
    (query, key) pairs, rows that yield logits. Windows are not seen: a bound from above for sites that have one."""
    ops = discovery.ops()
    rows = [_coefficients(ops[site.op], site) for site in sites]
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


def _coefficients(op: Op, site: Site) -> tuple[list[float], list[float]]:
    """By differences: a cost is linear in each of a step's sizes."""
    base = op.cost(site, Work(0, 0, 0, 0))
    units = [Work(_UNIT, 0, 0, 0), Work(0, _UNIT, 0, 0), Work(0, 0, _UNIT, 0), Work(0, 0, 0, _UNIT)]
    costs = [op.cost(site, unit) for unit in units]
    num_bytes = [float(base.num_bytes), *((cost.num_bytes - base.num_bytes) / _UNIT for cost in costs), 0.0]
    operations = [
        float(base.num_operations), *((cost.num_operations - base.num_operations) / _UNIT for cost in costs), 0.0
    ]  # fmt: skip
    of_logits = 1.0 if site.rows == "logits" else site.num_logit_layers / site.num_layers
    for each in (num_bytes, operations):
        each[1], each[5] = (1 - of_logits) * each[1], of_logits * each[1]
    return [site.num_layers * each for each in num_bytes], [site.num_layers * each for each in operations]
