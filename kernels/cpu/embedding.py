"""embedding for the CPU: rows out of the panels that a tied output projection shares, or out of a plain table.

The plain table is preferred where the weight belongs to no product: a row of it is contiguous.
"""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.layouts import PANEL16
from ...ops.types import Determinism, Weight
from .library import DTYPES, load
from .limits import FLOATS


def embedding_cpu(ids: torch.Tensor, weight: Weight) -> torch.Tensor:
    wanted, values = ids.long().contiguous(), weight.values
    num_ids, (num_rows, width) = wanted.shape[0], weight.shape
    out = values.new_empty((num_ids, width))
    load().unpack_rows(
        out.data_ptr(), width, values.data_ptr(), num_rows, width, wanted.data_ptr(), num_ids, DTYPES[values.dtype]
    )
    return out


def embedding_rows_cpu(ids: torch.Tensor, weight: Weight) -> torch.Tensor:
    return weight.values.index_select(0, ids)


KERNELS = (
    Kernel(
        "embedding_cpu", op="embedding", language="cpu", run=embedding_cpu, dtypes=FLOATS,
        determinism=Determinism.BATCH, priority=100, layout=PANEL16,
    ),
    Kernel(
        "embedding_rows_cpu", op="embedding", language="cpu", run=embedding_rows_cpu,
        dtypes=FLOATS | {torch.float16, torch.float64}, determinism=Determinism.BATCH, priority=110,
    ),
)  # fmt: skip
