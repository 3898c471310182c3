"""The front against scripted progress: texts, stop strings, endings, log-probabilities, and who is aborted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from ambidex.runtime.embedded.location import folder
from ambidex.runtime.errors import RequestError
from ambidex.runtime.front import Front
from ambidex.runtime.messages import Ended, Limits, Progress, Started, Submission
from ambidex.runtime.prompt import encode
from ambidex.runtime.request import RequestOutput, SamplingParams
from ambidex.runtime.tokenizer import TextStream, Tokenizer
from hypothesis import given
from hypothesis import strategies as st

TOKENIZER = Tokenizer(folder())
EOS = 1
LIMITS = Limits(1000, 4096, frozenset({EOS}), 1 << 20, 100)


def new_front(tokenizer: Tokenizer = TOKENIZER) -> Front:
    return Front(tokenizer, LIMITS, lambda: 5.0)


def ask(front: Front, request_id: str = "a", **params: Any) -> Submission:
    return front.open(request_id, encode([7, 8], TOKENIZER), SamplingParams(**{"max_tokens": 500, **params}))


def progress(
    rows: Sequence[tuple[int, int]],
    ended: Sequence[Ended] = (),
    started: Sequence[int] = (),
    time_s: float = 6.0,
    k: int = 0,
) -> Progress:
    """rows: (number, token id). The likeliest tokens of a row are the id's successors."""
    ids = np.array([token for _, token in rows], np.int64)
    ranks = np.arange(k)
    return Progress(
        time_s, np.array([number for number, _ in rows], np.int64), ids, -ids.astype(np.float32) / 100,
        ids[:, None] + ranks, np.zeros((len(rows), k), np.float32) - ranks.astype(np.float32),
        tuple(Started(each, 3, 0.5) for each in started), tuple(ended),
    )  # fmt: skip


def one(outputs: list[RequestOutput]) -> RequestOutput:
    (output,) = outputs
    return output


def test_a_request_from_its_start_to_its_end() -> None:
    front = new_front()
    submission = ask(front, max_tokens=2)
    assert submission.prompt_ids.tolist() == [7, 8]
    ids = TOKENIZER.encode("import os")[-2:]
    output = one(front.take(progress([(submission.number, ids[0])], started=[submission.number]))[0])
    assert (output.finished, output.num_cached_tokens, len(front)) == (False, 3, 1)
    outputs, aborted = front.take(
        progress([(submission.number, ids[1])], [Ended(submission.number, "length")], time_s=8.0)
    )
    assert one(outputs) is output
    assert aborted == []
    assert (output.finished, output.outputs[0].finish_reason, len(front)) == (True, "length", 0)
    assert output.outputs[0].text == TOKENIZER.decode(ids)
    assert output.outputs[0].token_ids == ids
    times = output.metrics
    assert (times.arrival_time, times.first_scheduled_time) == (5, 0.5)
    assert (times.first_token_time, times.finished_time) == (6, 8)


@given(st.data())
def test_stop_strings_are_those_of_the_whole_text(data: st.DataObject) -> None:
    """The text ends where the first stop string is complete, whatever the tokens; what is shown is never taken back."""
    ids = data.draw(
        st.lists(st.sampled_from(TOKENIZER.encode("a b aab: ab\n\nclass ü€ abc():")), min_size=1, max_size=14)
    )
    stops = data.draw(st.lists(st.text("ab :\nü", min_size=1, max_size=4), min_size=1, max_size=4, unique=True))
    kept = data.draw(st.booleans())
    stream = TOKENIZER.stream()
    pieces = [stream.push(token) for token in ids]
    whole = wanted = "".join(pieces)
    reason: str | None = None
    for count in range(1, len(pieces) + 1):
        text = "".join(pieces[:count])
        found = min(((text.find(stop), stop) for stop in stops if stop in text), default=None)
        if found:
            wanted, reason = text[: found[0] + len(found[1]) * kept], found[1]
            break
    front = new_front()
    number = ask(front, stop=stops, include_stop_str_in_output=kept).number
    shown, aborted, output = "", [], front.output("a")
    for index, token in enumerate(ids):
        ended = [Ended(number, "length")] if index == len(ids) - 1 else []
        _, more = front.take(progress([(number, token)], ended))
        aborted += more
        assert output.outputs[0].text.startswith(shown)
        assert whole.startswith(output.outputs[0].text)
        shown = output.outputs[0].text
    completion = output.outputs[0]
    assert output.finished
    assert completion.text == wanted
    assert (completion.finish_reason, completion.stop_reason) == (("stop", reason) if reason else ("length", None))
    late = len(ids) - len(completion.token_ids)
    assert aborted == ([number] if reason and late else [])


def test_no_stop_string_ends_before_min_tokens() -> None:
    front = new_front()
    ids = TOKENIZER.encode("x = 1\nx = 2\nx = 3\n")
    number = ask(front, stop="\n", min_tokens=len(ids) - 1).number
    for token in ids[:-1]:
        front.take(progress([(number, token)]))
        assert not front.output("a").finished
    output = one(front.take(progress([(number, ids[-1])]))[0])
    assert output.outputs[0].stop_reason == "\n"
    assert output.outputs[0].text == "x = 1\nx = 2\nx = 3"


@pytest.mark.parametrize(
    ("params", "stop_id", "said"),
    [
        ({}, EOS, None),
        ({"stop_token_ids": [EOS]}, EOS, EOS),
        ({"stop_token_ids": [300]}, 300, 300),
        ({"stop_token_ids": [300]}, EOS, None),
    ],
)
def test_a_stop_token_is_named_if_the_request_named_it(params: dict[str, Any], stop_id: int, said: int | None) -> None:
    front = new_front()
    number = ask(front, **params).number
    front.take(progress([(number, 310)]))
    text = front.output("a").outputs[0].text
    completion = one(front.take(progress([(number, stop_id)], [Ended(number, "stop", stop_id)]))[0]).outputs[0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", said)
    assert completion.token_ids == [310, stop_id]
    assert completion.text == text, "a stop token adds no text"


@pytest.mark.parametrize(
    ("ended", "reason", "stop_reason"),
    [
        (Ended(0, "abort", message="timeout"), "abort", "timeout"),
        (Ended(0, "error", message="not numbers"), "error", None),
    ],
)
def test_ends_that_come_without_a_token(ended: Ended, reason: str, stop_reason: str | None) -> None:
    front = new_front()
    ask(front)
    outputs, aborted = front.take(progress([], [ended]))
    completion = one(outputs).outputs[0]
    assert (completion.finish_reason, completion.stop_reason, completion.message) == (
        reason,
        stop_reason,
        ended.message,
    )
    assert outputs[0].metrics.first_token_time is None
    assert (outputs[0].finished, aborted, len(front)) == (True, [], 0)


def test_completions_of_a_request_end_one_by_one() -> None:
    front = new_front()
    first = ask(front, n=3).number
    second = ask(front, "b").number
    assert second == first + 3
    outputs, _ = front.take(progress([(first, 300), (first + 1, 301), (second, 302)], [Ended(first, "length")]))
    assert [(each.request_id, each.finished) for each in outputs] == [("a", False), ("b", False)]
    output = one(front.take(progress([(first + 1, 303)], [Ended(first + 1, "length")]))[0])
    assert [each.token_ids for each in output.outputs] == [[300], [301, 303], []]
    assert front.abort("a") == [first + 2]
    assert output.finished
    assert [each.finish_reason for each in output.outputs] == ["length", "length", "abort"]
    outputs, _ = front.take(progress([(first + 2, 300), (second, 301)], [Ended(first + 2, "abort")]))
    assert [each.request_id for each in outputs] == ["b"], "what comes late is nobody's"
    assert front.abort("a") == []


class Failing(Tokenizer):
    """Cannot decode token 666."""

    def stream(self, *, skip_special_tokens: bool = True) -> Any:
        inner = super().stream(skip_special_tokens=skip_special_tokens)

        class Stream(TextStream):
            def __init__(self) -> None:
                pass

            def push(self, token_id: int) -> str:
                if token_id == 666:
                    raise BaseException("PanicException:\n index out of range")  # as pyo3's panics: no Exception
                return inner.push(token_id)

        return Stream()


def test_a_tokenizer_that_fails_ends_one_completion_alone() -> None:
    front = new_front(Failing(folder()))
    first, second = ask(front, n=2).number, ask(front, "b").number
    rows = [(first, 310), (first + 1, 310), (second, 310)]
    front.take(progress(rows))
    outputs, aborted = front.take(progress([(first, 666), (first + 1, 311), (second, 312)]))
    assert aborted == [first]
    failed, fine = outputs[0].outputs
    assert (failed.finish_reason, failed.message) == (
        "error", "token 666 cannot be decoded: PanicException: index out of range",
    )  # fmt: skip
    assert failed.text == TOKENIZER.decode([310])
    assert fine.finish_reason is None
    assert (fine.text, outputs[1].outputs[0].text) == (TOKENIZER.decode([310, 311]), TOKENIZER.decode([310, 312]))


def test_without_detokenize_the_tokenizer_is_not_asked() -> None:
    front = new_front(Failing(folder()))
    number = ask(front, detokenize=False, logprobs=1).number
    completion = one(front.take(progress([(number, 666)], [Ended(number, "length")], k=1))[0]).outputs[0]
    assert (completion.token_ids, completion.text, completion.finish_reason) == ([666], "", "length")
    assert completion.logprobs is not None
    assert completion.logprobs[0][666].decoded_token is None
    with pytest.raises(RequestError, match="detokenize=False"):
        SamplingParams(stop="x", detokenize=False)


def test_logprobs_are_each_completions_own() -> None:
    front = new_front()
    none, zero, two = (ask(front, name, logprobs=count).number for name, count in (("a", None), ("b", 0), ("c", 2)))
    outputs, _ = front.take(progress([(none, 300), (zero, 310), (two, 320)], k=4))
    entries = [each.outputs[0].logprobs for each in outputs]
    assert entries[0] is None
    assert entries[1] is not None
    assert entries[2] is not None
    assert {token: value.logprob for token, value in entries[1][0].items()} == {310: pytest.approx(-3.1)}
    assert {token: value.logprob for token, value in entries[2][0].items()} == {320: pytest.approx(-3.2), 321: -1.0}
    assert entries[2][0][321].decoded_token == TOKENIZER.token(321)
    front.take(progress([(two, 330)], k=4))
    assert outputs[2].outputs[0].cumulative_logprob == pytest.approx(-3.2 - 3.3)


def test_a_request_id_is_taken_while_it_runs() -> None:
    front = new_front()
    ask(front)
    with pytest.raises(RequestError, match="'a' is running"):
        ask(front)
    front.abort("a")
    ask(front)


@given(st.data())
def test_nothing_is_left_whatever_happens(data: st.DataObject) -> None:
    """Any order of tokens, ends and aborts: each request ends once, and the front forgets it."""
    front = new_front()
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    submissions = [ask(front, str(index), n=size, stop=["b"]) for index, size in enumerate(sizes)]
    live = {
        number
        for each, size in zip(submissions, sizes, strict=True)
        for number in range(each.number, each.number + size)
    }
    outputs = [front.output(str(index)) for index in range(len(sizes))]
    finished: list[str] = []
    for _ in range(data.draw(st.integers(0, 6))):
        if not live:
            break
        drawn = data.draw(st.lists(st.sampled_from(sorted(live)), unique=True, max_size=5))
        ends = data.draw(st.lists(st.sampled_from(sorted(live)), unique=True, max_size=3))
        rows = [(number, data.draw(st.sampled_from(TOKENIZER.encode("a b c")))) for number in drawn]
        touched, aborted = front.take(progress(rows, [Ended(number, "length") for number in ends]))
        finished += [each.request_id for each in touched if each.finished]
        assert not set(aborted) & set(ends)
        assert set(aborted) <= live
        live -= {*aborted, *ends}
        if data.draw(st.booleans()):
            request_id = data.draw(st.sampled_from([each.request_id for each in outputs]))
            was_running = not outputs[int(request_id)].finished
            numbers = front.abort(request_id)
            assert bool(numbers) == was_running
            assert set(numbers) <= live
            live -= set(numbers)
            finished += [request_id] * was_running
    touched, _ = front.take(progress([], [Ended(number, "length") for number in live]))
    finished += [each.request_id for each in touched]
    assert len(front) == 0
    assert sorted(finished) == sorted(each.request_id for each in outputs)
    assert all(each.finish_reason for output in outputs for each in output.outputs)


@pytest.mark.parametrize(
    "asked",
    [{"priority": 1.5}, {"priority": True}, {"priority": 101}, {"timeout_s": "5"}, {"salt": None}, {"salt": "\ud800"}],
)
def test_what_the_wire_could_not_carry_is_refused_alone(asked: dict[str, Any]) -> None:
    front = Front(Tokenizer(folder()), LIMITS, lambda: 0.0)
    with pytest.raises(RequestError):
        front.open("bad", encode([5, 6], front.tokenizer), SamplingParams(), **asked)
    assert len(front) == 0
