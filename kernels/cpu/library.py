"""Loads the C library of CPU kernels and gives its functions their types.

The contract of each function (shapes, units, alignment, errors) stands in `ambidex.h`, its structs are mirrored in
`arguments.py`. The library has threads of its own, as many as torch uses when it is loaded. Each call of a kernel is
told to the recording that may be under way (`ops/recording.py`); calls in a row are replayed by one C call.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
from ctypes import POINTER, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch

from ...ops import recording
from .arguments import AttentionArgs, Call, LinearArgs, NormArgs, QkvArgs, SampleArgs, UnpackArgs
from .build import LIBRARY_NAME

INTERFACE_VERSION = 3


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


class Function(enum.IntEnum):
    """What a recorded call runs (`ambidex_function`)."""

    LINEAR = 0
    RMS_NORM = 1
    QKV_ROPE_STORE = 2
    PAGED_ATTENTION = 3
    UNPACK_ROWS = 4
    SAMPLE = 5


class Status(enum.IntEnum):
    """What a function answers (`ambidex_status`)."""

    OK = 0
    BAD_LEVEL = -1
    BAD_DTYPE = -2
    BAD_SHAPE = -3
    BAD_POINTER = -4
    NO_MEMORY = -5


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "interface_version": (c_int32, []),
    "cpu_level": (c_int32, []),
    "set_num_threads": (None, [c_int32]),
    "num_threads": (c_int32, []),
    "release_scratch": (None, []),
    "read_bandwidth": (c_uint64, [c_int32, c_void_p, c_int64]),
    "advise_huge_pages": (c_int32, [c_void_p, c_int64]),
    "packed_bytes": (c_int64, [c_int64, c_int64, c_int32]),
    "pack": (c_int32, [c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64, c_int32]),
    "unpack_rows": (c_int32, [POINTER(UnpackArgs)]),
    "linear": (c_int32, [POINTER(LinearArgs)]),
    "rms_norm": (c_int32, [POINTER(NormArgs)]),
    "qkv_rope_store": (c_int32, [POINTER(QkvArgs)]),
    "paged_attention": (c_int32, [POINTER(AttentionArgs)]),
    "sample": (c_int32, [POINTER(SampleArgs)]),
    "run_calls": (c_int32, [POINTER(Call), c_int64]),
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
    functions: ctypes.CDLL

    def linear(self, args: LinearArgs) -> None:
        if status := self.functions.ambidex_linear(args):
            raise _refusal("linear", status)
        recording.note(self.functions.ambidex_linear, args, merge=self._merge)

    def rms_norm(self, args: NormArgs) -> None:
        if status := self.functions.ambidex_rms_norm(args):
            raise _refusal("rms_norm", status)
        recording.note(self.functions.ambidex_rms_norm, args, merge=self._merge)

    def qkv_rope_store(self, args: QkvArgs) -> None:
        if status := self.functions.ambidex_qkv_rope_store(args):
            raise _refusal("qkv_rope_store", status)
        recording.note(self.functions.ambidex_qkv_rope_store, args, merge=self._merge)

    def paged_attention(self, args: AttentionArgs) -> None:
        if status := self.functions.ambidex_paged_attention(args):
            raise _refusal("paged_attention", status)
        recording.note(self.functions.ambidex_paged_attention, args, merge=self._merge)

    def unpack_rows(self, args: UnpackArgs) -> None:
        if status := self.functions.ambidex_unpack_rows(args):
            raise _refusal("unpack_rows", status)
        recording.note(self.functions.ambidex_unpack_rows, args, merge=self._merge)

    def sample(self, args: SampleArgs) -> None:
        if status := self.functions.ambidex_sample(args):
            raise _refusal("sample", status)
        recording.note(self.functions.ambidex_sample, args, merge=self._merge)

    def _merge(self, calls: list[recording.Call]) -> recording.Call:
        """Noted calls, replayed by one."""
        structs = [arguments[0] for _, arguments in calls]
        codes = [Function[function.__name__.removeprefix("ambidex_").upper()] for function, _ in calls]
        entries = (Call(code, ctypes.addressof(args)) for code, args in zip(codes, structs, strict=True))
        return self._run_calls, ((Call * len(calls))(*entries), structs)

    def _run_calls(self, calls: ctypes.Array[Call], structs: list[ctypes.Structure]) -> int:
        """`structs`: what the calls point to, kept alive."""
        return int(self.functions.ambidex_run_calls(calls, len(calls)))

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

    def read_bandwidth(self, level: int, buffer: int, num_bytes: int) -> int:
        """Reads the buffer once with all threads; the caller times it. Returns a checksum."""
        return int(self.functions.ambidex_read_bandwidth(level, buffer, num_bytes))

    def advise_huge_pages(self, buffer: int, num_bytes: int) -> bool:
        """Whether Linux took the advice to back the buffer by huge pages."""
        return int(self.functions.ambidex_advise_huge_pages(buffer, num_bytes)) == 0

    def set_num_threads(self, num_threads: int) -> None:
        """Works on this many threads from now on (1: the calling thread only)."""
        self.functions.ambidex_set_num_threads(num_threads)

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
    functions.ambidex_set_num_threads(torch.get_num_threads())
    return Library(
        path=path,
        cpu_level=Level(functions.ambidex_cpu_level()),
        num_threads=int(functions.ambidex_num_threads()),
        functions=functions,
    )


@functools.lru_cache(maxsize=1)
def load() -> Library:
    """The library of this installation, loaded once a process. Raises LibraryMissing with a one-line reason."""
    return open_library(library_path())
