"""What one step gives a model: device tensors, made by the worker from its slot table. No hidden context besides.

T tokens of the step, A position axes (1 for text), L rows that yield logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..ops.state import Attending, Pages

State = Mapping[str, Sequence[Pages]]
"""Pages of each state group, one entry a layer of that group."""


@dataclass(eq=False)
class Batch:
    """ids: [T] int64. positions: [A, T] int64. slots: by group, [T] int64 page slots to store to, -1 for none.
    attending: by group. logit_rows: [L] int64, rows whose hidden state yields logits; None: all, in order.
    embedding_rows, embedding_values: [E] int64 and [E, D]: rows that are given as embeddings instead of ids, or None.
    adapter_slots: [T] int64 or None: which adapter each token uses.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: Mapping[str, torch.Tensor]
    attending: Mapping[str, Attending]
    logit_rows: torch.Tensor | None
    embedding_rows: torch.Tensor | None = None
    embedding_values: torch.Tensor | None = None
    adapter_slots: torch.Tensor | None = None
