"""embedding on the C library: rows out of the panels that a tied output projection shares.

Its priority is below that of kernels that read a plain table, whose rows are contiguous: an untied table stays plain.
"""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.layouts import PANEL16
from ...ops.types import Determinism, Weight
from .arguments import DTYPES, UnpackArgs
from .library import load
from .limits import FLOATS


def embedding_cpu(ids: torch.Tensor, weight: Weight) -> torch.Tensor:
    wanted, values = ids.long().contiguous(), weight.values
    num_ids, (num_rows, width) = wanted.shape[0], weight.shape
    out = values.new_empty((num_ids, width))
    load().unpack_rows(
        UnpackArgs(
            DTYPES[values.dtype], 0, num_rows, width, values.data_ptr(), wanted.data_ptr(), num_ids, out.data_ptr(),
            width,
        )
    )  # fmt: skip
    return out


KERNELS = (
    Kernel(
        "embedding_cpu", op="embedding", language="cpu", run=embedding_cpu, dtypes=FLOATS,
        determinism=Determinism.BATCH, priority=5, layout=PANEL16,
    ),
)  # fmt: skip
