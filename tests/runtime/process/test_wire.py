"""The wire: what goes in comes out, however it is cut; what is no message is refused and allocates nothing."""

from __future__ import annotations

import struct
import time
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from ambidex.runtime.messages import Ended, Progress, Started, Submission
from ambidex.runtime.process import wire
from ambidex.runtime.process.numbering import NUMBER_BITS, by_client, engine_number
from ambidex.runtime.request import SamplingParams
from hypothesis import given
from hypothesis import strategies as st

INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)


@st.composite
def progresses(draw: st.DrawFn, numbers: st.SearchStrategy[int]) -> Progress:
    size, width = draw(st.integers(0, 5)), draw(st.integers(0, 3))
    drawn = draw(st.lists(numbers, min_size=size + 4, max_size=size + 4))
    ids = draw(st.lists(INTEGERS, min_size=size, max_size=size))
    return Progress(
        draw(st.floats(allow_nan=False)), np.array(drawn[:size], np.int64), np.array(ids, np.int64),
        np.arange(size, dtype=np.float32), np.full((size, width), 3, np.int64), np.full((size, width), 0.5, np.float32),
        tuple(Started(each, 7, 0.25) for each in drawn[size : size + draw(st.integers(0, 2))]),
        tuple(Ended(each, "error", message="why") for each in drawn[size + 2 : size + 2 + draw(st.integers(0, 2))]),
    )  # fmt: skip


def plain(value: Any) -> Any:
    """For comparison: arrays as lists with their dtype."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tolist()
    if isinstance(value, msgspec.Struct):
        return type(value), {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    return [plain(each) for each in value] if isinstance(value, (tuple, list)) else value


@given(st.lists(progresses(st.integers(0, 1 << 40)), max_size=4), st.lists(st.integers(1, 50), min_size=1))
def test_messages_arrive_whole_however_they_are_cut(sent: list[Progress], cuts: list[int]) -> None:
    data = b"".join(wire.frame(wire.Progressed(each)) for each in sent)
    frames: wire.Frames[wire.FromEngine] = wire.Frames(wire.FromEngine)
    arrived: list[Any] = []
    while data:
        cut = cuts[len(arrived) % len(cuts)]
        arrived += frames.feed(data[:cut])
        data = data[cut:]
    assert plain(arrived) == plain([wire.Progressed(each) for each in sent])


def test_a_submission_keeps_every_field() -> None:
    params = SamplingParams(
        n=3, temperature=0.5, seed=-(1 << 63), stop=["a", "ü"], stop_token_ids=[7], allowed_token_ids=[1, 2],
        logprobs=4, detokenize=True, min_tokens=2, top_k=-1,
    )  # fmt: skip
    sent = Submission(
        number=5, prompt_ids=np.arange(9), params=params, priority=-3, timeout_s=0.25, salt="tenant"
    )  # fmt: skip
    frames: wire.Frames[wire.FromClient] = wire.Frames(wire.FromClient)
    (arrived,) = frames.feed(bytes(wire.frame(wire.Submit(sent))))
    assert plain(arrived) == plain(wire.Submit(sent))


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused_or_a_message(body: bytes) -> None:
    frames: wire.Frames[Any] = wire.Frames(wire.FromClient)
    try:
        arrived: list[Any] = list(frames.feed(struct.pack("<I", len(body)) + body))
    except wire.ProtocolError:
        return
    assert all(isinstance(each, wire.Message) for each in arrived)


@given(st.data())
def test_a_spoilt_submission_never_crashes(data: st.DataObject) -> None:
    sent = Submission(number=5, prompt_ids=np.arange(4), params=SamplingParams(stop="x", logprobs=2))
    body = wire.frame(wire.Submit(sent))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(4, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        arrived: list[Any] = list(wire.Frames(wire.FromClient).feed(bytes(body)))
    except wire.ProtocolError:
        return
    assert all(isinstance(each, wire.Message) for each in arrived)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (["Submit", 5], "cannot be read"),
        (["System", "rm"], "cannot be read"),
        (["Abort", ["x"]], "cannot be read"),
        (["Ping", "more"], "cannot be read"),
        (["Submit", {"number": 1, "params": {}, "prompt_ids": [[1 << 40], b"12345678"]}], "shape"),
        (["Submit", {"number": 1, "params": {}, "prompt_ids": [[-1, -1], b"12345678"]}], "shape"),
        (["Submit", {"number": 1, "params": {"n": 99}, "prompt_ids": [[0], b""]}], "n is 99"),
        (["Submit", {"number": 1, "params": {}, "prompt_ids": [[1 << 60] * 1_000_000, b""]}], "at most 4 axes"),
        (["Submit", {"number": 1, "params": {}, "prompt_ids": 3}], "cannot be read"),
        (["Submit", {"number": 1, "params": {}, "prompt_ids": {"a": {}}}], "cannot be read"),
        (["Submit", {"number": 1, "params": {"allowed_token_ids": [0] * 1_048_577}, "prompt_ids": [[0], b""]}], "576"),
        (["Abort", [1] * (wire.MAX_ABORTED + 1)], "cannot be read"),
        (["Abort", [1.5]], "cannot be read"),
        ([], "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_message_is_refused(body: list[Any], said: str) -> None:
    packed = msgspec.msgpack.encode(body)
    begun = time.perf_counter()
    with pytest.raises(wire.ProtocolError, match=said):
        list(wire.Frames(wire.FromClient).feed(struct.pack("<I", len(packed)) + packed))
    assert time.perf_counter() - begun < 2, "other clients wait meanwhile"


@pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_a_length_that_a_message_claims_allocates_nothing(claim: bytes) -> None:
    """An array, a map, and bytes of 2^32 - 1 entries."""
    for begin in (b"\x92\xa5Abort", b"\x92\xa6Submit\x83\xa6number\x01\xa6params\x80\xaaprompt_ids"):
        body = begin + claim
        tracemalloc.start()
        with pytest.raises(wire.ProtocolError, match="cannot be read"):
            list(wire.Frames(wire.FromClient).feed(struct.pack("<I", len(body)) + body))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


def test_a_frame_beyond_the_bound_is_refused_by_its_length_alone() -> None:
    with pytest.raises(wire.ProtocolError, match="67,108,865 bytes"):
        list(wire.Frames(wire.FromClient).feed(struct.pack("<I", wire.MAX_FRAME_BYTES + 1)))
    with pytest.raises(wire.ProtocolError, match="at most"):
        wire.frame(wire.Failed("x" * (wire.MAX_FRAME_BYTES + 1)))


@given(progresses(st.builds(engine_number, st.integers(1, 3), st.integers(0, 9))))
def test_every_client_gets_its_own_part_and_all_of_it(progress: Progress) -> None:
    seen: list[Any] = []
    for serial, part in by_client(progress):
        assert len(part.numbers) or part.started or part.ended
        assert part.time_s == progress.time_s
        rows = zip(part.numbers.tolist(), part.ids.tolist(), part.logprobs.tolist(), part.top_ids.tolist(), strict=True)
        seen += [(engine_number(serial, number), *map(str, rest)) for number, *rest in rows]
        events: list[Started | Ended] = [*part.started, *part.ended]
        seen += [(engine_number(serial, each.number), type(each).__name__) for each in events]
    rows = zip(
        *(column.tolist() for column in (progress.numbers, progress.ids, progress.logprobs, progress.top_ids)),
        strict=True,
    )
    wanted: list[Any] = [(number, *map(str, rest)) for number, *rest in rows]
    everyone: list[Started | Ended] = [*progress.started, *progress.ended]
    wanted += [(each.number, type(each).__name__) for each in everyone]
    assert sorted(seen) == sorted(wanted)
    assert all(number >> NUMBER_BITS for number, *_ in seen)
