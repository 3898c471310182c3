"""Graphs of `torch.cuda`: what a function launches, captured on a stream of its own and replayed by one call.

The graphs of a device share one pool of memory, because they never run side by side: each may use what the others use
in between, and only what a function keeps of its results has a place of its own. Captured from the largest to the
smallest they need hardly more than the largest alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch


class Replay:
    """A captured graph: called, it runs again. num_bytes: by what its capture enlarged the pool that it shares."""

    def __init__(self, graph: torch.cuda.CUDAGraph, num_bytes: int) -> None:
        self._graph, self.num_bytes = graph, num_bytes

    def __call__(self) -> None:
        self._graph.replay()


class DeviceGraphs:
    """The stream and the pool of one device's graphs."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], None]) -> Replay | str:
        """A replay of `function`, or why there is none. It runs twice: to compile and to load what it needs, then to be
        captured. A read by the host shows in the first run, before it can break a capture."""
        current = torch.cuda.current_stream(self._device)
        try:
            self._warm_up(function, current)
            return self._captured(function)
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a broken capture raises an error of its own
            return f"the step cannot be captured: {(str(cause).splitlines() or [type(cause).__name__])[0]}"
        finally:
            torch.cuda.set_stream(current)  # a broken capture leaves torch on its stream

    def _warm_up(self, function: Callable[[], None], current: torch.cuda.Stream) -> None:
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), _host_reads_refused():
            function()
        current.wait_stream(self._stream)

    def _captured(self, function: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                before = torch.cuda.memory_reserved(self._device)
                function()
        except RuntimeError:
            self._abandon_pool()
            raise
        return Replay(graph, torch.cuda.memory_reserved(self._device) - before)

    def _abandon_pool(self) -> None:
        """A broken capture leaves its pool open: it is closed, and the next capture has another."""
        with suppress(RuntimeError):  # that it is closed already, since the capture ended in order
            torch._C._cuda_endAllocateToPool(self._device, self._pool)
            torch._C._cuda_releasePool(self._device, self._pool)
        self._pool = torch.cuda.graph_pool_handle()


@contextmanager
def _host_reads_refused() -> Iterator[None]:
    """Whatever makes the host wait for the device raises RuntimeError inside."""
    before = torch.cuda.get_sync_debug_mode()
    _set_sync_debug_mode(2)
    try:
        yield
    finally:
        _set_sync_debug_mode(before)


def _set_sync_debug_mode(mode: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype each time that it is set
        torch.cuda.set_sync_debug_mode(mode)
