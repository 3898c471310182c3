"""Recordings of host work: replayed on changed inputs they give what the function gives, to the bit; memory is reused;
what a replay could not repeat is refused with a reason."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ambidex.ops.recording import Recording, note, record
from hypothesis import given, settings
from hypothesis import strategies as st


def recorded(function: Callable[[], Any]) -> Recording:
    recording = record(function)
    assert isinstance(recording, Recording), recording
    return recording


# Each takes two [4, 6] tensors and gives one.
STEPS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": lambda a, b: a + b,
    "strided": lambda a, b: (a.t() * 2).t() - b,
    "in_place": lambda a, b: a.clone().add_(b).relu_(),
    "written_view": lambda a, b: _with_row(a, b),
    "product": lambda a, b: (a @ b.t()) @ b,
    "reshaped": lambda a, b: (a.t().reshape(3, 8).sum(0)[:, None, None] * b.view(1, 4, 6)).mean(0),
    "gathered": lambda a, b: a[torch.tensor([3, 0, 0, 1])] + b[:, torch.arange(6).flip(0)],
    "several": lambda a, b: a.topk(6, dim=-1).values - b.sort(-1).values,
    "constant": lambda a, b: a + torch.from_numpy(np.arange(6.0, dtype=np.float32))[None] + b.new_zeros(4, 6),
    "masked": lambda a, b: torch.where(a > b, a, b).masked_fill(a < 0, 0.5),
}


def _with_row(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(a)
    out[1:] = b[1:]
    out[0].copy_(a[0])
    return out


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6), st.integers(0, 2**20))
def test_a_replay_gives_what_the_function_gives(names: list[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)

    def chain() -> torch.Tensor:
        out = x
        for name in names:
            out = STEPS[name](out, y)
        return out

    results: list[torch.Tensor] = []
    recording = recorded(lambda: results.append(chain()))
    for _ in range(2):
        x.normal_(generator=generator)
        y.normal_(generator=generator)
        recording()
        assert torch.equal(results[0], chain())


def double(source: int, target: int) -> int:
    """Stands for C code: it knows addresses alone."""
    read, written = (np.ctypeslib.as_array(_Floats.from_address(at)) for at in (source, target))
    written[:] = read * 2
    return 0


_Floats = ctypes.c_float * 64


def doubled(x: torch.Tensor, **merge: Any) -> torch.Tensor:
    out = x.new_empty(64)
    double(x.data_ptr(), out.data_ptr())
    note(double, x.data_ptr(), out.data_ptr(), **merge)
    return out


def test_noted_calls_find_their_tensors_and_dead_ones_give_way() -> None:
    x, results = torch.ones(64), []

    def layers() -> None:
        y = x
        for _ in range(20):
            y = doubled(y)
        results.append(y)

    recording = recorded(layers)
    assert len(recording) == 20
    assert recording.num_bytes == 2 * 64 * 4
    x.fill_(3)
    recording()
    assert results[0].tolist() == [3.0 * 2**20] * 64


def test_a_view_keeps_its_block() -> None:
    x, results = torch.arange(64.0), []

    def step() -> None:
        view = doubled(x)[8:]
        results.extend([view, doubled(x + 1)])

    recording = recorded(step)
    x.add_(1)
    recording()
    assert torch.equal(results[0], 2 * x[8:])
    assert torch.equal(results[1], 2 * (x + 1))


def test_calls_in_a_row_are_merged_in_order() -> None:
    x = torch.ones(64)

    def merge(calls: list[Any]) -> Any:
        return lambda *all_calls: sum(function(*arguments) for function, arguments in all_calls), tuple(calls)

    results: list[torch.Tensor] = []
    recording = recorded(
        lambda: results.append(doubled(doubled(doubled(x, merge=merge), merge=merge) + 1, merge=merge))
    )
    assert len(recording) == 3
    x.fill_(5)
    recording()
    assert results[0].tolist() == [42.0] * 64


def test_a_call_that_fails_in_a_replay_is_an_error() -> None:
    answers = [7]
    recording = recorded(lambda: note(answers.pop))
    with pytest.raises(RuntimeError, match="failed with 7"):
        recording()


def test_a_recording_sees_its_own_thread_alone() -> None:
    def step() -> None:
        other = threading.Thread(target=note, args=(print,))
        other.start()
        other.join()

    assert len(recorded(step)) == 0
    note(print)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.sum().item(), "reads a tensor on the host"),
        (lambda x: x.tolist(), "tolist reads a tensor on the host"),
        (lambda x: x.numpy(), "numpy reads a tensor on the host"),
        (lambda x: 1 if x[0] > 0 else 2, "reads a tensor on the host"),
        (lambda x: x.nonzero(), "depends on values"),
        (lambda x: x[x > 0], "depends on values"),
        (lambda x: torch.equal(x, x), "reads a tensor on the host"),
    ],
)
def test_what_decides_by_values_is_refused(function: Callable[[torch.Tensor], object], said: str) -> None:
    reason = record(lambda: function(torch.ones(3)))
    assert isinstance(reason, str)
    assert said in reason


def test_an_error_of_the_function_is_its_own() -> None:
    def fails() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        record(fails)
    note(print)
    assert len(recorded(lambda: None)) == 0


def test_recording_does_not_load_torchs_compiler() -> None:
    """Which takes 140 MiB of memory and a second, for nothing."""
    lines = [
        "import sys, torch",
        "from ambidex.ops.recording import record",
        "t = torch.zeros(4, 4)",
        "assert callable(record(lambda: torch.where(t + 1 > 0, t, -1)[0].add_(1)))",
        "assert 'torch._dynamo' not in sys.modules, 'torch._dynamo was loaded'",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
