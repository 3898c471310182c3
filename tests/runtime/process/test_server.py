"""The engine's side over real sockets: what clients may do to one another (nothing), to memory, and to the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
from ambidex.runtime.messages import Submission
from ambidex.runtime.process import connections, server, wire
from ambidex.runtime.process.connections import Connections
from ambidex.runtime.process.server import Server
from ambidex.runtime.request import SamplingParams
from hypothesis import given, settings
from hypothesis import strategies as st


class Client:
    """Speaks the protocol by hand, and waits."""

    def __init__(self, address: Path, *, fingerprint: str | None = None, hello: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(address))
        self._frames: wire.Frames[wire.FromEngine] = wire.Frames(wire.FromEngine)
        self._messages: list[wire.FromEngine] = []
        if hello:
            self.send(wire.Hello(fingerprint=fingerprint))

    def send(self, *messages: wire.Message) -> None:
        self.socket.sendall(b"".join(wire.frame(each) for each in messages))

    def ask(self, number: int, max_tokens: int = 3, ids: Any = (1, 2), **more: Any) -> None:
        params = SamplingParams(max_tokens=max_tokens, **more)
        self.send(wire.Submit(Submission(number=number, prompt_ids=np.array(ids, np.int64), params=params)))

    def next(self) -> wire.FromEngine | None:
        """The next message, None at the connection's end."""
        while not self._messages:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self._messages += self._frames.feed(data)
        return self._messages.pop(0)

    def wait_for(self, kind: type[Any]) -> Any:
        while (message := self.next()) is not None:
            if isinstance(message, kind):
                return message
        raise AssertionError(f"the connection ended without a {kind.__name__}")

    def tokens(self, number: int) -> list[int]:
        """Of a completion, to its end."""
        ids: list[int] = []
        while True:
            progress = self.wait_for(wire.Progressed).progress
            ids += progress.ids[progress.numbers == number].tolist()
            if any(each.number == number for each in progress.ended):
                return ids


class Running:
    """A server on a thread. started: when its engine may be made. clients: closed at the test's end."""

    def __init__(self, folder: Path, module: ModuleType, engine: Any, grace_s: float) -> None:
        self.address, self.engine, self.error = folder / "engine", engine, None
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.address))
        listener.listen()
        self.connections = Connections(listener)
        self.server = Server(self.connections, grace_s=grace_s, is_orphan=lambda: False, leave=lambda: None)
        self.started = threading.Event()
        self.clients: list[Client] = []
        self._module = module
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def connect(self, **how: Any) -> Client:
        self.clients.append(Client(self.address, **how))
        return self.clients[-1]

    def _run(self) -> None:
        try:
            self.server.run(self._load)
        except RuntimeError as error:
            self.error = error  # type: ignore[assignment]

    def _load(self, report: Callable[[str, float], None]) -> Any:
        report("weights", 0.25)
        assert self.started.wait(20)
        return self._module.Loaded(self.engine, self._module.FACTS, ("a decision",))


@pytest.fixture
def serve(tmp_path: Path, scripted: ModuleType) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(*, held: bool = False, grace_s: float = 10, **script: Any) -> Running:
        running.append(Running(tmp_path, scripted, scripted.ScriptedEngine(**script), grace_s))
        if not held:
            running[0].started.set()
        return running[0]

    yield start
    for each in running:
        each.started.set()
        each.server.drain()
        each.thread.join(20)
        assert not each.thread.is_alive()
        for client in each.clients:
            client.socket.close()


def test_loading_is_told_and_then_what_the_engine_is(serve: Callable[..., Running]) -> None:
    running = serve(held=True)
    client = running.connect()
    assert client.next() == wire.Hello()
    loading = [client.wait_for(wire.Loading) for _ in range(3)]  # by the heartbeat: the other thread loads
    assert loading[-1] == wire.Loading("weights", 0.25)
    running.started.set()
    ready = client.wait_for(wire.Ready)
    assert (ready.limits, ready.facts.fingerprint) == (running.engine.limits, "fp_scripted")
    assert ready.decisions == ("a decision",)
    assert client.wait_for(wire.Pong).state == "idle"


def test_two_clients_with_the_same_numbers_get_their_own_tokens(serve: Callable[..., Running]) -> None:
    running = serve(step_s=0.01)
    one, two = running.connect(), running.connect()
    one.ask(5, max_tokens=4)
    two.ask(5, max_tokens=6, n=2)
    first = one.tokens(5)
    assert first == [(first[0] + index) % 500 for index in range(4)]
    assert len(two.tokens(5)) == 6
    assert not running.engine.live


def test_refusals_harm_the_request_alone(serve: Callable[..., Running]) -> None:
    client = serve(max_queued=1, step_s=0.05).connect()
    client.ask(1, ids=(10_000,))
    assert client.wait_for(wire.Refused) == wire.Refused(1, "a token id is outside the vocabulary", "request")
    params = SamplingParams(max_tokens=5)
    asked = [Submission(number=number, prompt_ids=np.ones(2, np.int64), params=params) for number in (2, 3)]
    client.send(*map(wire.Submit, asked))  # at once, so that no step comes between
    assert client.wait_for(wire.Accepted).numbers == (2,)
    assert client.wait_for(wire.Refused) == wire.Refused(3, "too many wait", "queue_full")
    assert len(client.tokens(2)) == 5


def garbage(client: Client) -> None:
    client.socket.sendall(b"\x05\0\0\0hello")


def oversized(client: Client) -> None:
    client.socket.sendall(b"\xff\xff\xff\xff")


def an_engines_message(client: Client) -> None:
    client.send(wire.Pong("idle", 0.0))


def a_running_number(client: Client) -> None:
    client.ask(1, max_tokens=500)
    client.ask(1)


def a_number_too_high(client: Client) -> None:
    client.ask((1 << 40) - 1, n=2)


def an_empty_frame(client: Client) -> None:
    client.socket.sendall(b"\0\0\0\0")


def a_frame_cut_short(client: Client) -> None:
    body = wire.frame(wire.Abort((1, 2, 3)))[4:-1]
    client.socket.sendall(len(body).to_bytes(4, "little") + body)


def two_messages_in_a_frame(client: Client) -> None:
    body = 2 * wire.frame(wire.Ping())[4:]
    client.socket.sendall(len(body).to_bytes(4, "little") + body)


def wrong_types(client: Client) -> None:
    body = msgspec.msgpack.encode(["Abort", {"numbers": "all"}])
    client.socket.sendall(len(body).to_bytes(4, "little") + body)


def a_million_axes(client: Client) -> None:
    submission = {"number": 1, "params": {}, "prompt_ids": [[1 << 60] * 1_000_000, b""]}
    body = msgspec.msgpack.encode(["Submit", submission])
    client.socket.sendall(len(body).to_bytes(4, "little") + body)


def too_many_aborts_in_one(client: Client) -> None:
    client.send(wire.Abort(tuple(range(wire.MAX_ABORTED + 1))))


def a_second_hello(client: Client) -> None:
    client.send(wire.Hello())


def pings_without_end(client: Client) -> None:
    client.send(*[wire.Ping()] * 20_000)


def questions_without_end(client: Client) -> None:
    """More than the engine takes between two steps, until they are more than wait."""
    client.send(*[wire.AskCounters()] * 40_000)


@pytest.mark.parametrize(
    "spoil",
    [garbage, oversized, an_engines_message, a_running_number, a_number_too_high, an_empty_frame, a_frame_cut_short,
     two_messages_in_a_frame, wrong_types, a_million_axes, too_many_aborts_in_one, a_second_hello, pings_without_end,
     questions_without_end],
)  # fmt: skip
def test_a_broken_client_loses_its_connection_and_nobody_elses(
    serve: Callable[..., Running], spoil: Callable[[Client], None]
) -> None:
    running = serve(step_s=0.005)
    good, bad = running.connect(), running.connect()
    good.ask(1, max_tokens=100)
    bad.ask(7, max_tokens=10**6)
    bad.wait_for(wire.Progressed)
    spoil(bad)
    reason = bad.wait_for(wire.Failed)
    assert reason.exit_code == 0
    assert "\n" not in reason.message
    assert bad.next() is None
    assert len(good.tokens(1)) == 100
    good.send(wire.AskCounters())
    assert good.wait_for(wire.Statistics).counters.running == 0, "what the broken one had asked for is aborted"


def test_no_frame_that_one_client_makes_up_reaches_another(serve: Callable[..., Running]) -> None:
    running = serve(step_s=0.001)
    good = running.connect()

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        sent = Submission(number=9, prompt_ids=np.arange(4), params=SamplingParams(stop="x", logprobs=2, max_tokens=9))
        body = (
            data.draw(st.binary(max_size=40)) if data.draw(st.booleans()) else bytes(wire.frame(wire.Submit(sent))[4:])
        )
        spoilt = bytearray(body)
        for _ in range(data.draw(st.integers(0, 4)) if spoilt else 0):
            spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
        bad = Client(running.address)
        length = data.draw(st.sampled_from([len(spoilt), len(spoilt), max(0, len(spoilt) - 1), len(spoilt) + 1]))
        bad.socket.sendall(length.to_bytes(4, "little") + spoilt)
        good.ask(1, max_tokens=3)
        assert len(good.tokens(1)) == 3
        bad.socket.close()

    holds()
    until = time.monotonic() + 5
    while running.engine.live or len(running.connections.clients) > 1:
        assert time.monotonic() < until, "what the others have left behind"
        time.sleep(0.01)


def test_more_clients_than_places_are_turned_away_and_told_so(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CLIENTS", 5)
    running = serve()
    clients = [running.connect() for _ in range(5)]
    for client in clients:
        client.wait_for(wire.Ready)
    files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        late = Client(running.address, hello=False)
        assert late.wait_for(wire.Failed).message == "5 clients are connected already: close one of them"
        assert late.next() is None
        late.socket.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    clients[0].ask(1)
    assert len(clients[0].tokens(1)) == 3
    clients[1].socket.close()
    until = time.monotonic() + 5
    while len(running.connections.clients) == 5:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert running.connect().wait_for(wire.Ready)


def test_who_says_nothing_or_reads_nothing_keeps_no_place(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HELLO_S", 0.5)
    monkeypatch.setattr(connections, "FAREWELL_S", 0.5)
    running = serve(num_logprobs=2000)
    silent, deaf, good = running.connect(hello=False), running.connect(), running.connect()
    good.wait_for(wire.Ready)
    deaf.ask(0, max_tokens=10**6, n=16)
    until = time.monotonic() + 10
    while not any(client.unsent_bytes > 1 << 20 for client in list(running.connections.clients.values())):
        assert time.monotonic() < until
        time.sleep(0.01)
    garbage(deaf)
    assert silent.wait_for(wire.Failed).message == "there was no Hello within 0.5 s"
    while len(running.connections.clients) > 1:
        assert time.monotonic() < until, "the deaf one is still there"
        time.sleep(0.01)
    good.ask(1)
    assert len(good.tokens(1)) == 3


def test_who_sends_more_requests_than_wait_is_refused_and_holds_nobody_up(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_MESSAGES", 400)
    running = serve(max_queued=300, step_s=0.2)
    flooding, good = running.connect(), running.connect()
    good.wait_for(wire.Ready)
    flooding.wait_for(wire.Ready)
    flooding.ask(100_000, max_tokens=500)
    flooding.wait_for(wire.Progressed)
    ids = np.ones(2, np.int64)
    asked = [Submission(number=each, prompt_ids=ids, params=SamplingParams(max_tokens=1)) for each in range(1500)]
    flooding.send(*map(wire.Submit, asked))
    good.ask(1, max_tokens=2)
    assert good.wait_for(wire.Accepted)
    assert running.engine.steps < 6, "a flood of 1,500 would be taken in six steps"
    flooding.send(wire.Abort((100_000,)))
    refused: set[int] = set()
    said: set[str] = set()
    accepted = 0
    while len(refused) + accepted < 1500:
        message = flooding.next()
        assert message is not None
        assert not isinstance(message, wire.Failed)
        if isinstance(message, wire.Refused):
            refused.add(message.number)
            said.add(message.message)
            assert message.kind == "queue_full"
        accepted += isinstance(message, wire.Accepted)
    assert "400 requests of this client are not taken yet: send fewer at once" in said
    assert len(refused) >= 1100 - 300


def test_clients_that_hang_up_leave_nothing(serve: Callable[..., Running]) -> None:
    """In the middle of their tokens, of a frame, or right behind messages whose answers nobody will read."""
    running = serve(step_s=0.005)
    good = running.connect()
    for number in range(60):
        bad = running.connect()
        if number % 3 == 0:
            bad.ask(7, max_tokens=10**6)
            bad.wait_for(wire.Progressed)
        elif number % 3 == 1:
            bad.socket.sendall(wire.frame(wire.Ping())[:-1])
        else:
            bad.send(*[wire.Hello(), wire.Ping()] * 20)
        bad.socket.close()
    good.ask(1, max_tokens=30)
    assert len(good.tokens(1)) == 30
    good.send(wire.AskCounters())
    assert good.wait_for(wire.Statistics).counters.running == 0
    assert len(running.connections.clients) == 1


@pytest.mark.parametrize(
    ("hello", "said"),
    [
        (wire.Hello(2), "protocol 1, its client 2"),
        (wire.Hello(fingerprint="fp_other"), "fp_scripted, its client expects fp_other"),
        (wire.Ping(), "is Hello"),
    ],
)
def test_a_stranger_is_refused_in_one_line(serve: Callable[..., Running], hello: wire.Message, said: str) -> None:
    client = serve().connect(hello=False)
    client.send(hello)
    message = client.wait_for(wire.Failed).message
    assert said in message
    assert "\n" not in message
    assert client.next() is None


def test_the_same_fingerprint_is_welcome_even_while_loading(serve: Callable[..., Running]) -> None:
    running = serve(held=True)
    same, other = (running.connect(fingerprint=each) for each in ("fp_scripted", "fp_other"))
    assert same.wait_for(wire.Loading)
    assert other.wait_for(wire.Loading)
    running.started.set()
    assert same.wait_for(wire.Ready)
    assert "fp_other" in other.wait_for(wire.Failed).message


def test_a_ping_is_answered_within_a_long_step(serve: Callable[..., Running]) -> None:
    running = serve(step_s=4.0)
    client = running.connect()
    client.ask(1, max_tokens=1)
    client.wait_for(wire.Accepted)
    begun = time.monotonic()
    while (pong := client.wait_for(wire.Pong)).state != "stepping":
        pass
    client.send(wire.Ping())
    client.wait_for(wire.Pong)
    later = running.connect()
    assert later.next() == wire.Hello(fingerprint="fp_scripted")
    assert time.monotonic() - begun < 3
    assert 0 <= pong.state_s < 3


def test_who_does_not_read_is_dismissed_and_costs_bounded_memory(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_UNSENT_BYTES", 1 << 20)
    running = serve(num_logprobs=2000)
    lazy, good = running.connect(), running.connect()
    for number in range(0, 64, 16):
        lazy.ask(number, max_tokens=10**6, n=16)
    good.ask(1, max_tokens=60)
    most = 0
    until = time.monotonic() + 20
    while running.engine.steps < 20 or any(number >> 40 == 1 for number in list(running.engine.live)):
        assert time.monotonic() < until
        most = max([most, *(each.unsent_bytes for each in list(running.connections.clients.values()))])
        time.sleep(0.001)
    assert most < 4 << 20
    assert len(good.tokens(1)) == 60
    assert "lie unread" in lazy.wait_for(wire.Failed).message
    assert lazy.next() is None


def test_draining_refuses_new_requests_and_finishes_the_running(serve: Callable[..., Running]) -> None:
    running = serve(step_s=0.02)
    client = running.connect()
    client.ask(1, max_tokens=25)
    client.wait_for(wire.Progressed)
    client.send(wire.Drain())
    client.ask(2)
    assert client.wait_for(wire.Refused).kind == "draining"
    assert 0 < len(client.tokens(1)) <= 24  # one was waited for above, others may have come before the refusal
    while client.next() is not None:
        pass
    running.thread.join(5)
    assert not running.thread.is_alive()


def test_draining_ends_with_the_grace(serve: Callable[..., Running]) -> None:
    running = serve(step_s=0.02, grace_s=0.3)
    client = running.connect()
    client.ask(1, max_tokens=10**6)
    client.wait_for(wire.Progressed)
    running.server.drain()
    begun = time.monotonic()
    while not (ended := client.wait_for(wire.Progressed).progress.ended):
        pass
    assert ended[0].reason == "abort"
    assert 0.2 < time.monotonic() - begun < 3


def test_a_step_that_fails_is_told_to_all(serve: Callable[..., Running]) -> None:
    running = serve(fail_at=3)
    one, two = running.connect(), running.connect()
    two.wait_for(wire.Ready)
    one.ask(1, max_tokens=10)
    for client in (one, two):
        failed = client.wait_for(wire.Failed)
        assert failed == wire.Failed("RuntimeError: the script says so; a fault of the engine", 1)
    running.thread.join(5)
    assert str(running.error) == "the script says so"


def test_an_idle_engine_sleeps(serve: Callable[..., Running]) -> None:
    client = serve().connect()
    client.wait_for(wire.Ready)
    before = time.process_time()
    for _ in range(3):
        client.wait_for(wire.Pong)
    assert time.process_time() - before < 0.2


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_user_is_not_let_in(serve: Callable[..., Running]) -> None:
    running = serve()
    for path in (running.address, *list(running.address.parents)[:-1]):
        if path.owner() == "root":
            path.chmod(0o777)
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.settimeout(5);"
        "s.connect(sys.argv[1]); print(len(s.recv(1)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, running.address], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout.strip() == "0", done.stderr
    assert running.connect().wait_for(wire.Ready)
