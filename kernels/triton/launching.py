"""What launches have in common: threads by a profile's lanes, sizes, and the options handed to Triton."""

from __future__ import annotations

from typing import Any

from ...hwprofiles.schema import Profile
from . import overlap

VECTOR_BYTES = 16
"""Of the widest access that a thread makes at once, on either vendor."""


def options(num_warps: int, *, pdl: bool = False) -> dict[str, Any]:
    """A launch's options for Triton."""
    return {"num_warps": num_warps, "enable_fp_fusion": True, **overlap.options(pdl)}


def warps(num_threads: int, profile: Profile) -> int:
    """So many threads in warps (waves) of the profile's lanes: a power of two, at least one."""
    return max(1, num_threads // profile.lane_width)


def power(size: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (size - 1).bit_length()
