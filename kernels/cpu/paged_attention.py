"""paged_attention on the C library: online softmax over blocks of 64 keys counted from key 0, so that a row's bits
depend on its own keys alone. Dao et al., FlashAttention, arXiv:2205.14135.
"""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.layouts import PAGES_PHSD
from ...ops.state import Attending, Pages
from ...ops.types import Determinism
from .arguments import DTYPES, AttentionArgs
from .levels import LEVELS, level_launch
from .library import load
from .limits import FLOATS, PAGE_SIZES, attention_reason
from .operands import heads, planes, rows


def paged_attention_cpu(
    q: torch.Tensor, pages: Pages, attending: Attending, *, scale: float, softcap: float = 0.0, level: str
) -> torch.Tensor:
    if attending.ancestors is not None:
        raise ValueError("paged_attention_cpu serves the causal rule: bind this site with its ancestor mask")
    q, q_stride = heads(q)
    k, v, page_stride = planes(pages)
    num_pages, num_kv_heads, page_size, size = k.shape
    num_tokens, num_heads, _ = q.shape
    tables, table_stride = rows(attending.page_tables)
    starts, lengths = attending.query_starts.contiguous(), attending.context_lengths.contiguous()
    num_requests = lengths.shape[0]
    out = q.new_empty((num_tokens, num_heads, size))
    load().paged_attention(
        AttentionArgs(
            LEVELS[level], DTYPES[q.dtype], num_requests, num_heads, num_kv_heads, size, num_tokens,
            starts.data_ptr(), lengths.data_ptr(), tables.data_ptr(), table_stride, q.data_ptr(), q_stride,
            k.data_ptr(), v.data_ptr(), num_pages, page_size, page_stride, out.data_ptr(), num_heads * size, scale,
            softcap, pages.group.window,
        )
    )  # fmt: skip
    return out


KERNELS = (
    Kernel(
        "paged_attention_cpu", op="paged_attention", language="cpu", run=paged_attention_cpu, dtypes=FLOATS,
        determinism=Determinism.BATCH, priority=100, page_layouts=(PAGES_PHSD,), page_sizes=PAGE_SIZES,
        refuses=attention_reason, launch=level_launch,
    ),
)  # fmt: skip
