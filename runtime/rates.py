"""What a device moves and computes in a second, as far as the chunks of prompts follow from it (`schedule/pace.py`).

At determinism `run` two starts of one program cut their prompts alike, or a result's last bits would differ: the rates
are then the profile's, whatever this start would have measured. A profile that is filled from the device itself knows
how many units there are; for the rest of it the numbers below stand in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..hwprofiles.schema import READ_FROM_DEVICE, Profile
from ..ops.types import Determinism

_CLOCK_GHZ = 2.5
"""In place of a clock that was read from the device: some systems name the one running now."""
_GB_PER_S_PER_UNIT = 10.0
"""Memory bandwidth of a core where the profile has no number: a server's channels over its cores."""


class Rates(NamedTuple):
    bytes_per_s: float
    operations_per_s: float


def rates(profile: Profile, dtype: str, level: Determinism, measured_gb_per_s: Callable[[], float]) -> Rates:
    """measured_gb_per_s: measures the bandwidth; not asked at `run`."""
    if level is Determinism.RUN:
        steady = _steady(profile)
        gb_per_s = steady.memory.bandwidth_gb_per_s.best or _GB_PER_S_PER_UNIT * (steady.compute.units or 1)
    else:
        steady, gb_per_s = profile, measured_gb_per_s()
    return Rates(gb_per_s * 1e9, (steady.dense_tflops(dtype) or 1.0) * 1e12)


def _steady(profile: Profile) -> Profile:
    """The profile with no number that may differ at the next start."""
    was_read = profile.sources.get("compute.clock_ghz") == READ_FROM_DEVICE
    return profile.on_device(clock_ghz=_CLOCK_GHZ) if was_read else profile
