"""The engine's side: takes what has arrived, steps, sends; asleep while there is nothing to do.

One thread loads and drives the engine. A second one is its heartbeat: it tells the clients twice a second what the
first is at, accepts and answers while that is loading or in a step, and ends the process when its parent has died.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import msgspec

from ..errors import QueueFull, RequestError
from ..messages import Counters, Limits, Progress, Submission
from . import wire
from .connections import Connection, Connections
from .inbox import MAX_MESSAGES, Inbox
from .numbering import NUMBER_BITS, by_client, engine_number, serial_of

BEAT_S = 0.5
_MAX_TAKEN = 256
"""Messages taken between two steps: a flood of requests must not keep those that run from running."""
_MAX_PINGS = 1000
"""Of a client at once: each is looked at while the others wait."""
_FAREWELL_S = 2.0

Report = Callable[[str, float], None]
"""(phase, share of it that is done): how loading goes on."""


class Steppable(Protocol):
    """What the process needs of an engine (`runtime/engine.py`)."""

    limits: Limits

    @property
    def has_work(self) -> bool: ...
    def submit(self, submission: Submission) -> None: ...
    def abort(self, numbers: Sequence[int]) -> None: ...
    def step(self) -> Progress: ...
    def counters(self) -> Counters: ...


@dataclass(frozen=True)
class Loaded:
    engine: Steppable
    facts: wire.Facts
    decisions: tuple[str, ...] = ()


class Server:
    """grace_s: for so long requests may go on after `drain`. is_orphan: whether nobody is left to serve."""

    def __init__(
        self, connections: Connections, *, grace_s: float, is_orphan: Callable[[], bool], leave: Callable[[], None]
    ) -> None:
        self._connections, self._grace_s = connections, grace_s
        self._is_orphan, self._leave = is_orphan, leave
        self._inbox = Inbox()
        self._live: dict[int, set[int]] = {}
        self._ready: wire.Ready | None = None
        self._loading = wire.Loading("starting", 0.0)
        self._state: tuple[wire.State, float] = ("loading", monotonic())
        self._drain_until_s: float | None = None
        self._is_over = threading.Event()

    def run(self, load: Callable[[Report], Loaded]) -> None:
        """Loads once there is a client to hear of it, serves until it has drained. Errors end the process: the clients
        are told first."""
        heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        heart.start()
        try:
            while not self._is_heard():
                if self._drain_until_s is not None:
                    return
                self._listen(None)
            loaded = load(self._report)
            self._inbox.max_requests = max(MAX_MESSAGES, loaded.engine.limits.max_queued)
            self._enter("idle")
            self._announce(wire.Ready(loaded.engine.limits, loaded.facts, loaded.decisions))
            self._serve(loaded.engine)
        except BaseException as error:
            with self._connections.lock:
                self._connections.broadcast(wire.Failed(cause(error), exit_code(error)))
            raise
        finally:
            self._is_over.set()
            heart.join()
            self._connections.close(_FAREWELL_S)

    def drain(self) -> None:
        """No new requests; the loop ends when those that run have. For any thread, and for signal handlers."""
        if self._drain_until_s is None:
            self._drain_until_s = monotonic() + self._grace_s
            self._connections.wake()

    def _is_heard(self) -> bool:
        with self._connections.lock:
            return any(client.greeted for client in self._connections.clients.values())

    def _serve(self, engine: Steppable) -> None:
        while engine.has_work or self._inbox or self._drain_until_s is None:
            if not engine.has_work and not self._inbox:
                self._enter("idle")
                self._listen(None)
            else:
                self._listen(0)
            for _ in range(_MAX_TAKEN):
                if self._inbox:
                    self._take(engine, *self._inbox.take())
            if self._drain_until_s is not None and monotonic() > self._drain_until_s:
                engine.abort([number for numbers in self._live.values() for number in numbers])
            if engine.has_work:
                self._enter("stepping")
                self._deliver(engine.step())

    def _listen(self, timeout_s: float | None) -> None:
        """Waits, then sorts what came: some is answered here, by whichever thread it is, the rest is for the loop."""
        events, pings = self._connections.wait(timeout_s), Counter[int]()
        with self._connections.lock:
            for serial, message in self._connections.receive(events):
                if message is None:
                    self._inbox.leave(serial)
                elif isinstance(message, wire.Ping) and self._connections.clients[serial].greeted:
                    pings[serial] += 1
                    if pings[serial] > _MAX_PINGS:
                        self._connections.dismiss(serial, f"more than {_MAX_PINGS:,} Pings at once")
                else:
                    self._sort(serial, self._connections.clients[serial], message)
            for serial in pings:
                self._connections.send(serial, self._pong())

    def _sort(self, serial: int, client: Connection, message: wire.FromClient) -> None:
        if isinstance(message, wire.Hello) and not client.greeted:
            self._greet(serial, client, message)
        elif isinstance(message, wire.Hello) or not client.greeted:
            self._connections.dismiss(serial, "the first message of a connection is Hello, and no other one is")
        elif (full := self._inbox.put(serial, message, client.frames.num_bytes)) is not None:
            if isinstance(message, wire.Submit):
                self._connections.send(serial, wire.Refused(message.submission.number, full, "queue_full"))
            else:
                self._connections.dismiss(serial, full)

    def _greet(self, serial: int, client: Connection, hello: wire.Hello) -> None:
        if hello.protocol != wire.PROTOCOL:
            spoken = f"the engine speaks protocol {wire.PROTOCOL}, its client {hello.protocol}"
            self._connections.dismiss(serial, f"{spoken}: install one version of both")
            return
        client.greeted, client.fingerprint = True, hello.fingerprint
        self._connections.send(
            serial, wire.Hello(wire.PROTOCOL, self._ready.facts.fingerprint if self._ready else None)
        )
        if self._ready:
            self._welcome(serial, client, self._ready)
        else:
            self._connections.send(serial, self._loading)

    def _announce(self, ready: wire.Ready) -> None:
        with self._connections.lock:
            self._ready = ready
            for serial, client in list(self._connections.clients.items()):
                if client.greeted:
                    self._welcome(serial, client, ready)

    def _welcome(self, serial: int, client: Connection, ready: wire.Ready) -> None:
        wanted, found = client.fingerprint, ready.facts.fingerprint
        if wanted is None or wanted == found:
            self._connections.send(serial, ready)
        else:
            self._connections.dismiss(
                serial, f"the engine's fingerprint is {found}, its client expects {wanted}: what ran here has changed"
            )

    def _take(self, engine: Steppable, serial: int, message: wire.FromClient | None) -> None:
        if message is None:
            engine.abort(sorted(self._live.pop(serial, ())))
        elif isinstance(message, wire.Submit):
            self._submit(engine, serial, message.submission)
        elif isinstance(message, wire.Abort):
            own = self._live.get(serial, set())  # a number too high would be another client's
            engine.abort(sorted(own.intersection(engine_number(serial, number) for number in message.numbers)))
        elif isinstance(message, wire.Drain):
            self.drain()
        elif isinstance(message, wire.AskCounters):
            self._send(serial, wire.Statistics(engine.counters()))

    def _submit(self, engine: Steppable, serial: int, submission: Submission) -> None:
        try:
            numbers = self._numbers(serial, submission)
            if self._drain_until_s is not None:
                self._send(serial, wire.Refused(submission.number, "the engine is draining: ask another", "draining"))
                return
            engine.submit(msgspec.structs.replace(submission, number=engine_number(serial, submission.number)))
        except wire.ProtocolError as error:
            with self._connections.lock:
                self._connections.dismiss(serial, str(error))
        except RequestError as error:
            kind: wire.Refusal = "queue_full" if isinstance(error, QueueFull) else "request"
            self._send(serial, wire.Refused(submission.number, str(error), kind))
        else:
            self._live.setdefault(serial, set()).update(numbers)
            self._send(serial, wire.Accepted((submission.number,)))

    def _numbers(self, serial: int, submission: Submission) -> range:
        """The completions' numbers in the engine."""
        first, count = submission.number, submission.params.n
        numbers = range(engine_number(serial, first), engine_number(serial, first) + count)
        if first < 0 or first + count > 1 << NUMBER_BITS:
            raise wire.ProtocolError(f"number {first}: it must be from 0 to {(1 << NUMBER_BITS) - count:,}")
        if not self._live.get(serial, set()).isdisjoint(numbers):
            raise wire.ProtocolError(f"number {first} is a running completion's")
        return numbers

    def _deliver(self, progress: Progress) -> None:
        with self._connections.lock:
            for serial, part in by_client(progress):
                self._connections.send(serial, wire.Progressed(part))
        for ended in progress.ended:
            self._live.get(serial_of(ended.number), set()).discard(ended.number)

    def _send(self, serial: int, message: wire.Accepted | wire.Refused | wire.Statistics) -> None:
        with self._connections.lock:
            self._connections.send(serial, message)

    def _beat(self) -> None:
        while not self._is_over.wait(BEAT_S):
            if self._is_orphan():
                self._leave()
            if self._state[0] != "idle":  # else the loop listens
                self._listen(0)
                self._connections.wake()
            with self._connections.lock:
                self._connections.sweep()
                self._connections.broadcast(self._pong() if self._ready else self._loading)

    def _pong(self) -> wire.Pong:
        state, since_s = self._state
        return wire.Pong(state, monotonic() - since_s, self._drain_until_s is not None)

    def _enter(self, state: wire.State) -> None:
        self._state = (state, monotonic())

    def _report(self, phase: str, share: float) -> None:
        self._loading = wire.Loading(phase, share)


def cause(error: BaseException) -> str:
    """A failure in one line; what is not a user's to mend says that it is a fault here."""
    text = " ".join(str(error).split())
    return text if hasattr(error, "exit_code") else f"{type(error).__name__}: {text}; a fault of the engine"


def exit_code(error: BaseException) -> int:
    return int(getattr(error, "exit_code", 1))
