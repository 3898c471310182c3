"""LLM beyond what the engine does: Ctrl-C at any moment, priorities, threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from ambidex import LLM, SamplingParams
from ambidex.runtime.errors import RequestError
from ambidex.runtime.messages import Progress

LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(max_model_len=128, max_num_seqs=2, progress=False)


@pytest.fixture
def at_rest(llm: LLM) -> Iterator[None]:
    """Afterwards nothing runs, no page is held, and Ctrl-C is what it was."""
    before = signal.getsignal(signal.SIGINT)
    yield
    counters = llm.engine.counters()
    assert not llm.engine.has_work
    assert (counters.running, counters.waiting) == (0, 0)
    assert counters.free_pages == counters.num_pages
    assert signal.getsignal(signal.SIGINT) is before
    assert len(llm.generate("x", SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids) == 3


def press(monkeypatch: pytest.MonkeyPatch, llm: LLM, times: int, before_work: bool) -> list[Progress]:
    """Ctrl-C in the third step; the steps that came to their end."""
    step: Callable[[], Progress] = llm.engine.step
    done: list[Progress] = []
    count = iter(range(1000))

    def pressed() -> Progress:
        third = next(count) == 2
        if third and before_work:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        done.append(step())
        if third and not before_work:
            os.kill(os.getpid(), signal.SIGINT)
        return done[-1]

    monkeypatch.setattr(llm.engine, "step", pressed)
    return done


@pytest.mark.usefixtures("at_rest")
@pytest.mark.parametrize("before_work", [True, False])
def test_ctrl_c_waits_for_the_step_and_leaves_nothing_running(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, before_work: bool
) -> None:
    done = press(monkeypatch, llm, 1, before_work)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b", "c", "d"], LONG)
    assert 3 <= len(done) < 10, "the step ended, and few came after it"
    monkeypatch.undo()


@pytest.mark.usefixtures("at_rest")
def test_a_second_ctrl_c_does_not_wait(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    done = press(monkeypatch, llm, 2, True)
    with pytest.raises(KeyboardInterrupt):
        list(llm.stream("a", LONG))
    assert len(done) < 10
    monkeypatch.undo()


@pytest.mark.usefixtures("at_rest")
def test_a_step_that_fails_is_not_hidden(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step = llm.engine.step
    failures = iter([RuntimeError("out of order")])

    def failing() -> Progress:
        for failure in failures:
            raise failure
        return step()

    monkeypatch.setattr(llm.engine, "step", failing)
    with pytest.raises(RuntimeError, match="out of order"):
        llm.generate(["a", "b"], LONG)


@pytest.mark.usefixtures("at_rest")
def test_the_lower_priority_is_served_first(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    outputs = llm.generate(["a"] * 6, params, priority=[2, 2, 2, 2, 1, 1])
    first = [output.metrics.first_scheduled_time or 0.0 for output in outputs]
    assert max(first[4:]) < min(first[:4])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [12] * 6


@pytest.mark.usefixtures("at_rest")
@pytest.mark.parametrize("priority", [[1], [1, 2, 3], [1, 0.5], [True, 1]])
def test_priorities_are_whole_numbers_one_a_prompt(llm: LLM, priority: list[int]) -> None:
    with pytest.raises(RequestError, match="2 whole numbers"):
        llm.generate(["a", "b"], LONG, priority=priority)


@pytest.mark.usefixtures("at_rest")
def test_on_another_thread_ctrl_c_is_not_touched(llm: LLM) -> None:
    done: list[int] = []
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    thread = threading.Thread(target=lambda: done.append(len(llm.generate("a", params)[0].outputs[0].token_ids)))
    thread.start()
    until = time.monotonic() + 30
    while thread.is_alive() and time.monotonic() < until:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        time.sleep(0.001)
    thread.join()
    assert done == [5]
