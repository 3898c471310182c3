"""The contract of a backend: how to run on one vendor's devices. One file a vendor in this folder, or a plugin.

A file here is a backend if it defines `BACKEND`, an instance of `Backend`; elsewhere the entry point `ambidex.backends`
names one. The first group of methods must be written; the second carries defaults that hold on any device. A backend
touches its vendor's software only inside these methods: importing its file works everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ..hwprofiles.match import DeviceReport, Match, match

CONTRACT_VERSION = 1


class BackendError(ValueError):
    """A backend that cannot be used or a device that is not there; one line with cause and cure."""

    exit_code = 11


@dataclass(frozen=True)
class Memory:
    """`free_bytes` is what this process may still take."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Usage:
    """Memory of a device that this process has in use: now, and the most since it began or `forget_peak` was called."""

    now_bytes: int
    peak_bytes: int


class Backend:
    """How to run on the devices of one vendor.

    name: the file's name. contract_version: the version of this contract that the backend was written for, a literal
    (another one than `CONTRACT_VERSION` is refused). vendor: as in the profiles. is_asynchronous: whether a launch
    returns before the device has done it.
    """

    name: str
    contract_version: int
    vendor: str
    is_asynchronous: bool = False

    def missing(self) -> str | None:
        """Why this backend cannot run here, in one line with the cure; None if it can. Never raises."""
        raise NotImplementedError(f"{self.name}: write missing() -> str | None, why the backend cannot run here")

    def probe(self) -> tuple[DeviceReport, ...]:
        """What the driver reports of each device, by index; empty where `missing`. Telemetry may only add to it."""
        raise NotImplementedError(f"{self.name}: write probe() -> tuple[DeviceReport, ...], one a device")

    def device(self, report: DeviceReport) -> torch.device:
        """The torch device of a report."""
        raise NotImplementedError(f"{self.name}: write device(report) -> torch.device")

    def memory(self, device: torch.device) -> Memory:
        """Total and free bytes of the device now."""
        raise NotImplementedError(f"{self.name}: write memory(device) -> Memory(total_bytes, free_bytes)")

    def synchronize(self, device: torch.device) -> None:
        """Returns when everything launched on the device has finished."""
        raise NotImplementedError(f"{self.name}: write synchronize(device), which waits for the device")

    def read_bandwidth_gb_per_s(self, device: torch.device) -> float:
        """The bandwidth (10⁹ bytes a second) at which the device reads memory, measured in at most 0.3 s."""
        raise NotImplementedError(f"{self.name}: write read_bandwidth_gb_per_s(device) -> float")

    def allocate(self, num_bytes: int, device: torch.device) -> torch.Tensor:
        """Zeros, [num_bytes] uint8: one of the few large pieces that hold weights and state. Default: torch's."""
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    def usage(self, device: torch.device) -> Usage | None:
        """What this process has in use of the device's memory, whoever took it. Default: None, it is not measured."""
        return None

    def forget_peak(self, device: torch.device) -> None:
        """From here on `usage` counts its peak anew. Default: it goes on from the beginning."""

    def committed_bytes(self, piece: torch.Tensor) -> int | None:
        """How much of a piece from `allocate` takes memory now; None: not measured. Default: all of it."""
        return piece.numel() * piece.element_size()

    def profile(self, report: DeviceReport) -> Match:
        """The profile of a device. Default: `hwprofiles.match`."""
        return match(report)

    def clock(self) -> float:
        """Seconds of a clock that never goes back. Default: the host's; a virtual backend has its own."""
        return time.perf_counter()

    def elapsed_s(self, function: Callable[[], object], device: torch.device) -> float:
        """Seconds that the device takes for what `function` launches, by the most exact clock there is. Default: this
        backend's `clock`, with nothing under way before and after."""
        self.synchronize(device)
        begun = self.clock()
        function()
        self.synchronize(device)
        return self.clock() - begun

    def stream(self, device: torch.device) -> AbstractContextManager[object]:
        """A context in which launches go to a stream of their own. Default: the one stream that there is."""
        return nullcontext()

    def capture(self, function: Callable[[], None]) -> Callable[[], None] | str:
        """`function`, run once and recorded, to be replayed on the same tensors by calling the result; or why it is not
        recorded, in one line. What the function keeps of its results (and nothing else) stays where it lies. Default: a
        reason, nothing is recorded."""
        return f"backend {self.name} records nothing"

    @property
    def captures(self) -> bool:
        """Whether this backend has a `capture` of its own."""
        return type(self).capture is not Backend.capture

    def telemetry(self, device: torch.device) -> Mapping[str, float]:
        """What sensors say, units in the names (`power_w`, `temperature_c`, …). Default: nothing. Never raises."""
        return {}

    def collectives(self) -> str | None:
        """The `torch.distributed` backend for several such devices. Default: None, devices work alone."""
        return None
