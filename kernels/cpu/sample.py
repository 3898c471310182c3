"""sample on the C library: a row of logits is read once, and sorted only as far as a filter needs."""

from __future__ import annotations

import torch

from ...ops.contract import Kernel
from ...ops.sample import Sampling
from ...ops.types import Determinism
from .arguments import SampleArgs
from .levels import LEVELS, level_launch
from .library import load
from .operands import rows

_PENALTIES = ("tokens", "prompt_lengths", "lengths", "repetition", "presence", "frequency")
_DRAWS = ("temperature", "seeds", "positions")
_FILTERS = ("top_k", "top_p", "min_p")


def sample_cpu(logits: torch.Tensor, sampling: Sampling, *, level: str) -> tuple[torch.Tensor, ...]:
    logits, stride = rows(logits)
    (num_rows, width), num_top = logits.shape, sampling.num_logprobs
    ids, logprobs = logits.new_empty(num_rows, dtype=torch.int64), logits.new_empty(num_rows)
    top_ids = logits.new_empty((num_rows, num_top), dtype=torch.int64)
    top_logprobs = logits.new_empty((num_rows, num_top))
    asked = _asked(logits, sampling)
    load().sample(
        SampleArgs(
            LEVELS[level], num_top, num_rows, width, logits.data_ptr(), stride, ids.data_ptr(), logprobs.data_ptr(),
            top_ids.data_ptr(), top_logprobs.data_ptr(), tokens_stride=sampling.tokens.shape[1],
            **{name: tensor.data_ptr() for name, tensor in asked.items()},
        )
    )  # fmt: skip
    return ids, logprobs, top_ids, top_logprobs


def _asked(logits: torch.Tensor, sampling: Sampling) -> dict[str, torch.Tensor]:
    """What some row asks for, by its name in the struct; and where masked and penalized logits go."""
    names: tuple[str, ...] = _PENALTIES if sampling.penalized else ()
    if sampling.random:
        names += _DRAWS + (_FILTERS if sampling.filtered else ())
    asked = {name: getattr(sampling, name).contiguous() for name in names}
    if sampling.mask is not None:
        asked["mask"] = sampling.mask.contiguous()
    if sampling.mask is not None or sampling.penalized:
        asked["allowed"] = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return asked


KERNELS = (
    Kernel(
        "sample_cpu", op="sample", language="cpu", run=sample_cpu, dtypes=frozenset({torch.float32}),
        determinism=Determinism.BATCH, priority=100, launch=level_launch,
    ),
)  # fmt: skip
