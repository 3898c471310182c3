"""The inbox against a plain model: order, turns, bounds, and the end of a client."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from ambidex.runtime.messages import Submission
from ambidex.runtime.process import inbox, wire
from ambidex.runtime.process.inbox import Inbox
from ambidex.runtime.request import SamplingParams
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

MOST, MOST_BYTES, MOST_OF_ALL = 4, 100, 220


def submit(number: int) -> wire.Submit:
    return wire.Submit(Submission(number=number, prompt_ids=np.array([1]), params=SamplingParams()))


def key(message: wire.FromClient | None) -> object:
    return None if message is None else message.submission.number if isinstance(message, wire.Submit) else message


class Machine(RuleBasedStateMachine):
    """Four clients; `waiting` is what each has sent, as (what, bytes)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(inbox, "MAX_MESSAGES", MOST)
        self.patch.setattr(inbox, "MAX_BYTES", MOST_BYTES)
        self.patch.setattr(inbox, "MAX_TOTAL_BYTES", MOST_OF_ALL)
        self.inbox = Inbox()
        self.waiting: dict[int, list[tuple[object, int]]] = defaultdict(list)
        self.passed_over: dict[int, int] = defaultdict(int)
        self.gone: set[int] = set()
        self.number = 0

    @rule(serial=st.integers(1, 4), num_bytes=st.integers(1, 150), is_request=st.booleans())
    def put(self, serial: int, num_bytes: int, is_request: bool) -> None:
        if serial in self.gone:
            return
        self.number += 1
        message: Any = submit(self.number) if is_request else wire.Abort((self.number,))
        mine = self.waiting[serial]
        alike = sum(isinstance(what, int) == is_request for what, _ in mine)
        own = sum(size for _, size in mine)
        total = sum(size for each in self.waiting.values() for _, size in each)
        fits = alike < MOST and own + num_bytes <= MOST_BYTES and total + num_bytes <= MOST_OF_ALL
        refusal = self.inbox.put(serial, message, num_bytes)
        assert (refusal is None) == (fits or not mine)
        if refusal is None:
            mine.append((key(message), num_bytes))
        else:
            assert "send fewer at once" in refusal

    @rule(serial=st.integers(1, 4))
    def leave(self, serial: int) -> None:
        if serial not in self.gone:
            self.gone.add(serial)
            self.inbox.leave(serial)
            self.waiting[serial] = [(None, 0)]

    @precondition(lambda self: any(self.waiting.values()))
    @rule()
    def take(self) -> None:
        serial, message = self.inbox.take()
        what, _ = self.waiting[serial].pop(0)
        assert key(message) == what
        self.passed_over[serial] = 0
        for other, mine in self.waiting.items():
            if other != serial and mine:
                self.passed_over[other] += 1
                assert self.passed_over[other] <= 4, "each has its turn"
        self.gone -= {serial} if what is None else set()

    @invariant()
    def it_knows_whether_anything_waits(self) -> None:
        assert bool(self.inbox) == any(self.waiting.values())

    def teardown(self) -> None:
        while self.inbox:
            self.take()
        assert not self.inbox._of
        assert self.inbox._num_bytes == 0
        self.patch.undo()


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestInbox = Machine.TestCase
