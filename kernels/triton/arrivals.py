# pyright: basic
"""Programs of a launch that wait for one another without waiting: each stores its part and counts, and the last one to
count goes on with all parts.
"""

from __future__ import annotations

from functools import cache

import torch

from .language import jit, tl

NUM_COUNTERS = 1 << 16
"""Tiles of one launch that can wait for their parts."""


@jit()
def is_last(arrived_ptr, others):
    """Whether so many `others` have counted there before: then all that they stored can be read, past the first cache
    (`.cg`), and zero is left for the next launch."""
    _stored()
    tl.debug_barrier()  # all threads' parts are written before one of them counts
    last = tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") == others
    if last:
        tl.store(arrived_ptr, 0)
    return last


@jit()
def _stored():
    """Waits until this thread's stores have arrived. In PTX the barrier and the release of the thread that counts are
    enough, as they order what others stored. On AMD a barrier does not wait for stores, and a release only for its own
    wave's (LLVM's memory model of gfx942)."""
    if tl.target_info.is_hip():
        asm: tl.constexpr = "s_waitcnt vmcnt(0)\nv_mov_b32 $0, $1"
        tl.inline_asm_elementwise(asm, "=v,v,~{memory}", [0], dtype=tl.int32, is_pure=False, pack=1)


@cache
def counters(device: torch.device) -> torch.Tensor:
    """Zeros, which every launch leaves as zeros: kernels of one device that use them follow one another."""
    return torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device)
