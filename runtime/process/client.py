"""The client's side, on an event loop: starts an engine process, talks to it, and notices when it hangs or has died.

The engine's last words decide the error that everybody who waits gets: what loading raised, or `EngineDied`.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from subprocess import TimeoutExpired
from time import monotonic
from typing import Any

from .. import errors
from ..errors import AmbidexError, EngineDied, QueueFull, RequestError
from ..messages import Counters, Progress, Submission
from . import wire
from .spawning import COMMAND, Spawned, spawn

LOADING_PATIENCE = 5
"""Loading hangs when it stands still for so many times `hang_timeout_s`: some phases cannot say how far they are."""
_CLOSING_S = 5.0
_BURIAL_S = 1.0
_CURE = "what it was at is lost: ask again, and a fresh engine is started"


class EngineClient(asyncio.Protocol):
    """One engine process. `ready` and `ended` are futures: what it is, and why it is no more.

    on_progress: called with each step's Progress. on_end: called once, with the error for those who still wait.
    hang_timeout_s: seconds that a step may take, and for which the engine may be silent; then it is killed.
    """

    def __init__(
        self,
        spawned: Spawned,
        on_progress: Callable[[Progress], None],
        on_end: Callable[[AmbidexError], None],
        *,
        fingerprint: str | None,
        hang_timeout_s: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[wire.Ready] = loop.create_future()
        self.ended: asyncio.Future[AmbidexError] = loop.create_future()
        self.health = wire.Pong("loading", 0.0)
        self._spawned, self._on_progress, self._on_end = spawned, on_progress, on_end
        self._fingerprint, self._hang_timeout_s = fingerprint, hang_timeout_s
        self._frames: wire.Frames[wire.FromEngine] = wire.Frames(wire.FromEngine)
        self._submitted: dict[int, asyncio.Future[None]] = {}
        self._pinged: list[asyncio.Future[wire.Pong]] = []
        self._asked: list[asyncio.Future[Counters]] = []
        self._loading = wire.Loading("starting", 0.0)
        self._begun_s = self._heard_s = self._advanced_s = monotonic()
        self._last_words: wire.Failed | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(
        cls,
        options: Mapping[str, Any],
        on_progress: Callable[[Progress], None],
        on_end: Callable[[AmbidexError], None],
        *,
        fingerprint: str | None = None,
        hang_timeout_s: float = 120.0,
        grace_s: float = 30.0,
        command: Sequence[str] = COMMAND,
    ) -> EngineClient:
        """Starts a process; it has begun to load when this returns, and `ready` says when it has loaded."""
        spawned = spawn(command, options, grace_s)
        client = cls(spawned, on_progress, on_end, fingerprint=fingerprint, hang_timeout_s=hang_timeout_s)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: client, str(spawned.address))
        except BaseException:
            spawned.process.kill()
            await client._bury()
            raise
        return client

    @property
    def process_id(self) -> int:
        return self._spawned.process.pid

    async def submit(self, submission: Submission) -> None:
        """Returns when the engine has queued the request. Errors: RequestError, QueueFull, EngineDied."""
        try:
            await self._answer_to(
                wire.Submit(submission), lambda answer: self._submitted.update({submission.number: answer})
            )
        except wire.ProtocolError as error:  # longer than a frame
            raise RequestError(f"the request is {error}: shorten the prompt") from None

    def abort(self, numbers: Sequence[int]) -> None:
        for begin in range(0, len(numbers), wire.MAX_ABORTED):
            self._send(wire.Abort(tuple(numbers[begin : begin + wire.MAX_ABORTED])))

    async def ping(self) -> wire.Pong:
        """What the engine is at now. EngineDied."""
        return await self._answer_to(wire.Ping(), self._pinged.append)

    async def counters(self) -> Counters:
        """The engine's state between two steps. EngineDied."""
        return await self._answer_to(wire.AskCounters(), self._asked.append)

    async def drain(self) -> None:
        """Lets the engine finish what runs, and end."""
        self._send(wire.Drain())
        await asyncio.shield(self.ended)

    async def close(self) -> None:
        """Ends the process: by its own way if that does not take long."""
        self._spawned.process.terminate()
        await asyncio.wait([self.ended], timeout=_CLOSING_S)
        if not self.ended.done():
            self._spawned.process.kill()
        await asyncio.shield(self.ended)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send(wire.Hello(wire.PROTOCOL, self._fingerprint))
        self._run(self._watch())

    def data_received(self, data: bytes) -> None:
        self._heard_s = monotonic()
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except wire.ProtocolError as error:
            self._kill(f"the engine process sent {error}")
        except Exception as error:  # noqa: BLE001  (what does not fit together shows only where it is used)
            what = " ".join(f"{type(error).__name__}: {error}".split())
            self._kill(f"the engine process sent what is of no use ({what})")

    def connection_lost(self, exc: Exception | None) -> None:
        self._run(self._bury())

    def _take(self, message: wire.FromEngine) -> None:
        if isinstance(message, wire.Progressed):
            self._on_progress(message.progress)
        elif isinstance(message, wire.Accepted):
            for number in message.numbers:
                _settle(self._submitted.pop(number, None), None)
        elif isinstance(message, wire.Refused):
            kind = RequestError if message.kind == "request" else QueueFull
            _settle(self._submitted.pop(message.number, None), kind(message.message))
        elif isinstance(message, wire.Statistics):
            if not self._asked:
                raise wire.ProtocolError("Statistics, unasked")
            _settle(self._asked.pop(0), message.counters)
        else:
            self._note_state(message)

    def _note_state(self, message: wire.FromEngine) -> None:
        if isinstance(message, wire.Pong):
            self.health = message
            while self._pinged:
                _settle(self._pinged.pop(), message)
        elif isinstance(message, wire.Loading):
            self.health = wire.Pong("loading", self._heard_s - self._begun_s)
            if message != self._loading:
                self._loading, self._advanced_s = message, self._heard_s
        elif isinstance(message, wire.Ready):
            _settle(self.ready, message)
        elif isinstance(message, wire.Failed):
            self._last_words = message

    async def _answer_to(self, message: wire.Message, note: Callable[[asyncio.Future[Any]], object]) -> Any:
        if self.ended.done():
            raise self.ended.result()
        answer = asyncio.get_running_loop().create_future()
        self._send(message)  # first: what cannot be sent is not waited for
        note(answer)
        return await answer

    def _send(self, message: wire.Message) -> None:
        if not self._transport.is_closing():
            self._transport.write(wire.frame(message))

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        pause_s = min(1.0, self._hang_timeout_s / 4)
        while not self.ended.done():
            begun_s = monotonic()
            await asyncio.sleep(pause_s)
            is_late = monotonic() - begun_s > 2 * pause_s  # this loop hung itself, and what was sent is not read yet
            why = None if is_late else self._hang()
            if why is not None:
                self._kill(why)
                return

    def _hang(self) -> str | None:
        """Why the engine is held to hang, None if it is not."""
        now_s, timeout_s = monotonic(), self._hang_timeout_s
        if now_s - self._heard_s > timeout_s:
            return f"the engine process was silent for {timeout_s:g} s, and was killed"
        if not self.ready.done():
            still_s = now_s - self._advanced_s
            doing = f"{self._loading.phase}, {self._loading.share:.0%}"
            return (
                f"loading stood still for {still_s:.0f} s ({doing})" if still_s > LOADING_PATIENCE * timeout_s else None
            )
        if self.health.state == "stepping" and self.health.state_s > timeout_s:
            return f"a step of the engine took more than {timeout_s:g} s, and its process was killed"
        return None

    def _kill(self, why: str) -> None:
        self._last_words = wire.Failed(why, EngineDied.exit_code)
        self._spawned.process.kill()
        self._transport.abort()

    async def _bury(self) -> None:
        """The connection is gone: so is the process, or it will be. Everybody who waits is told why."""
        loop, process = asyncio.get_running_loop(), self._spawned.process
        try:
            await loop.run_in_executor(None, process.wait, _BURIAL_S)
        except TimeoutExpired:
            process.kill()
            await loop.run_in_executor(None, process.wait)
        if self.ended.done():
            return  # a cancelled start buries what it has connected to, and so does the lost connection
        shutil.rmtree(self._spawned.address.parent, ignore_errors=True)
        error = self._epitaph(process.returncode)
        waiting: list[asyncio.Future[Any]] = [self.ready, *self._submitted.values(), *self._pinged, *self._asked]
        for each in waiting:
            _settle(each, error)
        self.ended.set_result(error)
        self._on_end(error)
        if self.ready.done():
            self.ready.exception()  # it has been told through on_end, if nobody waits for it

    def _epitaph(self, status: int) -> AmbidexError:
        if self._last_words is not None:
            if not self.ready.done() and (kind := _KINDS.get(self._last_words.exit_code)):
                return kind(self._last_words.message)
            return EngineDied(f"{self._last_words.message}; {_CURE}")
        if status == -signal.SIGKILL:
            return EngineDied(f"the engine process was killed (for lack of memory? the system's log says); {_CURE}")
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        return EngineDied(f"the engine process ended {how}; {_CURE}")


_KINDS: dict[int, type[AmbidexError]] = {
    kind.exit_code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AmbidexError) and kind not in (AmbidexError, EngineDied, QueueFull)
}
"""What loading raises, by its exit code."""


def _settle(waiting: asyncio.Future[Any] | None, value: object) -> None:
    """Gives a future its result or error, unless nobody waits for it any more."""
    if waiting is None or waiting.done():
        return
    if isinstance(value, AmbidexError):
        waiting.set_exception(value)
    else:
        waiting.set_result(value)
