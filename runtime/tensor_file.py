"""A safetensors file read by ourselves, with every number of its header checked against the file.

Format: 8 bytes, the header's length n, little endian; n bytes of JSON, `{name: {dtype, shape, data_offsets}}` with
offsets from the header's end; then the tensors, without gaps (https://github.com/huggingface/safetensors#format).
Nothing is mapped: mapped pages count as resident memory, and a weight would then be held twice while it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import torch

from .errors import CheckpointCorrupt
from .fields import json_object, shown

MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 64
"""As many as torch has; the product of the sizes stays a small number."""
_AGAIN = "download it again"
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu, "U16": torch.uint16, "I16": torch.int16,
    "F16": torch.float16, "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `begin` counts bytes from the start of the file."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    num_bytes: int


def read_entries(path: Path) -> list[TensorEntry]:
    """The tensors of one file, in the order in which they lie. CheckpointCorrupt: a header that is not true."""
    try:
        num_bytes = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            header, start = _read_header(path, file, num_bytes)
    except OSError as failure:
        raise CheckpointCorrupt(f"{path} cannot be read: {failure.strerror}") from None
    entries = [_entry(path, name, given, start) for name, given in header.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry.begin, entry.num_bytes))
    _check_places(path, entries, start, num_bytes)
    return entries


def _read_header(path: Path, file: Any, num_bytes: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if num_bytes < 8 or length > num_bytes - 8:
        raise CheckpointCorrupt(
            f"{path} is truncated or no safetensors file: it has {num_bytes:,} bytes and says that its header has "
            f"{length:,}: {_AGAIN}"
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointCorrupt(f"{path}: a header of {length:,} bytes, more than the {MAX_HEADER_BYTES:,} allowed")
    return json_object(file.read(length), f"the header of {path}", CheckpointCorrupt), 8 + length


def _entry(path: Path, name: str, given: Any, start: int) -> TensorEntry:
    def corrupt(what: str) -> CheckpointCorrupt:
        return CheckpointCorrupt(f"{path}: tensor {shown(name)} {what}")

    if not isinstance(given, dict):
        raise corrupt(f"is described by {shown(given)}, it must be an object")
    dtype, shape, offsets = given.get("dtype"), given.get("shape"), given.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise corrupt(f"has dtype {shown(dtype)}; known are {', '.join(_DTYPES)}")
    if not _are_sizes(shape) or len(shape) > MAX_AXES:
        raise corrupt(f"has shape {shown(shape)}, it must be a list of at most {MAX_AXES} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise corrupt(f"has data_offsets {shown(offsets)}, they must be [begin, end]")
    needed, given_bytes = prod(shape) * _DTYPES[dtype].itemsize, offsets[1] - offsets[0]
    if needed != given_bytes:
        raise corrupt(f"is {dtype} {shown(shape)}, which takes {shown(needed)} bytes, but lies in {given_bytes:,}")
    return TensorEntry(name, path, _DTYPES[dtype], tuple(shape), start + offsets[0], given_bytes)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _check_places(path: Path, entries: list[TensorEntry], start: int, num_bytes: int) -> None:
    """The tensors cover the file from the header to the end, each byte once."""
    position, before = start, "the header"
    for entry in entries:
        if entry.begin + entry.num_bytes > num_bytes:
            raise CheckpointCorrupt(
                f"{path} is truncated: tensor {shown(entry.name)} ends at byte {entry.begin + entry.num_bytes:,}, the "
                f"file has {num_bytes:,}: {_AGAIN}"
            )
        if entry.begin != position:
            kind = "overlaps" if entry.begin < position else "leaves a gap after"
            raise CheckpointCorrupt(f"{path}: tensor {shown(entry.name)} {kind} {before}: it begins at {entry.begin:,}")
        position, before = entry.begin + entry.num_bytes, f"tensor {shown(entry.name)}"
    if position != num_bytes:
        raise CheckpointCorrupt(
            f"{path}: {num_bytes - position:,} bytes after the last tensor belong to none: {_AGAIN}"
        )


def read_rows(entry: TensorEntry, row0: int, out: torch.Tensor) -> None:
    """Rows `[row0, row0 + len(out))` of a tensor, read into the memory of `out` (CPU, contiguous, of its dtype)."""
    assert out.is_contiguous()
    assert (out.dtype, out.shape[1:]) == (entry.dtype, entry.shape[1:])
    assert 0 <= row0 <= row0 + out.shape[0] <= entry.shape[0]
    if out.numel() == 0:
        return
    row_bytes = entry.num_bytes // entry.shape[0]
    target = out.view(torch.uint8).numpy().data.cast("B")
    try:
        for num_bytes in _read_at(entry.file, entry.begin + row0 * row_bytes, target):
            if num_bytes == 0:
                raise CheckpointCorrupt(f"{entry.file} became shorter while {shown(entry.name)} was read")
    except OSError as failure:
        raise CheckpointCorrupt(f"{entry.file} cannot be read: {failure.strerror}") from None


def _read_at(path: Path, offset: int, target: memoryview) -> Iterator[int]:
    """Fills `target`; yields the bytes of each system call, 0 at the end of the file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        done = 0
        while done < len(target):
            num_bytes = os.preadv(descriptor, [target[done:]], offset + done)
            done += num_bytes
            yield num_bytes
    finally:
        os.close(descriptor)
