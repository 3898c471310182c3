"""Pages lent to a transfer and received from one: nothing is put out while it is read, what came is found."""

from __future__ import annotations

import numpy as np
import pytest
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.schedule import moves
from ambidex.runtime.schedule.admission import Admission
from ambidex.runtime.schedule.pages import PagePool
from ambidex.runtime.schedule.prefix import root_key
from ambidex.runtime.schedule.request import Scheduled

_SIZES = {"kv": 4}


def admission(num_pages: int) -> Admission:
    return Admission({"kv": PagePool(num_pages)}, _SIZES, prefix_caching=True)


def request(length: int, first: int = 0) -> Scheduled:
    tokens = np.arange(first, first + length, dtype=np.int32)
    root = root_key("m", "", "")
    return Scheduled(0, tokens, length, SamplingParams(), seed=0, max_length=length + 9, rank=(0.0, 0), root=root)


def computed(where: Admission, length: int) -> None:
    """A prompt that was computed there and has left."""
    one = request(length)
    assert where.place(one, 0) is not None
    where.keep(one, one.tokens)
    where.give_back(one)


def test_names_are_those_of_whole_pages() -> None:
    assert [len(moves.content(_SIZES, request(11), n)["kv"]) for n in (0, 3, 4, 11)] == [0, 0, 1, 2]


def test_what_is_lent_stays_until_it_is_taken_back() -> None:
    source = admission(4)
    computed(source, 11)
    pool = source.pools["kv"]
    keys = moves.content(_SIZES, request(11), 11)
    lent = moves.lend(source, keys)
    assert len(lent["kv"]) == 2
    assert pool.num_free == 2, "the page that is not full, and the one that nobody had"
    pool.give_back(pool.take(2))
    assert list(pool.find(keys["kv"])) == list(lent["kv"])
    moves.take_back(source, lent)
    assert pool.num_free == 4
    pool.take(4)
    assert pool.find(keys["kv"]) == []


def brought(target: Admission, keys: moves.Keys) -> list[int]:
    """The pages of a transfer that has come and is written."""
    written = moves.receive(target, keys)
    moves.received(target, written)
    return [page for page, _ in written["kv"]]


def test_what_is_received_is_found_by_the_request_and_computed_no_more() -> None:
    target = admission(4)
    one = request(11)
    pages = brought(target, moves.content(_SIZES, one, 11))
    assert len(pages) == 2
    assert target.pools["kv"].num_free == 4, "kept, and held by nobody"
    placed = target.place(one, 0)
    assert placed is not None
    assert placed.num_computed == 8
    assert one.pages["kv"][:2] == pages


def test_what_is_not_written_yet_is_neither_found_nor_taken_by_others() -> None:
    target = admission(4)
    keys, pool = moves.content(_SIZES, request(11), 11), target.pools["kv"]
    written = moves.receive(target, keys)
    assert (pool.find(keys["kv"]), pool.num_free) == ([], 2)
    others = pool.take(2)
    assert set(others).isdisjoint(page for page, _ in written["kv"])
    moves.received(target, written)
    assert (pool.find(keys["kv"]), pool.num_free) == ([page for page, _ in written["kv"]], 2)


def test_what_is_there_already_is_not_written_again() -> None:
    target = admission(8)
    computed(target, 5)
    before = target.pools["kv"].find(moves.content(_SIZES, request(5), 5)["kv"])
    pages = brought(target, moves.content(_SIZES, request(11), 11))
    assert len(pages) == 1
    assert set(pages).isdisjoint(before)
    assert len(target.pools["kv"].find(moves.content(_SIZES, request(11), 11)["kv"])) == 2
    assert target.pools["kv"].num_free == 8, "what was there is held by nobody now, either"


@pytest.mark.parametrize("held", [2, 3, 4])
def test_without_room_as_much_is_received_as_fits_from_the_beginning(held: int) -> None:
    target = admission(4)
    target.pools["kv"].take(held)
    keys = moves.content(_SIZES, request(11), 11)
    assert len(brought(target, keys)) == min(4 - held, 2)
    assert len(target.pools["kv"].find(keys["kv"])) == min(4 - held, 2)


def test_what_is_kept_behind_a_gap_is_not_written_either() -> None:
    """Its beginning was put out: a second page of that name would be nobody's, and others could take it."""
    target = admission(8)
    computed(target, 12)
    pool = target.pools["kv"]
    names = moves.content(_SIZES, request(13), 12)["kv"]
    kept = pool.find(names)
    pool.forget(kept[:1])
    pages = brought(target, moves.content(_SIZES, request(13), 12))
    assert len(pages) == 1
    assert pool.find(names) == [*pages, *kept[1:]]


def test_others_do_not_find_it() -> None:
    target = admission(8)
    brought(target, moves.content(_SIZES, request(11), 11))
    assert target.pools["kv"].find(moves.content(_SIZES, request(11, first=1), 11)["kv"]) == []
