"""The C kernels under a recording: a layer's calls become one, which gives on changed inputs what the calls give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ambidex.backends.cpu import CpuBackend
from ambidex.kernels.cpu import language
from ambidex.kernels.cpu.library import load
from ambidex.ops import discovery
from ambidex.ops.layouts import PANEL16, dense
from ambidex.ops.recording import Recording
from ambidex.ops.state import Attending, Pages
from ambidex.ops.types import Weight

pytestmark = pytest.mark.skipif(language.missing() is not None, reason=str(language.missing()))

KERNELS = {kernel.op: kernel.run for kernel in discovery.kernels().values() if kernel.language == "cpu"}
WIDTH, HEADS, SIZE, PAGE = 64, 4, 16, 8


def weight(*shape: int) -> Weight:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / 8
    return dense("w", values.bfloat16(), PANEL16)


class Layer:
    """Two requests of one token each, over static inputs."""

    def __init__(self) -> None:
        (_, self.pages, _), _ = discovery.ops()["paged_attention"].inputs(
            {"H": HEADS, "G": HEADS // 2, "D": SIZE, "page_size": PAGE, "queries": (1, 1), "contexts": (20, 30)},
            torch.bfloat16, torch.device("cpu"), torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert isinstance(self.pages, Pages)
        for plane in self.pages.planes.values():
            plane.uniform_()
        self.ids, self.slots = torch.tensor([3, 7]), torch.tensor([17, 3])
        self.lengths, self.rotation = torch.tensor([12, 9], dtype=torch.int32), torch.rand(2, SIZE)
        self.table = torch.tensor([[2, 1, 0], [0, 3, 1]], dtype=torch.int32)
        self.embedding, self.norm = weight(40, WIDTH), dense("norm", torch.rand(WIDTH).bfloat16())
        self.qkv, self.o = weight((HEADS + 4) * SIZE, WIDTH), weight(WIDTH, HEADS * SIZE)
        self.gate_up, self.down = weight(96, WIDTH), weight(WIDTH, 48)

    def __call__(self) -> torch.Tensor:
        level = {"level": load().cpu_level.name.lower()}
        starts = torch.arange(3, dtype=torch.int32)
        x = KERNELS["embedding"](self.ids, self.embedding)
        qkv = KERNELS["norm_linear"](x, self.norm, self.qkv, eps=1e-5, **level)
        q = KERNELS["qkv_rope_store"](qkv, self.rotation, self.pages, self.slots, num_heads=HEADS, **level)
        attending = Attending(starts, self.lengths, self.table, 1)
        attended = KERNELS["paged_attention"](q, self.pages, attending, scale=0.25, **level).flatten(1)
        x = KERNELS["linear_add"](attended, self.o, x, **level)
        x = KERNELS["linear_add"](KERNELS["gated_linear"](x, self.gate_up, self.norm, **level), self.down, x, **level)
        x, total = KERNELS["add_rms_norm"](x, x, self.norm, eps=1e-5, **level)
        return torch.stack([KERNELS["rms_norm"](x, self.norm, eps=1e-5, **level), total])


def captured(step: Callable[[], None]) -> Recording:
    recording = CpuBackend().capture(step)
    assert isinstance(recording, Recording), recording
    return recording


def test_a_recorded_layer_is_one_call_between_torchs_and_gives_the_same_bits() -> None:
    layer, results = Layer(), list[torch.Tensor]()
    recording = captured(lambda: results.append(layer()))
    assert len(recording) == 3, "arange, the kernels, stack"
    before = results[0].clone()
    layer.ids.copy_(torch.tensor([30, 1]))
    layer.slots.copy_(torch.tensor([-1, 4]))
    layer.lengths.copy_(torch.tensor([20, 24]))
    layer.rotation.uniform_()
    recording()
    assert not torch.equal(results[0], before)
    assert torch.equal(results[0], layer())


def test_arguments_that_have_become_bad_are_an_error() -> None:
    layer = Layer()
    recording = captured(lambda: [layer()].clear())
    layer.lengths[0] = 100
    with pytest.raises(RuntimeError, match="failed with -3"):
        recording()
