"""paged_attention by torch's scaled_dot_product_attention: each request's pages gathered, then one call a request.

The lengths are read on the host, so it cannot run under graph capture. Each request is a call of its own: its bits do
not depend on the others.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional

from ...hwprofiles.schema import Profile
from ...ops.contract import Kernel
from ...ops.paged_attention import first_visible, gathered, visible
from ...ops.state import Attending, Pages
from ...ops.types import Determinism, Reason, Site


def paged_attention_torch(
    q: torch.Tensor, pages: Pages, attending: Attending, *, scale: float, softcap: float = 0.0
) -> torch.Tensor:
    out = torch.zeros_like(q)
    spans = pairwise(attending.query_starts.tolist())
    for index, ((start, end), num_keys) in enumerate(zip(spans, attending.context_lengths.tolist(), strict=True)):
        if start < end:
            tree = None if attending.ancestors is None else attending.ancestors[start:end]
            out[start:end] = _attend(q[start:end], pages, attending.page_tables[index], num_keys, tree, scale)
    return out


def _attend(
    q: torch.Tensor, pages: Pages, table: torch.Tensor, num_keys: int, tree: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """One request: q [N, H, D] over the keys that some row sees."""
    num_queries, window = q.shape[0], pages.group.window
    first = first_visible(num_queries, num_keys, window)
    k, v = (tensor.transpose(0, 1)[None] for tensor in gathered(pages, table, first, num_keys, q.dtype))
    square = num_queries == num_keys and not window and tree is None
    seen = None
    if num_queries > 1 and not square:
        seen = visible(num_queries, first, num_keys, window, tree, q.device)
    y = functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k, v, attn_mask=seen, is_causal=square and num_queries > 1, scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return y[0].transpose(0, 1)


def _refuses(site: Site, profile: Profile, bucket: int) -> Reason | None:
    return Reason("shape", "has no soft cap") if site.dims["softcap"] else None


KERNELS = (
    Kernel(
        "paged_attention_torch", op="paged_attention", language="torch", run=paged_attention_torch,
        determinism=Determinism.BATCH, priority=10, refuses=_refuses,
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
