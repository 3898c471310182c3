"""A request's result as it grows, for whoever follows it on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .errors import AmbidexError
from .request import RequestOutput


class Stream:
    """A request's growing result, after each step that added to it: `async for output in stream`.

    Who is slow misses intermediate states, never the last one, and holds nobody up. There is one result, which grows
    on while it is looked at.
    """

    def __init__(self, output: RequestOutput, leave: Callable[[str], None]) -> None:
        self.output = output
        self._leave, self._news = leave, asyncio.Event()
        self._error: AmbidexError | None = None
        self._is_over = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> RequestOutput:
        """EngineDied: the rest is lost."""
        if self._is_over:
            raise StopAsyncIteration
        await self._news.wait()
        self._news.clear()
        self._is_over = self.output.finished or self._error is not None
        if self._error is not None:
            raise self._error
        return self.output

    def close(self) -> None:
        """Aborts what still runs."""
        if not self.output.finished and self._error is None:
            self._leave(self.output.request_id)

    def tell(self, error: AmbidexError | None = None) -> None:
        self._error = error
        self._news.set()
