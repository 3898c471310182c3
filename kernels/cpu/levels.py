"""Which instructions a call may use: a launch parameter of every kernel of this folder, derived from the profile.

A profile of another machine gets the best level that its capabilities allow. The profile of this machine (its numbers
were read from the device) gets no more than the compiled library can do here, so that the manifest says what will run.
"""

from __future__ import annotations

from functools import cache

import torch

from ...hwprofiles.schema import Profile
from ...ops.contract import Launch
from ...ops.types import Site
from .library import Level, LibraryMissing, load

LEVELS = {level.name.lower(): int(level) for level in Level}
"""The code of each level by the name that a manifest prints."""

_NEEDS = {
    Level.AVX2: frozenset({"avx2", "f16c", "fma"}),
    Level.AVX512_BF16: frozenset({"avx512_bf16", "avx512bw", "avx512dq", "avx512f", "avx512vl"}),
    Level.AMX: frozenset({"amx_bf16", "amx_tile"}),
}


def level_of(capabilities: frozenset[str]) -> Level:
    """The best level whose instructions, and those of every level below, are among the capabilities."""
    best = Level.GENERIC
    for level, needs in _NEEDS.items():
        if not needs <= capabilities:
            break
        best = level
    return best


@cache
def _best_here() -> Level:
    try:
        return load().cpu_level
    except LibraryMissing:
        return Level.AMX


def widened_row_bytes(site: Site, launch: Launch) -> int:
    """What a product's own copy of a row takes beyond x's: values that the level does not multiply in 16 bits are
    widened."""
    x, level = site.dtypes["x"], LEVELS[str(launch["level"])]
    multiplies = x == torch.float32 or (x == torch.bfloat16 and level >= Level.AVX512_BF16)
    return 0 if multiplies else site.dim("K") * (torch.float32.itemsize - x.itemsize)


def level_launch(site: Site, profile: Profile, bucket: int) -> Launch:
    """`{"level": name}` for a kernel's `launch`."""
    level = level_of(profile.capabilities)
    if profile.is_read_from_device:
        level = min(level, _best_here())
    return {"level": level.name.lower()}
