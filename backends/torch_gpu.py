"""What GPUs behind `torch.cuda` have in common: torch calls both vendors' devices `cuda:<index>`.

Which vendor a torch is built for decides the backend; telemetry only adds to what torch reports.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from ..hwprofiles.match import DeviceReport
from .bandwidth import read_gb_per_s
from .contract import Backend, Memory, Usage
from .torch_graphs import DeviceGraphs, Replay

_BUFFER_BYTES = 2 << 30


def pci_address(properties: Any) -> str | None:
    """`0000:1b:00.0` of a device: domain, bus and slot (torch calls the slot `pci_device_id`); None where not given."""
    bus, slot = getattr(properties, "pci_bus_id", None), getattr(properties, "pci_device_id", None)
    if bus is None or slot is None:
        return None
    return f"{getattr(properties, 'pci_domain_id', 0):04x}:{bus:02x}:{slot:02x}.0"


class TorchGpuBackend(Backend):
    """A backend over `torch.cuda`. A vendor's file adds how its torch is recognised and what its sensors say."""

    toolkit: str
    """What torch has to be built for, as people call it."""
    check_command: str
    visible_variable: str
    is_asynchronous = True

    def built(self) -> bool:
        """Whether this torch is built for the vendor."""
        raise NotImplementedError(f"{self.name}: write built() -> bool from torch.version")

    def report(self, index: int, properties: Any) -> DeviceReport:
        """The report of one device from torch's properties, completed by what telemetry knows."""
        raise NotImplementedError(f"{self.name}: write report(index, properties) -> DeviceReport")

    def missing(self) -> str | None:
        if not self.built():
            return f"torch {torch.__version__} is not built for {self.toolkit}: install a build that is (see README.md)"
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            num_devices, why = _num_devices()
        if num_devices:
            return None
        cause = why or next((_first_line(warning.message) for warning in heard), "the driver lists none")
        cure = f"`{self.check_command}` must list one that {self.visible_variable} does not hide"
        return f"torch sees no {self.toolkit} device ({cause}): {cure}"

    def probe(self) -> tuple[DeviceReport, ...]:
        if self.missing() is not None:
            return ()
        devices = range(torch.cuda.device_count())
        return tuple(self.report(index, torch.cuda.get_device_properties(index)) for index in devices)

    def device(self, report: DeviceReport) -> torch.device:
        return torch.device("cuda", report.index)

    def memory(self, device: torch.device) -> Memory:
        """What the driver has free, and what torch's allocator holds without using it."""
        free, total = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Memory(total, free + cached)

    def usage(self, device: torch.device) -> Usage | None:
        """Tensors of torch's allocator; what the driver and its libraries hold beside them is not seen."""
        return Usage(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))

    def forget_peak(self, device: torch.device) -> None:
        torch.cuda.reset_peak_memory_stats(device)

    def synchronize(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)

    def read_bandwidth_gb_per_s(self, device: torch.device) -> float:
        num_bytes = min(_BUFFER_BYTES, self.memory(device).free_bytes // 4)
        return read_gb_per_s(device, num_bytes, self.synchronize)

    def elapsed_s(self, function: Callable[[], object], device: torch.device) -> float:
        """By events of the current stream: a launch's way to the device is in it only where the device waits for it."""
        with torch.cuda.device(device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def capture(self, function: Callable[[], None]) -> Replay | str:
        """A graph on the current device, in the memory that all graphs of this backend and device share."""
        if (reason := self.missing()) is not None:
            return reason
        device = torch.cuda.current_device()
        if device not in self._graphs:
            self._graphs[device] = DeviceGraphs(device)
        return self._graphs[device].capture(function)

    @cached_property
    def _graphs(self) -> dict[int, DeviceGraphs]:
        return {}

    def collectives(self) -> str | None:
        return "nccl"


def _num_devices() -> tuple[int, str]:
    """How many devices torch can start, or none and why."""
    try:
        num_devices = torch.cuda.device_count()
        if num_devices:
            torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return 0, _first_line(error)
    return num_devices, ""


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
