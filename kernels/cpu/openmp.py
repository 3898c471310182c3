"""Finds the OpenMP runtime whose threads torch uses, so that the C kernels work on the same ones.

Two pools on the same cores would spin against each other. torch ships its own libgomp; what counts is the copy that
this process has mapped, as /proc/self/maps tells.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import c_void_p
from pathlib import Path

import torch


def _openmp_of_torch() -> tuple[Path | None, str]:
    """The file of the libgomp that this process has mapped from torch's own folders, and the reason."""
    root = Path(torch.__file__).resolve().parent
    homes = (root / "lib", root.parent / "torch.libs")
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None, "one thread: /proc/self/maps cannot be read, so torch's OpenMP runtime is not known"
    mapped = list({Path(line.split(maxsplit=5)[5]) for line in lines if "libgomp" in line})
    if own := [path for path in mapped if path.parent in homes]:
        return own[0], f"torch's OpenMP runtime {own[0].name}"
    if len(mapped) == 1:
        return mapped[0], f"the process's only OpenMP runtime {mapped[0]}"
    if mapped:
        return None, "one thread: several libgomp are loaded and none is torch's own"
    return None, "one thread: torch uses no libgomp here"


@functools.lru_cache(maxsize=1)
def find_parallel() -> tuple[int | None, str]:
    """The address of GOMP_parallel in torch's runtime, or None; and the reason."""
    path, reason = _openmp_of_torch()
    if path is None:
        return None, reason
    try:
        runtime = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        return ctypes.cast(runtime.GOMP_parallel, c_void_p).value, reason
    except (OSError, AttributeError):
        return None, f"one thread: {path.name} offers no GOMP_parallel"
