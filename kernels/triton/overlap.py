# pyright: basic
"""A kernel that begins while the one before it ends: programmatic dependent launch, of NVIDIA from sm_90 on.

The next kernel of a stream is launched as soon as every program of this one has called `released`, or ended; what it
does before `joined` overlaps with this one's last programs, so it may touch constants only: weights, which it can
have fetched into the last-level cache meanwhile. `joined` returns when all that came before in the stream is done and
can be seen; every program calls it, or the kernel after the next could overtake. CUDA C++ Programming Guide,
"Programmatic Dependent Launch and Synchronization".

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
    """Lets the next kernel begin."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@jit()
def joined(PDL: tl.constexpr):
    """Waits for the kernels before."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@jit()
def fetched(start_ptr, stride, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr, NUM_WARPS: tl.constexpr):
    """Asks for the first ROW_BYTES of each of ROWS rows into the last-level cache, a piece a thread; does not wait."""
    PIECE: tl.constexpr = ROWS * ROW_BYTES // (NUM_WARPS * 32)
    byte = tl.arange(0, NUM_WARPS * 32).to(tl.int64) * PIECE
    address = start_ptr.to(tl.int64) + byte // ROW_BYTES * stride * 2 + byte % ROW_BYTES
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r", [address, tl.full(address.shape, PIECE, tl.int32)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
