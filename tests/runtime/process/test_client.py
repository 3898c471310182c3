"""Real engine processes with a scripted engine: how they load, hang, drain, and die, as their client sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ambidex.runtime.errors import AmbidexError, ConfigError, EngineDied, QueueFull, RequestError
from ambidex.runtime.messages import Counters, Progress, Submission
from ambidex.runtime.process import wire
from ambidex.runtime.process.client import EngineClient
from ambidex.runtime.request import SamplingParams


class Noted:
    """A client, and what it was called back with."""

    def __init__(self) -> None:
        self.client: EngineClient
        self.progress: list[Progress] = []
        self.ends: list[AmbidexError] = []

    async def ask(self, number: int, max_tokens: int = 5, token_id: int = 1) -> None:
        params, ids = SamplingParams(max_tokens=max_tokens), np.array([token_id], np.int64)
        await self.client.submit(Submission(number=number, prompt_ids=ids, params=params))

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():
                await asyncio.sleep(0.01)


Body = Callable[[Noted], Awaitable[None]]


@pytest.fixture
def scripted_client(
    scripted_command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Runs a body with the client of a scripted process; afterwards there is no process and no folder of it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(
        body: Body, *, hang_timeout_s: float = 60, grace_s: float = 10, fingerprint: str | None = None, **script: Any
    ) -> None:
        async def main() -> None:
            noted = Noted()
            noted.client = await EngineClient.start(
                {"model": None, "progress": False, **script}, noted.progress.append, noted.ends.append,
                fingerprint=fingerprint, hang_timeout_s=hang_timeout_s, grace_s=grace_s, command=scripted_command,
            )  # fmt: skip
            (folder,) = tmp_path.iterdir()
            assert folder.stat().st_mode & 0o777 == 0o700
            assert (folder / "engine").stat().st_mode & 0o777 == 0o600
            try:
                await body(noted)
            finally:
                await noted.client.close()
            assert len(noted.ends) == 1
            assert not list(tmp_path.iterdir())
            with pytest.raises(ProcessLookupError):
                os.kill(noted.client.process_id, 0)

        asyncio.run(main())

    return run


def test_requests_and_refusals(scripted_client: Callable[..., None]) -> None:
    async def body(noted: Noted) -> None:
        ready = await noted.client.ready
        assert ready.decisions == ("a decision",)
        await noted.ask(1, max_tokens=3)
        await noted.until(lambda: any(each.ended for each in noted.progress))
        assert [each.ids.tolist() for each in noted.progress if len(each.ids)] == [
            [(1 << 40 | 1) % 500 + index] for index in range(3)
        ]
        with pytest.raises(RequestError, match="outside the vocabulary"):
            await noted.ask(2, token_id=5000)
        with pytest.raises(QueueFull):
            await asyncio.gather(*(noted.ask(10 + each, max_tokens=1000) for each in range(3)))
        noted.client.abort(range(10, 13))
        async with asyncio.timeout(10):
            while (await noted.client.counters()).running:
                pass
        assert (await noted.client.ping()).state == "idle"

    scripted_client(body, max_queued=2, step_s=0.01)


def test_what_loading_raises_is_raised_here(scripted_client: Callable[..., None]) -> None:
    async def body(noted: Noted) -> None:
        with pytest.raises(ConfigError, match=r"^the script has no such option$"):
            await noted.client.ready

    scripted_client(body, wrong=1)


def test_another_engine_than_expected_is_refused(scripted_client: Callable[..., None]) -> None:
    async def body(noted: Noted) -> None:
        with pytest.raises(EngineDied, match="fingerprint is fp_scripted, its client expects fp_before"):
            await noted.client.ready

    scripted_client(body, fingerprint="fp_before")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_process_is_told_within_two_seconds(
    scripted_client: Callable[..., None], number: signal.Signals
) -> None:
    async def body(noted: Noted) -> None:
        await noted.client.ready
        await noted.ask(1, max_tokens=10**6)
        await noted.until(lambda: len(noted.progress) > 2)
        waiting = asyncio.gather(noted.client.counters(), noted.client.counters(), return_exceptions=True)
        os.kill(noted.client.process_id, signal.SIGSTOP)
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        os.kill(noted.client.process_id, number)
        os.kill(noted.client.process_id, signal.SIGCONT)
        error = await asyncio.shield(noted.client.ended)
        assert time.monotonic() - begun < 2
        assert isinstance(error, EngineDied)
        assert ("killed" if number == signal.SIGKILL else "SIGSEGV") in str(error)
        assert "a fresh engine is started" in str(error)
        assert "\n" not in str(error)
        await waiting
        with pytest.raises(EngineDied):
            await noted.ask(2)

    scripted_client(body, step_s=0.01)


def test_a_failing_step_ends_the_engine(scripted_client: Callable[..., None]) -> None:
    async def body(noted: Noted) -> None:
        await noted.client.ready
        await noted.ask(1, max_tokens=100)
        error = await asyncio.shield(noted.client.ended)
        assert isinstance(error, EngineDied)
        assert "RuntimeError: the script says so" in str(error)

    scripted_client(body, fail_at=4)


def test_a_hanging_step_is_killed(scripted_client: Callable[..., None]) -> None:
    async def body(noted: Noted) -> None:
        await noted.client.ready
        await noted.ask(1, max_tokens=100)
        begun = time.monotonic()
        error = await asyncio.shield(noted.client.ended)
        assert 1.5 <= time.monotonic() - begun < 8
        assert "a step of the engine took more than 1.5 s" in str(error)

    scripted_client(body, hang_at=3, hang_timeout_s=1.5)


def test_a_silent_process_is_killed(scripted_client: Callable[..., None]) -> None:
    async def body(noted: Noted) -> None:
        await noted.client.ready
        os.kill(noted.client.process_id, signal.SIGSTOP)
        error = await asyncio.shield(noted.client.ended)
        assert "silent for 1.5 s" in str(error)

    scripted_client(body, hang_timeout_s=1.5)


def test_this_loops_own_hang_is_not_the_engines(scripted_client: Callable[..., None]) -> None:
    async def body(noted: Noted) -> None:
        await noted.client.ready
        time.sleep(3.5)
        await asyncio.sleep(1)
        assert (await noted.client.ping()).state == "idle"

    scripted_client(body, hang_timeout_s=1.5)


def test_loading_may_take_long_while_it_advances(
    scripted_client: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambidex.runtime.process.client.LOADING_PATIENCE", 1)

    async def body(noted: Noted) -> None:
        await noted.client.ready

    scripted_client(body, load_s=4.0, load_parts=8, hang_timeout_s=1.5)


def test_loading_that_stands_still_is_killed(
    scripted_client: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambidex.runtime.process.client.LOADING_PATIENCE", 1)

    async def body(noted: Noted) -> None:
        with pytest.raises(EngineDied, match=r"loading stood still for \d s \(weights, 0%\)"):
            await noted.client.ready

    scripted_client(body, load_s=60.0, hang_timeout_s=1.5)


def test_sigterm_drains_and_exits_with_zero(scripted_client: Callable[..., None]) -> None:
    async def body(noted: Noted) -> None:
        await noted.client.ready
        await noted.ask(1, max_tokens=30)
        os.kill(noted.client.process_id, signal.SIGTERM)
        await asyncio.shield(noted.client.ended)
        assert sum(len(each.ids) for each in noted.progress) == 30
        assert noted.progress[-1].ended[0].reason == "length"
        assert "exit status 0" in str(noted.client.ended.result())

    scripted_client(body, step_s=0.02)


def test_closing_while_it_loads_does_not_wait_for_that(scripted_client: Callable[..., None]) -> None:
    async def body(noted: Noted) -> None:
        begun = time.monotonic()
        await asyncio.sleep(0.5)
        await noted.client.close()
        assert time.monotonic() - begun < 4

    scripted_client(body, load_s=30.0)


def test_the_engine_does_not_outlive_its_parent(scripted_command: list[str], tmp_path: Path) -> None:
    """Even in the middle of a step that never ends."""
    code = """if True:
        import asyncio, json, sys
        import numpy as np
        from ambidex.runtime.messages import Submission
        from ambidex.runtime.process.client import EngineClient
        from ambidex.runtime.request import SamplingParams
        async def main():
            options = {"model": None, "progress": False, "hang_at": 1}
            client = await EngineClient.start(options, print, print, command=json.loads(sys.argv[1]))
            await client.ready
            await client.submit(Submission(number=1, prompt_ids=np.array([1]), params=SamplingParams()))
            await asyncio.sleep(0.3)
            print(client.process_id, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    import json

    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(scripted_command)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        process_id = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 5
    while Path(f"/proc/{process_id}").exists() and "Z" not in Path(f"/proc/{process_id}/stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not list(tmp_path.iterdir())


MISFIT = Progress(
    0.0, np.zeros(1, np.int64), np.zeros(2, np.int64), np.zeros(1, np.float32), np.zeros((1, 0), np.int64),
    np.zeros((1, 0), np.float32),
)  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"\xff\xff\xff\xff", "a frame of 4,294,967,295 bytes"),
        (b"\x05\0\0\0hello", "a message that cannot be read"),
        (wire.frame(wire.Ping()), "a message that cannot be read"),
        (wire.frame(wire.Statistics(Counters(*[0] * 10))), "Statistics, unasked"),
        (wire.frame(wire.Progressed(MISFIT)), "what is of no use (RuntimeError: a misfit)"),
        (wire.frame(wire.Refused(1, "no", "draining")) + b"\x01\0\0\0\xc1", "a message that cannot be read"),
    ],
    ids=["length", "garbage", "a client's", "unasked", "misfit", "behind a whole one"],
)
def test_an_engine_that_speaks_nonsense_is_ended_with_one_clear_error(
    sent: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import socket, sys, time; s = socket.socket(fileno=int(sys.argv[sys.argv.index('--listener') + 1]));"
        f"c, _ = s.accept(); c.recv(1); c.sendall({bytes(sent)!r}); time.sleep(60)"
    )

    async def main() -> None:
        ends: list[AmbidexError] = []

        def misfits(progress: Progress) -> None:
            raise RuntimeError("a misfit")

        client = await EngineClient.start({}, misfits, ends.append, command=[sys.executable, "-c", code])
        waiting = asyncio.gather(client.ready, client.ping(), client.ping(), return_exceptions=True)
        begun = time.monotonic()
        async with asyncio.timeout(10):
            errors = await waiting
        assert time.monotonic() - begun < 5
        assert len({str(each) for each in [*errors, *ends]}) == 1
        assert all(isinstance(each, EngineDied) for each in errors)
        assert f"the engine process sent {said}" in str(ends[0])
        assert "\n" not in str(ends[0])

    asyncio.run(main())
    assert not list(tmp_path.iterdir())


def test_what_no_frame_holds_is_refused_alone(scripted_client: Callable[..., None]) -> None:
    async def body(noted: Noted) -> None:
        await noted.client.ready
        long = Submission(number=1, prompt_ids=np.zeros(9 << 20, np.int64), params=SamplingParams())
        with pytest.raises(RequestError, match="shorten the prompt"):
            await noted.client.submit(long)
        await noted.ask(2, max_tokens=1)
        noted.client.abort(range(10, 10 + 3 * wire.MAX_ABORTED))
        assert (await noted.client.counters()).steps >= 1

    scripted_client(body)


def test_a_temporary_folder_with_a_long_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    async def main() -> None:
        await EngineClient.start({}, print, print)

    with pytest.raises(ConfigError, match="set TMPDIR"):
        asyncio.run(main())
    assert not list(long.iterdir())
