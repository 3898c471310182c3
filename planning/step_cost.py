"""What one step of a model must move and compute at least: the sites' own costs, added up in closed form.

A step is given as spans, one a request: (first, count) computes `count` tokens behind `first` that are stored, as in
`runtime.step.Step`. Every request yields one row of logits. The sum is a bound, not a forecast: caches that hold
weights between steps can beat it, everything else stays above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..ops import discovery
from ..ops.types import Cost, Site, Work

Span = tuple[int, int]


def site_work(site: Site, spans: Sequence[Span]) -> Work:
    """The dynamic sizes of a site in a step. A window hides keys that lie further back than it reaches."""
    window = site.group.window if site.group else 0
    rows = len(spans) if site.rows == "logits" else sum(count for _, count in spans)
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
    costs = [(ops[site.op].cost(site, site_work(site, spans)), site.num_layers) for site in sites]
    num_bytes = sum(cost.num_bytes * layers for cost, layers in costs)
    num_operations = sum(cost.num_operations * layers for cost, layers in costs)
    return Cost(num_bytes, num_operations, costs[0][0].dtype)


def decode_bytes(sites: Iterable[Site], num_requests: int, context_tokens: float) -> int:
    """Bytes that a step moves which gives each request one token, at `context_tokens` of context on average."""
    first = max(int(context_tokens) - 1, 0)
    return step_cost(sites, [(first, 1)] * num_requests).num_bytes
