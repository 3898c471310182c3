"""embedding by torch's library: gathers rows of a row-major table, ids of either width as they are."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...ops.contract import Kernel
from ...ops.types import Determinism, Weight


def embedding_torch(ids: torch.Tensor, weight: Weight) -> torch.Tensor:
    return functional.embedding(ids, weight.values)


KERNELS = (
    Kernel(
        "embedding_torch", op="embedding", language="torch", run=embedding_torch, determinism=Determinism.BATCH,
        priority=10, dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    ),
)  # fmt: skip
