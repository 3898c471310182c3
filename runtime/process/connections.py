"""The sockets of an engine process: accepts, reads whole messages, sends without ever waiting for a reader.

A client that breaks the protocol, does not read, or is one too many loses its connection, with the reason as its last
message; no other client sees it. `wait` may be called by two threads; everything else is called under `lock`.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from threading import RLock
from time import monotonic

from .wire import Failed, Frames, FromClient, Message, ProtocolError, frame

MAX_CLIENTS = 64
MAX_UNSENT_BYTES = 256 << 20
HELLO_S, FAREWELL_S = 10.0, 5.0
"""How long a client may take to say who it is, and to read why its connection ends."""
_READ_BYTES = 256 << 10


class Connection:
    """One client: what has arrived of it, and what it has not read yet."""

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.frames: Frames[FromClient] = Frames(FromClient)
        self.fingerprint: str | None = None
        self.greeted = self.dismissed = False
        self.since_s = monotonic()
        """When it came, or was dismissed."""
        self.unsent_bytes = 0
        self._unsent: deque[memoryview] = deque()
        self._is_begun = False

    def queue(self, data: bytes | bytearray) -> None:
        self._unsent.append(memoryview(data))
        self.unsent_bytes += len(data)

    def dismiss(self, reason: str) -> None:
        """Drops what is not sent, but for the frame that the client has a part of; then comes the reason."""
        begun = self._unsent[0] if self._is_begun else None
        self._unsent.clear()
        self.unsent_bytes = 0
        if begun is not None:
            self.queue(begun.tobytes())
        self.queue(frame(Failed(reason)))
        self.dismissed, self.since_s = True, monotonic()

    def flush(self) -> bool:
        """Sends what the socket takes now; whether all of it went. OSError: the client is gone."""
        while self._unsent:
            try:
                num_sent = self.socket.send(self._unsent[0])
            except BlockingIOError:
                return False
            self.unsent_bytes -= num_sent
            self._unsent[0] = self._unsent[0][num_sent:]
            self._is_begun = bool(self._unsent[0])
            if not self._is_begun:
                self._unsent.popleft()
        return True


class Connections:
    """Clients by serial number, in the order in which they came."""

    def __init__(self, listener: socket.socket) -> None:
        self.lock = RLock()
        self.clients: dict[int, Connection] = {}
        self._listener, self._serials = listener, count(1)
        self._gone: deque[int] = deque()
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        for each in (listener, self._woken, self._waker):
            each.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, 0)
        self._selector.register(self._woken, selectors.EVENT_READ, -1)

    def wait(self, timeout_s: float | None) -> list[tuple[int, int]]:
        """Sleeps until something has arrived or can be sent, `wake` is called, or the time is over."""
        return [(key.data, events) for key, events in self._selector.select(timeout_s)]

    def wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:
            return  # it has enough to be woken by, or it is closed

    def receive(self, events: list[tuple[int, int]]) -> Iterator[tuple[int, FromClient | None]]:
        """What `wait` found: messages with their client's serial number, None once for one that is of no more use."""
        for serial, event in events:
            if serial < 0:
                self._drain_wakes()
            elif serial == 0:
                self._accept()
            elif (client := self.clients.get(serial)) is not None:
                if event & selectors.EVENT_WRITE:
                    self._flush(serial, client)
                if event & selectors.EVENT_READ and serial in self.clients:
                    yield from self._read(serial, client)
        while self._gone:
            yield self._gone.popleft(), None

    def send(self, serial: int, message: Message) -> None:
        """Queues a message and sends what can be sent. A client that is gone, or is being dismissed, gets nothing."""
        client = self.clients.get(serial)
        if client is None or client.dismissed:
            return
        client.queue(frame(message))
        self._flush(serial, client)
        if client.unsent_bytes > MAX_UNSENT_BYTES:
            self.dismiss(serial, f"more than {MAX_UNSENT_BYTES:,} bytes lie unread: read faster, or ask for less")

    def broadcast(self, message: Message) -> None:
        for serial, client in list(self.clients.items()):
            if client.greeted:
                self.send(serial, message)

    def dismiss(self, serial: int, reason: str) -> None:
        """Ends a connection with a reason. It is closed when the client hangs up, or has had time to read that: closed
        at once, a client that is sending would see a broken pipe and no reason."""
        client = self.clients.get(serial)
        if client is not None and not client.dismissed:
            client.dismiss(reason)
            self._gone.append(serial)
            self._flush(serial, client)
            self.wake()

    def sweep(self) -> None:
        """Ends those that do not say Hello, and those that do not read why they are dismissed: they take places."""
        now_s = monotonic()
        for serial, client in list(self.clients.items()):
            if client.dismissed and now_s - client.since_s > FAREWELL_S:
                self._remove(serial, client)
            elif not client.dismissed and not client.greeted and now_s - client.since_s > HELLO_S:
                self.dismiss(serial, f"there was no Hello within {HELLO_S:g} s")

    def close(self, patience_s: float) -> None:
        """Waits a little for clients to read what was sent, then ends every connection."""
        until_s = monotonic() + patience_s
        while any(client.unsent_bytes for client in self.clients.values()) and monotonic() < until_s:
            for serial, event in self.wait(until_s - monotonic()):
                if serial in self.clients and event & selectors.EVENT_WRITE:
                    self._flush(serial, self.clients[serial])
        for client in self.clients.values():
            client.socket.close()
        self.clients.clear()
        self._selector.close()
        self._listener.close()
        self._woken.close()
        self._waker.close()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it has hung up, or another thread took it
        if not _same_user(client):
            client.close()
            return
        client.setblocking(False)
        if len(self.clients) >= MAX_CLIENTS:
            with client, suppress(OSError):
                client.send(frame(Failed(f"{MAX_CLIENTS} clients are connected already: close one of them")))
            return
        serial = next(self._serials)
        self.clients[serial] = Connection(client)
        self._selector.register(client, selectors.EVENT_READ, serial)

    def _read(self, serial: int, client: Connection) -> Iterator[tuple[int, FromClient]]:
        try:
            data = client.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return  # another thread has read it
        except OSError:
            data = b""
        if not data:
            self._remove(serial, client)
        if not data or client.dismissed:
            return
        try:
            for message in client.frames.feed(data):
                yield serial, message
                if client.dismissed or serial not in self.clients:
                    return
        except ProtocolError as error:
            self.dismiss(serial, str(error))

    def _flush(self, serial: int, client: Connection) -> None:
        try:
            done = client.flush()
        except OSError:
            self._remove(serial, client)
            return
        if client.dismissed and done:
            with suppress(OSError):  # it has hung up
                client.socket.shutdown(socket.SHUT_WR)
        self._selector.modify(client.socket, selectors.EVENT_READ | (0 if done else selectors.EVENT_WRITE), serial)

    def _remove(self, serial: int, client: Connection) -> None:
        if self.clients.pop(serial, None) is None:
            return
        self._selector.unregister(client.socket)
        client.socket.close()
        if not client.dismissed:
            self._gone.append(serial)
            self.wake()

    def _drain_wakes(self) -> None:
        try:
            self._woken.recv(4096)
        except BlockingIOError:
            return  # another thread was woken first


def _same_user(client: socket.socket) -> bool:
    """Whether the peer runs under this process's user, as far as the system tells (Linux does)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.getuid())
