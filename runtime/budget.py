"""How much of a device's memory an engine may take: an absolute size, or a share of what is free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from ..hwprofiles.schema import Profile
from .errors import ConfigError, OutOfMemory
from .fields import shown

GIB, MIB = 2**30, 2**20

_UNITS = {"gib": GIB, "mib": MIB, "gb": 10**9, "mb": 10**6}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?(GiB|MiB|GB|MB)?", re.IGNORECASE | re.ASCII)
_ACCELERATOR_SHARE, _HOST_SHARE = 0.92, 0.5


@dataclass(frozen=True)
class Budget:
    """num_bytes: what the engine may take. free_bytes: what the device had free then. source: what the first follows
    from, for people."""

    num_bytes: int
    free_bytes: int
    source: str


def parse_memory(given: object, name: str = "memory") -> int | float:
    """`12GiB`, `800 MB`: bytes, an int; `0.5`, 0.5, 1: a share of what is free, a float. ConfigError: neither."""
    found = _SIZE.fullmatch(given) if isinstance(given, str) else None
    number = Decimal(found[1]) if found else None
    if found and number and found[2]:
        return int(number * _UNITS[found[2].lower()])
    if number is None and isinstance(given, (int, float)) and not isinstance(given, bool) and 0 < given <= 1:
        number = Decimal(given)
    if number is None or not 0 < number <= 1:
        raise ConfigError(
            f"{name} is {shown(given)}: it is a size with its unit, as 12GiB, 800MiB, 12GB or 800MB, or a share of the "
            "free memory above 0 to 1, as 0.5"
        )
    return float(number)


def budget(memory: object, utilization: float | None, profile: Profile, free_bytes: int) -> Budget:
    """What the options `memory` and `gpu_memory_utilization`, of which at most one is given, allow.

    OutOfMemory: a size that is not free.
    """
    free = f"the {shown_bytes(free_bytes)} free"
    if memory is None and utilization is None:
        share = _ACCELERATOR_SHARE if profile.memory.kind == "hbm" else _HOST_SHARE
        return Budget(int(free_bytes * share), free_bytes, f"{share:.0%} of {free} (where --memory says nothing)")
    asked = parse_memory(memory) if memory is not None else float(utilization or 0)
    name = "--memory" if memory is not None else "--gpu-memory-utilization"
    if isinstance(asked, float):
        return Budget(int(free_bytes * asked), free_bytes, f"{asked:.4g} of {free} ({name})")
    if asked > free_bytes:
        raise OutOfMemory(
            f"--memory {memory} is {shown_bytes(asked - free_bytes)} more than {free}: end what else takes memory, or "
            f"give less, as a share of what is free (--memory 0.9)"
        )
    return Budget(asked, free_bytes, f"as asked for, of {free}")


def shown_bytes(num_bytes: int) -> str:
    """For people: GiB from one on, else MiB."""
    return f"{num_bytes / GIB:,.2f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:,.1f} MiB"


def size_option(num_bytes: int, most_bytes: int) -> str:
    """The shortest value for `--memory` of at least `num_bytes` and at most `most_bytes`: tenths of a GiB, else MiB."""
    tenths = -(-num_bytes * 10 // GIB)
    if num_bytes >= GIB and tenths * GIB <= most_bytes * 10:
        return f"{tenths // 10}.{tenths % 10}GiB"
    whole = -(-num_bytes // MIB)
    return f"{whole}MiB" if whole * MIB <= most_bytes else "1.0"
