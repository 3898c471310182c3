"""NVIDIA GPUs through a torch built for CUDA. The PCI id and the sensors come from NVML where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import torch

from ..hwprofiles.match import DeviceReport
from .torch_gpu import TorchGpuBackend, pci_address


def report_from(properties: Any, pci_device_id: int | None, index: int = 0) -> DeviceReport:
    """A report from torch's device properties and the product's PCI id (torch's own field of that name is a slot)."""
    return DeviceReport(
        "nvidia",
        f"sm_{properties.major}{properties.minor}",
        properties.multi_processor_count,
        pci_device_id,
        properties.total_memory,
        properties.name,
        index=index,
    )


@cache
def _nvml() -> Any:
    """The module `pynvml` (package nvidia-ml-py), started once a process; None where it or the driver is missing."""
    try:
        library: Any = import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    return library


def _asked(library: Any, question: Callable[[], Any]) -> Any:
    """The answer, or None: a card in slices, or an old driver, answers some questions by an error."""
    try:
        return question()
    except library.NVMLError:
        return None


def _handle(library: Any, properties: Any) -> Any:
    """NVML's handle of a torch device: by its address, since the two count devices differently."""
    address = pci_address(properties)
    if address is None:
        return None
    return _asked(library, lambda: library.nvmlDeviceGetHandleByPciBusId(address.encode()))


def product_id(library: Any, handle: Any) -> int | None:
    """The upper half of NVML's `pciDeviceId`; the lower one is the vendor."""
    info = _asked(library, lambda: library.nvmlDeviceGetPciInfo(handle))
    return None if info is None else int(info.pciDeviceId) >> 16


def sensors(library: Any, handle: Any) -> Mapping[str, float]:
    """What NVML answers of power, temperature, clocks, load and memory."""
    memory = _asked(library, lambda: library.nvmlDeviceGetMemoryInfo(handle))
    load = _asked(library, lambda: library.nvmlDeviceGetUtilizationRates(handle))
    power_mw = _asked(library, lambda: library.nvmlDeviceGetPowerUsage(handle))
    limit_mw = _asked(library, lambda: library.nvmlDeviceGetEnforcedPowerLimit(handle))
    answers = {
        "power_w": None if power_mw is None else power_mw / 1000,
        "power_limit_w": None if limit_mw is None else limit_mw / 1000,
        "temperature_c": _asked(
            library, lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)
        ),
        "clock_mhz": _asked(library, lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM)),
        "memory_clock_mhz": _asked(library, lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM)),
        "busy_percent": None if load is None else load.gpu,
        "memory_used_bytes": None if memory is None else memory.used,
    }
    return {name: float(value) for name, value in answers.items() if value is not None}


class CudaBackend(TorchGpuBackend):
    name = "cuda"
    contract_version = 1
    vendor = "nvidia"
    toolkit = "CUDA"
    check_command = "nvidia-smi"
    visible_variable = "CUDA_VISIBLE_DEVICES"

    def built(self) -> bool:
        return torch.version.cuda is not None

    def report(self, index: int, properties: Any) -> DeviceReport:
        library = _nvml()
        handle = None if library is None else _handle(library, properties)
        return report_from(properties, None if handle is None else product_id(library, handle), index)

    def telemetry(self, device: torch.device) -> Mapping[str, float]:
        library = _nvml()
        handle = None if library is None else _handle(library, torch.cuda.get_device_properties(device))
        return {} if handle is None else sensors(library, handle)


BACKEND = CudaBackend()
