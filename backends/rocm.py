"""AMD GPUs through a torch built for ROCm. The PCI id and the sensors come from Linux's sysfs.

Never from `amdsmi`: imported beside torch it can make the count of devices 0 (pytorch issue 186516).
The files: https://docs.kernel.org/gpu/amdgpu/driver-misc.html, https://docs.kernel.org/hwmon/sysfs-interface.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..hwprofiles.match import DeviceReport
from .torch_gpu import TorchGpuBackend, pci_address

_AMD = 0x1002
_HERTZ, _MICRO, _MILLI = 1e-6, 1e-6, 1e-3


def report_from(properties: Any, pci_device_id: int | None, index: int = 0) -> DeviceReport:
    """A report from torch's device properties and the product's PCI id; features after the architecture are dropped."""
    return DeviceReport(
        "amd",
        str(properties.gcnArchName).partition(":")[0],
        properties.multi_processor_count,
        pci_device_id,
        properties.total_memory,
        properties.name,
        index=index,
    )


def _number(path: Path) -> float | None:
    """The number in a file of sysfs (`0x74a1`, `61000`), or None: some sensors exist and cannot be read."""
    try:
        return float(int(path.read_text(encoding="ascii").strip(), 0))
    except (OSError, ValueError):
        return None


def card_folder(root: Path, address: str | None) -> Path | None:
    """The folder of sysfs of the card at a PCI address, where Linux has one."""
    folder = root / "sys/bus/pci/devices" / address if address else None
    return folder if folder is not None and folder.is_dir() else None


def product_id(root: Path, address: str | None) -> int | None:
    """The product's PCI id: of the card at the address; with no address, of all AMD cards if they are alike."""
    folder = card_folder(root, address)
    if folder is not None:
        number = _number(folder / "device")
        return None if number is None else int(number)
    cards = [card for card in root.glob("sys/class/drm/card*/device") if _number(card / "vendor") == _AMD]
    numbers = {_number(card / "device") for card in cards}
    only = numbers.pop() if len(numbers) == 1 else None
    return None if only is None else int(only)


def sensors(folder: Path) -> Mapping[str, float]:
    """What the card's files say of power, temperature, clocks, load and memory."""
    monitor = next(iter(sorted(folder.glob("hwmon/hwmon*"))), folder)
    power = [monitor / "power1_average", monitor / "power1_input"]
    answers = {
        "power_w": _scaled(next((path for path in power if path.exists()), power[0]), _MICRO),
        "power_limit_w": _scaled(monitor / "power1_cap", _MICRO),
        "temperature_c": _scaled(monitor / "temp1_input", _MILLI),
        "clock_mhz": _scaled(monitor / "freq1_input", _HERTZ),
        "memory_clock_mhz": _scaled(monitor / "freq2_input", _HERTZ),
        "busy_percent": _number(folder / "gpu_busy_percent"),
        "memory_used_bytes": _number(folder / "mem_info_vram_used"),
    }
    return {name: value for name, value in answers.items() if value is not None}


def _scaled(path: Path, unit: float) -> float | None:
    number = _number(path)
    return None if number is None else number * unit


class RocmBackend(TorchGpuBackend):
    """`root` is where /sys is looked for."""

    name = "rocm"
    contract_version = 1
    vendor = "amd"
    toolkit = "ROCm"
    check_command = "rocminfo"
    visible_variable = "HIP_VISIBLE_DEVICES"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def built(self) -> bool:
        return torch.version.hip is not None

    def report(self, index: int, properties: Any) -> DeviceReport:
        return report_from(properties, product_id(self._root, pci_address(properties)), index)

    def telemetry(self, device: torch.device) -> Mapping[str, float]:
        folder = card_folder(self._root, pci_address(torch.cuda.get_device_properties(device)))
        return {} if folder is None else sensors(folder)


BACKEND = RocmBackend()
