"""qkv_rope_store on the C library: each token's heads are split, normalised, turned and stored in one pass."""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.layouts import PAGES_PHSD
from ...ops.state import Pages
from ...ops.types import Determinism, Weight
from .arguments import DTYPES, QkvArgs
from .levels import LEVELS, level_launch
from .library import load
from .limits import FLOATS, PAGE_SIZES, qkv_reason
from .operands import planes, rows, vector

_FLOAT_BYTES = 4


def qkv_rope_store_cpu(
    qkv: torch.Tensor,
    rotation: torch.Tensor,
    pages: Pages,
    slots: torch.Tensor,
    q_norm: Weight | None = None,
    k_norm: Weight | None = None,
    *,
    num_heads: int,
    eps: float = 0.0,
    level: str,
) -> torch.Tensor:
    qkv, qkv_stride = rows(qkv)
    turns, turn_stride = rows(rotation.float())
    k, v, page_stride = planes(pages)
    num_pages, num_kv_heads, page_size, size = k.shape
    num_tokens, rotated = qkv.shape[0], turns.shape[1]
    where, cosines = slots.long().contiguous(), turns.data_ptr()
    q = qkv.new_empty((num_tokens, num_heads, size))
    q_norm_at, k_norm_at, norm_code = 0, 0, 0
    if q_norm is not None and k_norm is not None:
        q_scale, k_scale = vector(q_norm), vector(k_norm)
        q_norm_at, k_norm_at, norm_code = q_scale.data_ptr(), k_scale.data_ptr(), DTYPES[q_scale.dtype]
    load().qkv_rope_store(
        QkvArgs(
            LEVELS[level], DTYPES[qkv.dtype], num_tokens, num_heads, num_kv_heads, size, rotated, qkv.data_ptr(),
            qkv_stride, q_norm_at, k_norm_at, norm_code, eps, cosines, cosines + rotated // 2 * _FLOAT_BYTES,
            turn_stride, q.data_ptr(), num_heads * size, k.data_ptr(), v.data_ptr(), num_pages, page_size, page_stride,
            where.data_ptr(),
        )
    )  # fmt: skip
    return q


KERNELS = (
    Kernel(
        "qkv_rope_store_cpu", op="qkv_rope_store", language="cpu", run=qkv_rope_store_cpu, dtypes=FLOATS,
        determinism=Determinism.BATCH, priority=100, page_layouts=(PAGES_PHSD,), page_sizes=PAGE_SIZES,
        refuses=qkv_reason, launch=level_launch,
    ),
)  # fmt: skip
