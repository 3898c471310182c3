"""What a step yields, on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampled:
    """Of each row that yielded logits. ids: [L] int64; logprobs: [L] float32, NaN where the logits were; top_ids,
    top_logprobs: [L, k]."""

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int64]
    top_logprobs: NDArray[np.float32]

    @classmethod
    def none(cls) -> Sampled:
        """Of a step that yields nothing."""
        empty = np.empty((0, 0))
        return cls(np.empty(0, np.int64), np.empty(0, np.float32), empty.astype(np.int64), empty.astype(np.float32))
