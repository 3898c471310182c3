"""Whether the kernels of this folder can run here: they need the compiled C library."""

from __future__ import annotations

import torch

from .library import LibraryMissing, load


def missing() -> str | None:
    """Why the language `cpu` cannot be used, in one line with the cure; None if it can."""
    try:
        load()
    except LibraryMissing as reason:
        return str(reason)
    return None


def describe() -> str:
    """What the library brings here, for people: the best instructions of this CPU, and its threads."""
    library = load()
    return f"instructions up to {library.cpu_level.name}, {library.num_threads} threads"


def read(buffer: torch.Tensor) -> None:
    """Reads the whole buffer once with all threads, as fast as this CPU can: timed, it tells the bandwidth."""
    library = load()
    library.read_bandwidth(library.cpu_level, buffer.data_ptr(), buffer.numel() * buffer.element_size())
