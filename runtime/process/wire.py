"""What passes between an engine process and its clients: typed messages as msgpack, in frames of bounded length.

A frame is a length (4 bytes, little-endian) and one message. An array is a pair of its shape and its bytes. Both ends
check all of it: types, fields, sizes. A connection begins with the client's `Hello`; the engine answers with its own,
then with `Loading` until it is `Ready`. No pickle here, and nothing that a message names is imported or called.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

import msgspec
import numpy as np

from ..messages import Counters, Limits, Progress, Submission

PROTOCOL = 1
MAX_FRAME_BYTES = 64 << 20
MAX_ABORTED = 4096
_MAX_AXES = 4

Refusal = Literal["request", "queue_full", "draining"]
State = Literal["loading", "idle", "stepping"]


class ProtocolError(ValueError):
    """A frame that is no message, is too long, or comes where it must not: the end of its connection."""


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of what a frame holds; the class's name is its tag."""


class Hello(Message, frozen=True):
    """Once, and first. protocol: the same at both ends. fingerprint: of the engine; a client names the one that it
    insists on."""

    protocol: int = PROTOCOL
    fingerprint: str | None = None


class Submit(Message, frozen=True):
    """A request; the numbers of its completions are the connection's own, below 2^40. Answer: Accepted or Refused."""

    submission: Submission


class Abort(Message, frozen=True):
    """At most `MAX_ABORTED` numbers; those that do not run are passed over."""

    numbers: Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_ABORTED)]


class Drain(Message, frozen=True):
    """Take no new requests, finish what runs, end the process: what SIGTERM does."""


class Ping(Message, frozen=True):
    """Asks for a Pong, which comes even while a step is under way; several at once may get one."""


class AskCounters(Message, frozen=True):
    """Asks for Statistics, which come between two steps."""


class Loading(Message, frozen=True):
    """phase: what is being done. share: of the phase, 0 to 1, that is done. Repeated while nothing changes."""

    phase: str
    share: float


class Facts(msgspec.Struct, frozen=True):
    """What an engine is. folder: of the checkpoint, where its tokenizer lies."""

    folder: str
    fingerprint: str
    device: str
    profile: str
    dtype: str


class Ready(Message, frozen=True):
    """decisions: what was decided on the way to this engine, one line each, after one that sums up."""

    limits: Limits
    facts: Facts
    decisions: tuple[str, ...]


class Accepted(Message, frozen=True):
    """First numbers of requests that are queued now."""

    numbers: tuple[int, ...]


class Refused(Message, frozen=True):
    number: int
    message: str
    kind: Refusal


class Progressed(Message, frozen=True):
    progress: Progress


class Pong(Message, frozen=True):
    """The engine's heartbeat, and the answer to a Ping. state_s: for so long; `stepping`: since this step began."""

    state: State
    state_s: float
    draining: bool = False


class Statistics(Message, frozen=True):
    counters: Counters


class Failed(Message, frozen=True):
    """The last message of a connection: why it ends. exit_code: of the process that ends with it, 0 if it lives on."""

    message: str
    exit_code: int = 0


FromClient = Hello | Submit | Abort | Drain | Ping | AskCounters
FromEngine = Hello | Loading | Ready | Accepted | Refused | Progressed | Pong | Statistics | Failed
_M = TypeVar("_M")


def frame(message: Message) -> bytearray:
    """The message with its length before it. ProtocolError: longer than a frame may be."""
    buffer = bytearray(4)
    _ENCODER.encode_into(message, buffer, 4)
    size = len(buffer) - 4
    if size > MAX_FRAME_BYTES:
        raise ProtocolError(f"a message of {size:,} bytes: at most {MAX_FRAME_BYTES:,} are sent at once")
    struct.pack_into("<I", buffer, 0, size)
    return buffer


class Frames(Generic[_M]):
    """Bytes as they arrive, whole messages out. `kind` is the union of what may come."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[_M] = msgspec.msgpack.Decoder(kind, dec_hook=_array_from_wire)
        self._arrived = bytearray()
        self.num_bytes = 0
        """Of the message that was yielded last."""

    def feed(self, data: bytes) -> Iterator[_M]:
        """The messages that `data` completes. ProtocolError: something else, after which the stream is of no use."""
        self._arrived += data
        begin = 0
        try:
            while (end := self._end(begin)) is not None:
                self.num_bytes = end - begin
                yield self._message(memoryview(self._arrived)[begin + 4 : end].tobytes())
                begin = end
        finally:
            del self._arrived[:begin]

    def _end(self, begin: int) -> int | None:
        """Where the frame at `begin` ends, None while it is not whole."""
        if len(self._arrived) < begin + 4:
            return None
        (size,) = struct.unpack_from("<I", self._arrived, begin)
        if size > MAX_FRAME_BYTES:
            raise ProtocolError(f"a frame of {size:,} bytes: at most {MAX_FRAME_BYTES:,} are taken")
        return begin + 4 + size if len(self._arrived) >= begin + 4 + size else None

    def _message(self, body: bytes) -> _M:
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ProtocolError(f"a message that cannot be read: {' '.join(str(error).split())[:200]}") from None


def _array_to_wire(value: object) -> tuple[tuple[int, ...], memoryview]:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} has no place in a message")
    return value.shape, np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _array_from_wire(kind: Any, value: Any) -> np.ndarray[Any, Any]:
    """kind: NDArray[…] of the field. The array borrows the message's bytes and cannot be written to."""
    (dtype,) = get_args(get_args(kind)[1])
    shape, data = msgspec.convert(value, tuple[tuple[int, ...], bytes])
    if len(shape) > _MAX_AXES or any(size < 0 for size in shape):
        raise ValueError(f"an array of shape {shape[:_MAX_AXES]}: at most {_MAX_AXES} axes, none below 0")
    if prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_array_to_wire)
