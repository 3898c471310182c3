"""A device that is a clock: work takes the time that is said of it, and nothing is computed.

What plans and simulates makes one of these for each device that it imagines, so that the engine above it runs as it
would on the metal. Time passes only where `advance` says so.
"""

from __future__ import annotations

import torch

from ..hwprofiles.match import DeviceReport, Match
from ..hwprofiles.schema import Profile
from .contract import Backend, BackendError, Memory

_GIB = 1 << 30


class VirtualBackend(Backend):
    """One imagined device of a profile, with a clock of its own that begins at `now_s`."""

    name = "virtual"
    contract_version = 1
    vendor = "virtual"

    def __init__(self, imagined: Profile | None = None, now_s: float = 0.0) -> None:
        self._imagined, self._now_s = imagined, now_s

    def missing(self) -> str | None:
        return "it is a clock and no device: `ambidex plan` and `ambidex simulate` run on it"

    def probe(self) -> tuple[DeviceReport, ...]:
        return ()

    def device(self, report: DeviceReport) -> torch.device:
        return torch.device("meta")

    def profile(self, report: DeviceReport) -> Match:
        imagined = self._profile()
        return Match(imagined, "exact", f"imagined as {imagined.name}")

    def memory(self, device: torch.device) -> Memory:
        """All that the profile calls usable: nothing else runs there."""
        usable_gib = self._profile().memory.usable_gib
        if usable_gib is None:
            raise BackendError(f"{self._profile().name} has its host's memory: only the host knows how much")
        return Memory(int(usable_gib * _GIB), int(usable_gib * _GIB))

    def synchronize(self, device: torch.device) -> None:
        """Nothing is under way: `advance` has passed the time of whatever was launched."""

    def read_bandwidth_gb_per_s(self, device: torch.device) -> float:
        bandwidth = self._profile().memory.bandwidth_gb_per_s.best
        if bandwidth is None:
            raise BackendError(f"{self._profile().name} states no bandwidth: only a measurement on it would tell")
        return bandwidth

    def clock(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Time passes: what the device was given takes so long."""
        if not seconds >= 0.0:
            raise BackendError(f"a clock cannot go on by {seconds} s: give 0 or more")
        self._now_s += seconds

    def idle_until(self, time_s: float) -> None:
        """Nothing happens until then; no effect where that is past."""
        self._now_s = max(self._now_s, time_s)

    def _profile(self) -> Profile:
        if self._imagined is None:
            raise BackendError("no device is imagined: give the virtual backend a profile")
        return self._imagined
