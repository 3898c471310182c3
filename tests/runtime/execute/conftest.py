"""A worker over a tiny random checkpoint of two state groups, as the engine's build makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ambidex.backends.contract import Backend
from ambidex.backends.cpu import CpuBackend
from ambidex.runtime.build import build
from ambidex.runtime.engine import Engine
from ambidex.runtime.options import Options
from ambidex.runtime.start import decide


class Rerunning(CpuBackend):
    """Records by remembering the function: a replay runs it again. Keeps whose functions were asked for and replayed.

    refusals: why those of a class are not recorded.
    """

    is_asynchronous = True

    def __init__(self, refusals: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.refusals = refusals or {}
        self.asked: list[str] = []
        self.replayed: list[str] = []

    def capture(self, function: Callable[[], None]) -> Callable[[], None] | str:  # type: ignore[override]
        name = function.__qualname__.split(".")[0]
        self.asked.append(name)
        if name in self.refusals:
            return self.refusals[name]
        function()

        def replay() -> None:
            self.replayed.append(name)
            with torch.inference_mode():
                function()

        return replay


@pytest.fixture
def rerunning() -> type[Rerunning]:
    return Rerunning


@pytest.fixture(scope="session")
def two_groups(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-groups")
    make_model("qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=1).save_pretrained(folder)
    return folder


@pytest.fixture
def make_engine(two_groups: Path) -> Callable[..., Engine]:
    """(backend, **options) -> an engine on the CPU."""

    def make(backend: Backend | None = None, **options: Any) -> Engine:
        chosen = {"max_model_len": 60, "max_num_seqs": 5, "determinism": "batch", "progress": False, **options}
        decided = decide(Options(model=str(two_groups), device="cpu", **chosen))
        return build(replace(decided, backend=backend or CpuBackend()))

    return make
