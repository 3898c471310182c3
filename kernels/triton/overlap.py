# pyright: basic
"""A kernel that begins while the one before it ends: programmatic dependent launch, of NVIDIA from sm_90 on.

A kernel's programs first do what needs no other kernel, then call `joined`, which returns when all that came before in
the stream is done and can be seen, then `released`: once every program has, or has ended, the next kernel is launched.
(`large_product` releases first: the kernel behind it may begin while the one before it still runs.)

What may stand before `joined`: reads of constants (weights), and of what was written three kernels ago or earlier (a
step's lengths and page tables, made before its first layer): of the kernels before, at most two are still under way.
Every program calls both, or a kernel could overtake. CUDA C++ Programming Guide, "Programmatic Dependent Launch
and Synchronization".

A launch parameter `pdl` says whether to; elsewhere (AMD, the interpreter) the functions are empty.
"""

from __future__ import annotations

from typing import Any

from ...hwprofiles.schema import Profile
from .language import INTERPRETED, jit, tl


def overlaps(profile: Profile) -> bool:
    """Whether kernels on this profile are launched dependently."""
    return "pdl" in profile.capabilities and not INTERPRETED


def options(pdl: bool) -> dict[str, Any]:
    """What a launch hands to Triton; other targets do not know the option."""
    return {"launch_pdl": True} if pdl else {}


@jit()
def released(PDL: tl.constexpr):
    """Lets the next kernel begin, after `joined`."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@jit()
def joined(PDL: tl.constexpr):
    """Waits for the kernels before."""
    if PDL:
        tl.extra.cuda.gdc_wait()
