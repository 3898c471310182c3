"""What a call and a step cost beside their work: measured on a model so small that its work takes no time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from ..planning.efficiency import Kind
from ..runtime.options import Options
from ..runtime.start import Decisions, decide
from ..runtime.step import Step
from .noted import Calls
from .shapes import Shape, write_config
from .steady import SPARE_TOKENS, Steady, built_at_random

_SMALL = Shape(256, 8, 4, 2, 64, 512, 512, 4096)
_HOST_BATCH, _REPLAYS = 16, 20


class SmallModel:
    """A model whose work takes no time: what is left is the cost of calls and steps."""

    def __init__(self, device: str | None, dtype: str) -> None:
        self._decided = decided_shape(_SMALL, lambda folder: Options(
            model=folder, device=device, dtype=dtype, max_model_len=64 + SPARE_TOKENS, max_num_seqs=_HOST_BATCH,
            kv_cache_tokens=_HOST_BATCH * 256, max_num_batched_tokens=64, prefix_caching=False, progress=False,
            prompt_graphs=False,  # what is called where no graph replays is measured on prompts
        ))  # fmt: skip
        self._steady = Steady(built_at_random(self._decided))
        self._calls = Calls(self._decided, self._steady.worker)

    def launch_us(self, kind: Kind) -> float:
        """Of one call of the kind, one request at one or two tokens."""
        count = np.array([2 if kind == "prompt_attention" else 1])
        calls = self._calls.noted(np.zeros(1, dtype=np.int64), count)[kind]
        return 1e6 * self._calls.seconds(calls, 0.05) / len(calls)

    def host_us(self) -> tuple[float, float, float]:
        """Of a step, of each request in it, and of each site where no graph replays: whole steps of the engine, less
        what its calls take where the host waits for them."""
        one, many = (1e6 * median(self._steady.decode(batch, 16).seconds) - self._waited_us(batch, 1)
                     for batch in (1, _HOST_BATCH))  # fmt: skip
        per_request = max((many - one) / (_HOST_BATCH - 1), 0.0)
        prompt = 1e6 * median(self._steady.prompt(2).seconds) - self._waited_us(1, 2)
        num_calls = sum(site.num_layers for site in self._calls.sites)
        return max(one - per_request, 0.0), per_request, max((prompt - one) / num_calls, 0.0)

    def step_us(self) -> float:
        """Of the device in a step beside the calls of its sites; where the host waits for them it is the host's."""
        backend, graphs = self._decided.backend, self._steady.worker.graphs
        if not backend.is_asynchronous or graphs is None:
            return 0.0
        calls_us = self._calls_us(1, 1)
        step = Step(spans=np.array([[0, 15, 1]]), logits=np.zeros((1, 2), dtype=np.int64))
        self._steady.worker.slots.lengths.zero_()

        def replayed() -> None:
            graphs.run(step.spans[:, 0], step.spans[:, 1])
            graphs.sampled(step)

        replayed()
        taken = [backend.elapsed_s(replayed, self._decided.device) for _ in range(_REPLAYS)]
        return max(1e6 * median(taken) - calls_us, 0.0)

    def _waited_us(self, batch: int, count: int) -> float:
        return 0.0 if self._decided.backend.is_asynchronous else self._calls_us(batch, count)

    def _calls_us(self, batch: int, count: int) -> float:
        noted = self._calls.noted(np.full(batch, 16 - count), np.full(batch, count))
        passes = {kind: len(calls) / _SMALL.num_layers if "attention" in kind else 1 for kind, calls in noted.items()}
        return sum(1e6 * self._calls.seconds(calls, 0.05) / passes[kind] for kind, calls in noted.items())


def decided_shape(shape: Shape, options: Callable[[str], Options]) -> Decisions:
    """What an engine for random weights of this shape is; options: from the folder of its config."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(shape, Path(folder))
        return decide(options(folder))
