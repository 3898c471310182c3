"""The CPU as a device: one, whatever its sockets; cores, flags and memory as this process may use them.

Linux says it in /proc and /sys; elsewhere Python's own answers stand in, and the profile is then "near" at best.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch

from ..hwprofiles.match import DeviceReport, Match
from ..ops.recording import Recording, record
from .bandwidth import read_gb_per_s
from .cgroups import cpu_quota, memory_limits, text_of
from .contract import Backend, Memory, Usage

_MIB = 1 << 20
_PAGE, _HUGE_PAGE = os.sysconf("SC_PAGE_SIZE"), 2 << 20
_MADV_HUGEPAGE = 14
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES, _HEAP_BYTES = 1 << 30, 32 << 20
_MIN_BUFFER_MIB, _MAX_BUFFER_MIB = 64, 512
_CACHES = 16
"""Last-level caches that a buffer holds whose reading is to tell the memory's bandwidth: of four, a pass found so much
of the pass before it that it read 48 to 53 GB/s where memory gave 45."""


@dataclass(frozen=True)
class Cpuinfo:
    """/proc/cpuinfo: `cores` maps each processor's number to its core (hyper-threads share one)."""

    name: str
    flags: frozenset[str] | None
    cores: Mapping[int, tuple[str, str]]
    clock_ghz: float | None


def parse_cpuinfo(text: str) -> Cpuinfo:
    """Reads /proc/cpuinfo of x86 ("flags") or Arm ("Features"); an empty text knows nothing."""
    records = [dict(_field(line) for line in block.splitlines() if ":" in line) for block in text.split("\n\n")]
    processors = [record for record in records if record.get("processor", "").isdigit()]
    first = processors[0] if processors else {}
    listed = first.get("flags", first.get("Features"))
    clocks = [float(record["cpu MHz"]) for record in processors if "cpu MHz" in record]
    return Cpuinfo(
        name=first.get("model name", ""),
        flags=None if listed is None else frozenset(listed.split()),
        cores={int(record["processor"]): _core(record) for record in processors},
        clock_ghz=max(clocks) / 1000 if clocks else None,
    )


def _field(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def _core(record: Mapping[str, str]) -> tuple[str, str]:
    return record.get("physical id", "0"), record.get("core id", record["processor"])


def usable_cores(info: Cpuinfo, allowed: frozenset[int], quota: float | None) -> int:
    """Cores that this process may use: those of its affinity, hyper-threads counted once, at most the group's quota."""
    cores = len({core for number, core in info.cores.items() if number in allowed}) or len(allowed)
    return max(1, min(cores, ceil(quota) if quota is not None else cores))


def report_from(info: Cpuinfo, machine: str, num_cores: int, memory_bytes: int | None) -> DeviceReport:
    name = info.name or f"{machine} CPU"
    return DeviceReport("cpu", machine.lower(), num_cores, None, memory_bytes, name, info.flags)


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name (`MemTotal`, `MemAvailable`, `VmRSS`) from /proc/meminfo or /proc/self/status."""
    fields = (_field(line) for line in text.splitlines() if ":" in line)
    return {name: int(value.split()[0]) * 1024 for name, value in fields if value.endswith("kB")}


def host_memory(root: Path) -> Memory:
    """Memory of the machine, or of the control group where that allows less."""
    info = parse_meminfo(text_of(root / "proc/meminfo"))
    total = info.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bounds = [(total, info.get("MemAvailable", total)), *memory_limits(root)]
    return Memory(min(limit for limit, _ in bounds), min(left for _, left in bounds))


def _advise_huge_pages(memory: torch.Tensor) -> None:
    """madvise(2): a wish, not a demand; systems without it keep their small pages."""
    libc = ctypes.CDLL(None)
    if platform.system() == "Linux" and hasattr(libc, "madvise"):
        libc.madvise(ctypes.c_void_p(memory.data_ptr()), ctypes.c_size_t(memory.numel()), _MADV_HUGEPAGE)


def _keep_freed_memory() -> None:
    """mallopt(3) of glibc: what tensors up to 32 MiB (its bound) leave is kept for the next ones. By itself it goes
    back to the system at every layer of a long step and comes again page by page: 20,000 faults a prompt of 512
    tokens."""
    libc = ctypes.CDLL(None)
    if platform.libc_ver()[0] == "glibc":
        libc.mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _allowed_processors() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


class CpuBackend(Backend):
    """The CPU. `root` is where /proc and /sys are looked for."""

    name = "cpu"
    contract_version = 1
    vendor = "cpu"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def missing(self) -> str | None:
        return None

    def probe(self) -> tuple[DeviceReport, ...]:
        info = parse_cpuinfo(text_of(self._root / "proc/cpuinfo"))
        num_cores = usable_cores(info, _allowed_processors(), cpu_quota(self._root))
        return (report_from(info, platform.machine(), num_cores, host_memory(self._root).total_bytes),)

    def profile(self, report: DeviceReport) -> Match:
        """The class of CPU, filled with this one's cores, clock and memory: its peaks follow from them."""
        found = super().profile(report)
        if found.profile is None:
            return found
        usable_gib = report.memory_bytes / 2**30 if report.memory_bytes else None
        own = found.profile.on_device(units=report.units, usable_gib=usable_gib, clock_ghz=self.clock_ghz())
        return Match(own, found.kind, found.reason)

    def clock_ghz(self) -> float | None:
        """The highest clock that Linux names, else the one running now."""
        highest_khz = text_of(self._root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
        if highest_khz.isdigit():
            return int(highest_khz) / 1e6
        return parse_cpuinfo(text_of(self._root / "proc/cpuinfo")).clock_ghz

    def device(self, report: DeviceReport) -> torch.device:
        return torch.device("cpu")

    def memory(self, device: torch.device) -> Memory:
        return host_memory(self._root)

    def allocate(self, num_bytes: int, device: torch.device) -> torch.Tensor:
        """Zeros on huge pages where Linux grants them: begins at a multiple of their size, committed when touched.

        From numpy, which asks the system for zeros. torch.zeros writes them: all is committed, on small pages.
        """
        _keep_freed_memory()
        whole = torch.from_numpy(np.zeros(num_bytes + _HUGE_PAGE, dtype=np.uint8))
        start = -whole.data_ptr() % _HUGE_PAGE
        piece = whole[start : start + num_bytes]
        _advise_huge_pages(piece)
        return piece

    def usage(self, device: torch.device) -> Usage | None:
        """Resident memory of the process without what lies in files, the code of libraries above all, which grows with
        whatever is used first; the peak is told apart from it by what of files is resident now."""
        status = parse_meminfo(text_of(self._root / "proc/self/status"))
        if not {"VmRSS", "VmHWM", "RssFile"} <= set(status):
            return None
        return Usage(status["VmRSS"] - status["RssFile"], status["VmHWM"] - status["RssFile"])

    def forget_peak(self, device: torch.device) -> None:
        with suppress(OSError):  # https://docs.kernel.org/filesystems/proc.html: 5 resets the peak
            (self._root / "proc/self/clear_refs").write_text("5", encoding="ascii")

    def committed_bytes(self, piece: torch.Tensor) -> int | None:
        """mincore(2): pages that were touched."""
        libc = ctypes.CDLL(None)
        if platform.system() != "Linux" or not hasattr(libc, "mincore"):
            return None
        num_bytes = piece.numel() * piece.element_size()
        before = piece.data_ptr() % _PAGE
        pages = np.zeros(-(-(before + num_bytes) // _PAGE), dtype=np.uint8)
        start, length = ctypes.c_void_p(piece.data_ptr() - before), ctypes.c_size_t(len(pages) * _PAGE)
        if libc.mincore(start, length, ctypes.c_void_p(pages.ctypes.data)):
            return None
        return min(int((pages & 1).sum()) * _PAGE, num_bytes)

    def synchronize(self, device: torch.device) -> None:
        """Nothing to wait for: a call returns when it is done."""

    def read_bandwidth_gb_per_s(self, device: torch.device) -> float:
        buffer_mib = min(max(_CACHES * self._cache_mib(), _MIN_BUFFER_MIB), _MAX_BUFFER_MIB)
        return read_gb_per_s(device, buffer_mib * _MIB, self.synchronize)

    def _cache_mib(self) -> int:
        """The last-level cache that a core reaches; 0 where Linux does not say."""
        sizes = [text_of(self._root / f"sys/devices/system/cpu/cpu0/cache/index{i}/size").strip() for i in range(4)]
        return max((int(size[:-1]) // 1024 for size in sizes if size.endswith("K") and size[:-1].isdigit()), default=0)

    def capture(self, function: Callable[[], None]) -> Recording | str:
        """What the host's kernels and torch's operations did, as a list of calls (`ops/recording.py`)."""
        return record(function)

    def collectives(self) -> str | None:
        return "gloo"


BACKEND = CpuBackend()
