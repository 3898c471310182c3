"""What launches have in common: threads by a profile's lanes, sizes, and the options handed to Triton."""

from __future__ import annotations

from typing import Any

from ...hwprofiles.schema import Profile
from ...ops.contract import Launch
from ...ops.types import Reason
from . import overlap

VECTOR_BYTES = 16
"""Of the widest access that a thread makes at once, on either vendor."""


def options(num_warps: int, *, pdl: bool = False) -> dict[str, Any]:
    """A launch's options for Triton."""
    return {"num_warps": num_warps, "enable_fp_fusion": True, **overlap.options(pdl)}


def warps(num_threads: int, profile: Profile) -> int:
    """So many threads in warps (waves) of the profile's lanes: a power of two, at least one."""
    return max(1, num_threads // profile.lane_width)


def misfit(launch: Launch, from_zero: frozenset[str]) -> Reason | None:
    """Why Triton takes no such numbers, if it does not: blocks and warps are powers of two, and counts begin at one,
    those `from_zero` at zero."""
    for name, value in launch.items():
        if isinstance(value, int) and not isinstance(value, bool):
            least = 0 if name in from_zero else 1
            if value < least:
                return Reason("launch", f"takes {name} from {least} on, not {value}")
            if (name.startswith("block_") or name.endswith("warps")) and value & (value - 1):
                return Reason("launch", f"takes a power of two for {name}, not {value}")
    return None


def power(size: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (size - 1).bit_length()
