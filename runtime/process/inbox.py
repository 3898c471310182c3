"""What clients have sent and the engine's loop has not taken yet: bounded for each of them, taken in turn.

So a client that sends more than the engine takes waits for itself alone, and costs a bounded memory. Two threads put,
one takes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from threading import Lock

from .wire import FromClient, Submit

MAX_MESSAGES = 8192
"""Of a client's that are no requests; so many requests as well, or as many as the engine lets wait, if that is more."""
MAX_BYTES, MAX_TOTAL_BYTES = 256 << 20, 1 << 30
"""Of one client, of all of them. A message for which nothing else waits is always taken."""


@dataclass
class _Waiting:
    """Of one client, in the order in which they came; None is its end."""

    messages: deque[tuple[FromClient | None, int]] = field(default_factory=deque[tuple[FromClient | None, int]])
    num_bytes: int = 0
    num_requests: int = 0


class Inbox:
    """max_requests: of one client that may wait here."""

    def __init__(self) -> None:
        self.max_requests = MAX_MESSAGES
        self._lock = Lock()
        self._of: dict[int, _Waiting] = {}
        self._turns: deque[int] = deque()
        self._num_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    def put(self, serial: int, message: FromClient, num_bytes: int) -> str | None:
        """Takes in a message; where there is no room for it, says why."""
        with self._lock:
            waiting = self._of.get(serial, _Waiting())
            full = self._full(waiting, num_bytes, isinstance(message, Submit))
            if full is None:
                self._add(serial, waiting, message, num_bytes)
            return full

    def leave(self, serial: int) -> None:
        """The client is gone: nothing of it is to be taken any more but this."""
        with self._lock:
            if serial in self._of:
                self._num_bytes -= self._of[serial].num_bytes
            else:
                self._turns.append(serial)
            self._of[serial] = _Waiting(deque([(None, 0)]))

    def take(self) -> tuple[int, FromClient | None]:
        """The next message of the client whose turn it is, None at the client's end. IndexError: nothing waits."""
        with self._lock:
            serial = self._turns.popleft()
            waiting = self._of[serial]
            message, num_bytes = waiting.messages.popleft()
            waiting.num_bytes -= num_bytes
            self._num_bytes -= num_bytes
            waiting.num_requests -= isinstance(message, Submit)
            if waiting.messages:
                self._turns.append(serial)
            else:
                del self._of[serial]
            return serial, message

    def _add(self, serial: int, waiting: _Waiting, message: FromClient, num_bytes: int) -> None:
        if serial not in self._of:
            self._of[serial] = waiting
            self._turns.append(serial)
        waiting.messages.append((message, num_bytes))
        waiting.num_bytes += num_bytes
        waiting.num_requests += isinstance(message, Submit)
        self._num_bytes += num_bytes

    def _full(self, waiting: _Waiting, num_bytes: int, is_request: bool) -> str | None:
        if not waiting.messages:
            return None
        count, most = waiting.num_requests, self.max_requests
        what = "requests"
        if not is_request:
            count, most, what = len(waiting.messages) - count, MAX_MESSAGES, "messages"
        if count >= most:
            return f"{count:,} {what} of this client are not taken yet: send fewer at once"
        if waiting.num_bytes + num_bytes > MAX_BYTES or self._num_bytes + num_bytes > MAX_TOTAL_BYTES:
            return f"{waiting.num_bytes:,} bytes of this client's messages are not taken yet: send fewer at once"
        return None
