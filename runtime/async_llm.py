"""`AsyncLLM`: a model in a process of its own, for many users at once on one event loop.

This side has the tokenizer, texts and streams, and never loads torch. When the engine process dies, each request that
it was at ends with `EngineDied`, and the next one starts a fresh process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from .errors import AmbidexError, ConfigError, EngineDied, QueueFull
from .fields import shown
from .front import Front
from .messages import Counters, Limits, Progress
from .process.client import EngineClient
from .process.wire import Facts, Pong, Ready
from .prompt import Prompt, encode, render
from .request import RequestOutput, SamplingParams
from .stream import Stream
from .template import Message
from .tokenizer import Tokenizer

_LOG = logging.getLogger("ambidex")
_T = TypeVar("_T")
_MOST_S = 1e9


@dataclass(eq=False)
class _Running:
    """An engine that is ready, with what runs on it."""

    client: EngineClient
    ready: Ready
    front: Front
    streams: dict[str, Stream] = field(default_factory=dict[str, Stream])

    def take(self, progress: Progress) -> None:
        outputs, ended = self.front.take(progress)
        self.client.abort(ended)
        for output in outputs:
            stream = self.streams[output.request_id]
            if output.finished:
                del self.streams[output.request_id]
            stream.tell()

    def drop(self, request_id: str) -> None:
        """Aborts a request if it runs; its stream gets what there is."""
        self.client.abort(self.front.abort(request_id))
        stream = self.streams.pop(request_id, None)
        if stream is not None:
            stream.tell()


class AsyncLLM:
    """A model behind an event loop. Keyword arguments beside its own are the fields of `runtime.options.Options`.
    What was decided at an engine's start goes to the logger `ambidex`, at INFO.

    hang_timeout_s: a step that takes longer ends its process. grace_s: how long `drain` lets requests go on.
    ConfigError: these are no seconds above 0. What is wrong with the options is said when the engine starts.

    >>> async with AsyncLLM() as llm:
    ...     async for output in llm.generate("def add(a, b):", SamplingParams(max_tokens=16)):
    ...         print(output.outputs[0].text)

    Errors: those of `runtime.errors`. It belongs to the event loop on which it was first used.
    """

    def __init__(
        self, model: str | None = None, *, hang_timeout_s: float = 120.0, grace_s: float = 30.0, **options: Any
    ) -> None:
        _check_seconds(hang_timeout_s=hang_timeout_s, grace_s=grace_s)
        self._options = {"model": model, "progress": False, **options}
        self._hang_timeout_s, self._grace_s = hang_timeout_s, grace_s
        self._ids = count()
        self._client: EngineClient | None = None
        self._running: _Running | None = None
        self._starting: asyncio.Task[_Running] | None = None
        self._fingerprint: str | None = None
        self._refusal: str | None = None
        self._encoders = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenizer")

    @classmethod
    async def start(cls, model: str | None = None, **options: Any) -> AsyncLLM:
        """An AsyncLLM whose engine is ready. Errors: those of loading."""
        llm = cls(model, **options)
        try:
            await llm._engine()
        except BaseException:
            await llm.close()
            raise
        return llm

    async def __aenter__(self) -> AsyncLLM:
        await self._engine()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        salt: str = "",
    ) -> AsyncIterator[RequestOutput]:
        """The growing result after each step that added to it; leaving the loop early aborts the request.

        priority: lower is served earlier. timeout_s: seconds after which it is aborted, with stop_reason `timeout`.
        salt: requests share cached prefixes only with those of the same salt. Errors: RequestError, QueueFull,
        EngineDied, and those of loading where no engine runs.
        """
        stream = await self.submit(prompt, params, request_id, priority, timeout_s, salt)
        try:
            async for output in stream:
                yield output
        finally:
            stream.close()

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        salt: str = "",
    ) -> Stream:
        """Like `generate`, but returns when the engine has taken the request: what it refuses is raised here."""
        running = await self._engine()
        try:
            return await self._submit(running, prompt, params, request_id, priority, timeout_s, salt)
        except EngineDied:
            self._refuse()
            raise

    async def _submit(
        self,
        running: _Running,
        prompt: Prompt,
        params: SamplingParams | None,
        request_id: str | None,
        priority: int,
        timeout_s: float | None,
        salt: str,
    ) -> Stream:
        encoded = await self._off_loop(encode, prompt, running.front.tokenizer)
        self._refuse()
        if running.client.ended.done():
            raise running.client.ended.result()
        request_id = f"request-{next(self._ids)}" if request_id is None else request_id
        submission = running.front.open(
            request_id, encoded, params or SamplingParams(), priority=priority, timeout_s=timeout_s, salt=salt
        )
        stream = running.streams[request_id] = Stream(running.front.output(request_id), running.drop)
        try:
            await running.client.submit(submission)
        except BaseException:
            running.drop(request_id)
            raise
        return stream

    async def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **kwargs: Any) -> Prompt:
        """A conversation as token ids, by the checkpoint's chat template."""
        tokenizer = (await self._engine()).front.tokenizer
        return await self._off_loop(
            lambda: render(messages, tokenizer, add_generation_prompt=add_generation_prompt, **kwargs)
        )

    async def abort(self, request_id: str) -> None:
        """Ends a request wherever it is; its stream ends with what there is. One that does not run is passed over."""
        if self._running is not None:
            self._running.drop(request_id)

    async def health(self) -> Pong:
        """What the engine is at, and since when. EngineDied: there is none; the next request starts one."""
        if self._running is not None:
            return await self._running.client.ping()
        if self._client is not None and not self._client.ended.done():
            return self._client.health
        self._refuse()
        raise EngineDied("no engine runs: the next request starts one")

    @property
    def process_id(self) -> int | None:
        """Of the engine that runs."""
        return self._running.client.process_id if self._running else None

    async def counters(self) -> Counters:
        """The engine's state between two steps, and its sums since it started."""
        return await (await self._engine()).client.counters()

    async def facts(self) -> tuple[Limits, Facts, tuple[str, ...]]:
        """What a request may ask for, what the engine is, and the lines that say how that was decided."""
        ready = (await self._engine()).ready
        return ready.limits, ready.facts, ready.decisions

    async def get_tokenizer(self) -> Tokenizer:
        return (await self._engine()).front.tokenizer

    async def drain(self) -> None:
        """Refuses new requests, lets those that run finish (for `grace_s` at most), ends the engine. One that loads
        still is ended at once: nothing runs on it, and who waits for it is refused."""
        self._refusal = self._refusal or "the engine is draining: ask another"
        await self._stop_starting()
        if self._client is not None and not self._client.ended.done():
            await self._client.drain()

    async def close(self) -> None:
        """Aborts what runs and ends the engine. Who waits for something that has not begun gets QueueFull."""
        self._refusal = "this AsyncLLM is closed: make another"
        for request_id in list(self._running.streams) if self._running else []:
            await self.abort(request_id)
        await self._stop_starting()
        if self._client is not None:
            await self._client.close()
        self._encoders.shutdown(wait=False)  # what it is at ends by itself, and its asker is told why nothing follows

    async def _engine(self) -> _Running:
        """The engine that runs, or a fresh one."""
        self._refuse()
        if self._running is not None:
            return self._running
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(self._started)
        starting = self._starting
        await asyncio.wait([starting])  # who stops waiting does not stop it for the others
        try:
            return starting.result()
        except (asyncio.CancelledError, EngineDied):
            self._refuse()
            raise

    def _refuse(self) -> None:
        """QueueFull, once nothing new is to begin here: that is then the reason why an engine has ended."""
        if self._refusal is not None:
            raise QueueFull(self._refusal) from None

    async def _stop_starting(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])

    async def _start(self) -> _Running:
        self._client = client = await EngineClient.start(
            self._options, self._take, self._lose, fingerprint=self._fingerprint,
            hang_timeout_s=self._hang_timeout_s, grace_s=self._grace_s,
        )  # fmt: skip
        try:
            ready = await asyncio.shield(client.ready)
            tokenizer = await self._off_loop(Tokenizer, Path(ready.facts.folder))
        except BaseException:
            await client.close()
            raise
        if client.ended.done():
            raise client.ended.result()
        _LOG.info("%s", ready.decisions[0])
        self._fingerprint = ready.facts.fingerprint  # whatever is started in its place has to be the same
        self._running = _Running(client, ready, Front(tokenizer, ready.limits, perf_counter))
        return self._running

    def _started(self, starting: asyncio.Task[_Running]) -> None:
        self._starting = None
        if not starting.cancelled():
            starting.exception()  # those who wait for it have it

    def _take(self, progress: Progress) -> None:
        if self._running is not None:
            self._running.take(progress)

    def _lose(self, error: AmbidexError) -> None:
        running, self._running = self._running, None
        for stream in running.streams.values() if running else ():
            stream.tell(error)

    async def _off_loop(self, work: Callable[..., _T], *arguments: object) -> _T:
        self._refuse()  # else the pool may be shut down already
        return await asyncio.get_running_loop().run_in_executor(self._encoders, work, *arguments)


def _check_seconds(**given: object) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _MOST_S:  # NaN is nowhere
            raise ConfigError(f"{name} is {shown(value)}: it must be a number of seconds above 0")
