"""Loads the C library of CPU kernels and gives its functions their types.

The contract of each function (shapes, units, alignment, errors) stands in `ambidex.h`; this file mirrors its structs
field by field. `load()` also hands the library the OpenMP runtime that torch uses, so that both share one pool of
threads; where torch uses none, one thread works and `Library.threads_reason` says why.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch

from .build import LIBRARY_NAME
from .openmp import find_parallel

INTERFACE_VERSION = 1


class LibraryMissing(RuntimeError):
    """The compiled library is not there or does not fit; the message is one line with cause and cure."""


class KernelError(ValueError):
    """A kernel refused its arguments; carries the name of the function and its status."""


class Level(enum.IntEnum):
    """The instructions that a call may use (`ambidex_level`)."""

    GENERIC = 0
    AVX2 = 1
    AVX512_BF16 = 2
    AMX = 3


class Status(enum.IntEnum):
    """What a function answers (`ambidex_status`)."""

    OK = 0
    BAD_LEVEL = -1
    BAD_DTYPE = -2
    BAD_SHAPE = -3
    BAD_POINTER = -4
    NO_MEMORY = -5


DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""The code of each dtype that the kernels know (`ambidex_dtype`)."""


class LinearArgs(ctypes.Structure):
    """`ambidex_linear_args`."""

    _fields_ = [
        ("level", c_int32),
        ("dtype", c_int32),
        ("out_dtype", c_int32),
        ("gated", c_int32),
        ("num_rows", c_int64),
        ("num_outputs", c_int64),
        ("num_inputs", c_int64),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("weight", c_void_p),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("residual", c_void_p),
        ("residual_stride", c_int64),
        ("bias", c_void_p),
        ("norm_weight", c_void_p),
        ("bias_dtype", c_int32),
        ("norm_dtype", c_int32),
        ("norm_eps", c_float),
        ("reserved", c_int32),
    ]


class NormArgs(ctypes.Structure):
    """`ambidex_norm_args`."""

    _fields_ = [
        ("level", c_int32),
        ("dtype", c_int32),
        ("num_rows", c_int64),
        ("num_inputs", c_int64),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("residual", c_void_p),
        ("residual_stride", c_int64),
        ("sum_out", c_void_p),
        ("sum_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("weight", c_void_p),
        ("weight_dtype", c_int32),
        ("eps", c_float),
    ]


class QkvArgs(ctypes.Structure):
    """`ambidex_qkv_args`."""

    _fields_ = [
        ("level", c_int32),
        ("dtype", c_int32),
        ("num_tokens", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_size", c_int64),
        ("rotary_size", c_int64),
        ("qkv", c_void_p),
        ("qkv_stride", c_int64),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("norm_dtype", c_int32),
        ("norm_eps", c_float),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("rotation_stride", c_int64),
        ("q", c_void_p),
        ("q_stride", c_int64),
        ("k_pages", c_void_p),
        ("v_pages", c_void_p),
        ("num_pages", c_int64),
        ("page_size", c_int64),
        ("page_stride", c_int64),
        ("slots", c_void_p),
    ]


class AttentionArgs(ctypes.Structure):
    """`ambidex_attention_args`."""

    _fields_ = [
        ("level", c_int32),
        ("dtype", c_int32),
        ("num_requests", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_size", c_int64),
        ("query_start", c_void_p),
        ("context_lengths", c_void_p),
        ("page_table", c_void_p),
        ("max_pages", c_int64),
        ("q", c_void_p),
        ("q_stride", c_int64),
        ("k_pages", c_void_p),
        ("v_pages", c_void_p),
        ("num_pages", c_int64),
        ("page_size", c_int64),
        ("page_stride", c_int64),
        ("out", c_void_p),
        ("out_stride", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int64),
    ]


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "interface_version": (c_int32, []),
    "cpu_level": (c_int32, []),
    "set_parallel": (None, [c_void_p, c_int32]),
    "num_threads": (c_int32, []),
    "release_scratch": (None, []),
    "read_bandwidth": (c_uint64, [c_int32, c_void_p, c_int64]),
    "advise_huge_pages": (c_int32, [c_void_p, c_int64]),
    "packed_bytes": (c_int64, [c_int64, c_int64, c_int32]),
    "pack": (c_int32, [c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64, c_int32]),
    "unpack_rows": (c_int32, [c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int32]),
    "linear": (c_int32, [POINTER(LinearArgs)]),
    "rms_norm": (c_int32, [POINTER(NormArgs)]),
    "qkv_rope_store": (c_int32, [POINTER(QkvArgs)]),
    "paged_attention": (c_int32, [POINTER(AttentionArgs)]),
    "argmax": (c_int32, [c_int32, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
}


@dataclass(frozen=True)
class Library:
    """The loaded library: one method a C function. Methods raise KernelError where C answers a negative status.

    Pointers are integers (`tensor.data_ptr()`), 0 for null; the caller keeps the tensors alive during the call. ctypes
    releases the interpreter's lock meanwhile.
    """

    path: Path
    cpu_level: Level
    """The best level of this CPU; a call may ask for it or for a lower one."""
    num_threads: int
    threads_reason: str
    """Where the threads come from, or why there is only one."""
    functions: ctypes.CDLL

    def linear(self, args: LinearArgs) -> None:
        if status := self.functions.ambidex_linear(args):
            raise _refusal("linear", status)

    def rms_norm(self, args: NormArgs) -> None:
        if status := self.functions.ambidex_rms_norm(args):
            raise _refusal("rms_norm", status)

    def qkv_rope_store(self, args: QkvArgs) -> None:
        if status := self.functions.ambidex_qkv_rope_store(args):
            raise _refusal("qkv_rope_store", status)

    def paged_attention(self, args: AttentionArgs) -> None:
        if status := self.functions.ambidex_paged_attention(args):
            raise _refusal("paged_attention", status)

    def argmax(self, level: int, x: int, x_stride: int, num_rows: int, num_columns: int, out: int) -> None:
        if status := self.functions.ambidex_argmax(level, x, x_stride, num_rows, num_columns, out):
            raise _refusal("argmax", status)

    def packed_bytes(self, num_outputs: int, num_inputs: int, dtype: int) -> int:
        size = int(self.functions.ambidex_packed_bytes(num_outputs, num_inputs, dtype))
        if size < 0:
            raise _refusal("packed_bytes", size)
        return size

    def pack(
        self, panels: int, rows: int, row_stride: int, row0: int, num_rows: int, num_inputs: int, dtype: int
    ) -> None:
        if status := self.functions.ambidex_pack(panels, rows, row_stride, row0, num_rows, num_inputs, dtype):
            raise _refusal("pack", status)

    def unpack_rows(
        self, out: int, out_stride: int, panels: int, outputs: int, inputs: int, ids: int, num_ids: int, dtype: int
    ) -> None:
        if status := self.functions.ambidex_unpack_rows(out, out_stride, panels, outputs, inputs, ids, num_ids, dtype):
            raise _refusal("unpack_rows", status)

    def read_bandwidth(self, level: int, buffer: int, num_bytes: int) -> int:
        """Reads the buffer once with all threads; the caller times it. Returns a checksum."""
        return int(self.functions.ambidex_read_bandwidth(level, buffer, num_bytes))

    def advise_huge_pages(self, buffer: int, num_bytes: int) -> bool:
        """Whether Linux took the advice to back the buffer by huge pages."""
        return int(self.functions.ambidex_advise_huge_pages(buffer, num_bytes)) == 0

    def set_num_threads(self, num_threads: int) -> None:
        """Uses this many of torch's threads from now on (1: the calling thread only)."""
        parallel, _ = find_parallel()
        self.functions.ambidex_set_parallel(parallel, num_threads)

    def release_scratch(self) -> None:
        """Frees the calling thread's scratch buffer."""
        self.functions.ambidex_release_scratch()


def _refusal(name: str, status: int) -> KernelError:
    return KernelError(f"ambidex_{name} refused its arguments: {Status(status).name}")


def library_path() -> Path:
    """Where the built library lies: beside this file, or where AMBIDEX_CPU_LIBRARY points."""
    if named := os.environ.get("AMBIDEX_CPU_LIBRARY"):
        return Path(named)
    return Path(__file__).resolve().parent / LIBRARY_NAME


def open_library(path: Path) -> Library:
    """Loads the library at `path`. Raises LibraryMissing where it is absent, foreign or of another version."""
    if not path.is_file():
        raise LibraryMissing(f"the CPU kernels are not built: {path} is missing; build them by `make build`")
    try:
        functions = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(functions, f"ambidex_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise LibraryMissing(f"the CPU kernels cannot be loaded: {error}; rebuild them by `make build`") from error
    if (version := functions.ambidex_interface_version()) != INTERFACE_VERSION:
        raise LibraryMissing(
            f"the CPU kernels are of interface {version}, {INTERFACE_VERSION} is needed; rebuild them by `make build`"
        )
    parallel, reason = find_parallel()
    functions.ambidex_set_parallel(parallel, torch.get_num_threads() if parallel else 1)
    return Library(
        path=path,
        cpu_level=Level(functions.ambidex_cpu_level()),
        num_threads=int(functions.ambidex_num_threads()),
        threads_reason=reason,
        functions=functions,
    )


@functools.lru_cache(maxsize=1)
def load() -> Library:
    """The library of this installation, loaded once a process. Raises LibraryMissing with a one-line reason."""
    return open_library(library_path())
