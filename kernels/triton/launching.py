"""What launches have in common: threads by a profile's lanes, and programmatic dependent launch.

With `pdl` a kernel may begin while the one before it in the stream still runs. It says at once that the next one may do
so (`gdc_launch_dependents`), and waits for the one before (`gdc_wait`) in front of its first access to anything that
another kernel of the step touches. Every program waits, those with nothing to do too: a kernel that has waited has
thereby waited for all before it.
"""

from __future__ import annotations

from typing import Any

from ...hwprofiles.schema import Profile
from .language import INTERPRETED

VECTOR_BYTES = 16
"""Of the widest access that a thread makes at once, on either vendor."""


def has_pdl(profile: Profile) -> bool:
    """Whether launches on the profile overlap their beginning with the end of the one before."""
    return "pdl" in profile.capabilities and not INTERPRETED


def options(num_warps: int, *, pdl: bool = False) -> dict[str, Any]:
    """A launch's options for Triton. `launch_pdl` only where it is on: AMD and the interpreter do not know it."""
    common = {"num_warps": num_warps, "enable_fp_fusion": True}
    return {**common, "launch_pdl": True} if pdl else common


def warps(num_threads: int, profile: Profile) -> int:
    """So many threads in warps (waves) of the profile's lanes: a power of two, at least one."""
    return max(1, num_threads // profile.lane_width)


def power(size: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (size - 1).bit_length()
