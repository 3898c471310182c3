"""Which profile describes a device that a driver reports: by architecture, unit count, PCI id and memory.

Never by name: `DeviceReport.name` is for people ("MI300X VF", "H100 80GB HBM3" and clouds' own names all occur).
What a driver does not report lowers the certainty of a match ("near") and never prevents it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .reader import load, names
from .schema import Profile

MEMORY_TOLERANCE = 0.06


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What is known of one device. None is "not reported".

    `arch`: `sm_90`, `gfx942` (feature suffixes as in `gfx942:sramecc+:xnack-` are ignored), or the machine of a CPU
    (`x86_64`, `aarch64`). `units`: SMs, CUs or cores. `pci_device_id`: the model, as in `/sys/bus/pci/devices/*/device`
    (torch's property of that name is the *slot*). `memory_bytes`: the total that the driver reports. `flags`: of
    `/proc/cpuinfo`. `name` is for display and takes no part in matching.
    """

    vendor: str
    arch: str | None = None
    units: int | None = None
    pci_device_id: int | None = None
    memory_bytes: int | None = None
    name: str = ""
    flags: frozenset[str] | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """The profile and how sure it is. "near": the architecture is right and the numbers are a neighbour's."""

    profile: Profile | None
    kind: Literal["exact", "near", "none"]
    reason: str


def match(report: DeviceReport, profiles: Sequence[Profile] | None = None) -> Match:
    """The best profile for a reported device, out of `profiles` (those shipped, where not given)."""
    vendor = report.vendor.lower()
    pool = [load(name) for name in names() if name.startswith(f"{vendor}-")] if profiles is None else profiles
    arch = _bare(report.arch)
    candidates = [profile for profile in pool if profile.vendor == vendor and _may_be(profile, arch, report)]
    if not candidates:
        what = f"{vendor} {arch or 'device'}"
        return Match(None, "none", f"no profile for {what}: describe it in hwprofiles/{vendor}-<device>.yaml")
    return _match_cpu(report, candidates) if vendor == "cpu" else _match_card(report, candidates)


def _bare(arch: str | None) -> str | None:
    """`gfx942:sramecc+:xnack-` -> `gfx942`, `sm_90a` -> `sm_90`, `AMD64` -> `amd64`."""
    if arch is None:
        return None
    word = arch.split(":")[0].strip().lower()
    return word[:-1] if word.startswith("sm_") and word[-1:] in ("a", "f") else word


def _may_be(profile: Profile, arch: str | None, report: DeviceReport) -> bool:
    if arch is not None:
        return arch in profile.match.arch
    return report.pci_device_id is not None and report.pci_device_id in profile.match.pci_device_ids


def _match_card(report: DeviceReport, candidates: list[Profile]) -> Match:
    by_id = [profile for profile in candidates if report.pci_device_id in profile.match.pci_device_ids]
    pool = by_id or candidates
    best = min(pool, key=lambda profile: _distance(report, profile))
    doubts = _doubts(report, best, pool, identified=bool(by_id))
    if doubts:
        return Match(best, "near", "; ".join(doubts))
    evidence = [
        f"architecture {best.arch}",
        f"{report.units} {best.compute.unit}s" if report.units is not None else "",
        f"PCI id 0x{report.pci_device_id:04x}" if by_id and report.pci_device_id is not None else "",
        f"{report.memory_bytes / 2**30:.0f} GiB" if report.memory_bytes is not None else "",
    ]
    return Match(best, "exact", ", ".join(word for word in evidence if word))


def _distance(report: DeviceReport, profile: Profile) -> tuple[int, bool, float]:
    """Units first, then whether the memory suffices, then how far it is off (unknown: the smallest is the safe one)."""
    usable_gib = profile.memory.usable_gib or 0.0
    units = abs((profile.compute.units or 0) - report.units) if report.units is not None else 0
    if report.memory_bytes is None:
        return units, False, usable_gib
    memory_gib = report.memory_bytes / 2**30
    return units, memory_gib < (profile.match.min_memory_gib or 0.0), abs(memory_gib - usable_gib)


def _doubts(report: DeviceReport, best: Profile, pool: list[Profile], *, identified: bool) -> list[str]:
    doubts: list[str] = []
    if report.pci_device_id is not None and not identified:
        doubts.append(f"PCI id 0x{report.pci_device_id:04x} is unknown, taken as the nearest {best.arch}")
    if report.units is not None and report.units != best.compute.units:
        doubts.append(f"{report.units} {best.compute.unit}s reported, {best.compute.units} in the profile")
    memory_gib = report.memory_bytes / 2**30 if report.memory_bytes is not None else None
    usable_gib = best.memory.usable_gib
    if memory_gib is not None and usable_gib and abs(memory_gib / usable_gib - 1) > MEMORY_TOLERANCE:
        doubts.append(f"{memory_gib:.0f} GiB reported, {usable_gib:g} in the profile")
    if not identified and report.units is None:
        doubts.append("unit count not reported")
    if not identified and (rivals := _rivals(report, best, pool)):
        doubts.append(f"memory not reported, it may be {' or '.join(rivals)}")
    return doubts


def _rivals(report: DeviceReport, best: Profile, pool: list[Profile]) -> list[str]:
    """Other profiles that the report fits as well as the best."""
    if report.memory_bytes is not None:
        return []
    same = [other for other in pool if report.units is None or other.compute.units == best.compute.units]
    return [other.name for other in same if other is not best]


def _match_cpu(report: DeviceReport, candidates: list[Profile]) -> Match:
    """The most demanding class whose flags are all reported.

    A CPU that has none of them, or reports no flags, gets the least demanding class *without* the capabilities that it
    did not report: no kernel may run into an illegal instruction.
    """
    ranked = sorted(candidates, key=lambda profile: len(profile.match.flags))
    fitting = [profile for profile in ranked if profile.match.flags <= (report.flags or frozenset())]
    if fitting:
        best = fitting[-1]
        flags = ", ".join(sorted(best.match.flags)) or f"every {_bare(report.arch)} CPU"
        return Match(best, "exact", f"has {flags}")
    least = ranked[0]
    lacking = sorted(least.match.flags - (report.flags or frozenset()))
    kept = least.capabilities & (report.flags or frozenset())
    reason = "CPU flags not reported" if report.flags is None else f"lacks {', '.join(lacking)}"
    return Match(least.model_copy(update={"capabilities": kept}), "near", f"{reason}: vector kernels stay off")
