"""`ambidex devices`: what each backend finds here, and which profile describes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from . import options
from .table import fields, wrapped

if TYPE_CHECKING:
    from ..backends.choosing import Place

GIB = 2**30


def devices(as_object: options.AsJson = False) -> None:
    """List the devices, and the backends that are missing.

    Each device with its memory and the profile that describes it, each missing backend with the cure.
    """
    found = inventory()
    print(json.dumps(found) if as_object else shown(found))


def inventory() -> dict[str, Any]:
    """Devices, the best first, and for each backend without any the reason."""
    from ..backends.choosing import found, places

    listed = places()
    with_devices = {place.backend.name for place in listed}
    absent = {
        name: backend.missing() or "no device answers" for name, backend in found().items() if name not in with_devices
    }
    return {"devices": [_device(place) for place in listed], "missing": absent}


def _device(place: Place) -> dict[str, Any]:
    report, match = place.report, place.match
    device = place.backend.device(report)
    memory = place.backend.memory(device)
    return {
        "device": place.name,
        "name": report.name,
        "vendor": report.vendor,
        "arch": report.arch,
        "units": report.units,
        "profile": match.profile.name if match.profile else None,
        "match": match.kind,
        "reason": match.reason,
        "total_bytes": memory.total_bytes,
        "free_bytes": memory.free_bytes,
        "telemetry": dict(place.backend.telemetry(device)),
    }


def shown(found: dict[str, Any]) -> str:
    """The inventory as text: a block a device, a line a missing backend."""
    blocks = [_block(device) for device in found["devices"]]
    blocks += [wrapped(f"{name.ljust(8)}", f"missing: {reason}") for name, reason in found["missing"].items()]
    return "\n".join(blocks)


def _block(device: dict[str, Any]) -> str:
    profile = f"{device['profile']} ({device['match']}: {device['reason']})" if device["profile"] else device["reason"]
    memory = f"{device['free_bytes'] / GIB:.1f} GiB free of {device['total_bytes'] / GIB:.1f} GiB"
    head = f"{device['device'].ljust(8)}{device['name']}, {device['arch']}, {device['units']} units"
    lines = [("profile", profile), ("memory", memory)]
    if device["telemetry"]:
        lines.append(("sensors", ", ".join(f"{name} {value:g}" for name, value in device["telemetry"].items())))
    return f"{head}\n{fields(lines, indent=8)}"
