"""The page pool: who holds what, what is kept, and what goes first when the place is needed."""

from __future__ import annotations

import pytest
from ambidex.runtime.schedule.pages import PagePool


def kept(pool: PagePool, *keys: bytes) -> list[int]:
    """Pages that were computed under these keys and given back together."""
    pages = pool.take(len(keys))
    for page, key in zip(pages, keys, strict=True):
        pool.keep(page, key)
    pool.give_back(pages)
    return pages


def test_a_pool_refuses_more_than_it_has_and_takes_nothing() -> None:
    pool = PagePool(3)
    held = pool.take(2)
    with pytest.raises(MemoryError, match="2 pages wanted, 1 of 3 free"):
        pool.take(2)
    assert pool.num_free == 1
    pool.give_back(held)
    assert pool.num_free == 3


def test_a_page_is_free_when_its_last_holder_has_left() -> None:
    pool = PagePool(2)
    (page,) = pool.take(1)
    pool.share([page])
    assert pool.holders(page) == 2
    pool.give_back([page])
    assert pool.num_free == 1
    pool.give_back([page])
    assert (pool.num_free, pool.holders(page)) == (2, 0)


def test_what_nobody_holds_cannot_be_given_back() -> None:
    pool = PagePool(1)
    pages = pool.take(1)
    pool.give_back(pages)
    with pytest.raises(AssertionError, match="nobody holds"):
        pool.give_back(pages)


def test_free_pages_go_before_kept_ones() -> None:
    pool = PagePool(4)
    pages = kept(pool, b"1", b"2")
    assert not set(pool.take(2)) & set(pages)
    assert pool.find([b"1", b"2"]) == pages


def test_the_least_recently_used_goes_first_and_of_one_request_the_end_before_the_beginning() -> None:
    pool = PagePool(4)
    older, newer = kept(pool, b"a1", b"a2"), kept(pool, b"b1", b"b2")
    assert pool.take(1) == [older[1]]
    assert pool.find([b"a1", b"a2"]) == older[:1]
    assert pool.take(1) == [older[0]]
    assert pool.take(1) == [newer[1]]


def test_use_makes_a_kept_page_the_last_to_go() -> None:
    pool = PagePool(3)
    (first,), (second,), (third,) = (kept(pool, key) for key in (b"1", b"2", b"3"))
    pool.share([first])
    pool.give_back([first])
    assert [pool.take(1), pool.take(1), pool.take(1)] == [[second], [third], [first]]


def test_what_is_held_is_never_evicted() -> None:
    pool = PagePool(2)
    first, _ = kept(pool, b"1", b"2")
    pool.share([first])
    pool.take(1)
    assert pool.num_free == 0
    with pytest.raises(MemoryError):
        pool.take(1)
    assert pool.find([b"1"]) == [first]


def test_an_evicted_page_is_not_found_and_is_kept_anew_under_its_new_content() -> None:
    pool = PagePool(1)
    (page,) = kept(pool, b"old")
    assert pool.take(1) == [page]
    assert pool.find([b"old"]) == []
    pool.keep(page, b"new")
    assert (pool.find([b"new"]), pool.num_kept) == ([page], 1)


def test_the_first_page_of_a_key_stays_the_one() -> None:
    pool = PagePool(3)
    one, other = pool.take(2)
    pool.keep(one, b"k")
    pool.keep(other, b"k")
    assert pool.find([b"k"]) == [one]
    pool.give_back([other])
    assert pool.num_kept == 1
    assert pool.take(1) == [other], "it was free, not kept"


def test_found_is_the_longest_run_from_the_first_on() -> None:
    pool = PagePool(3)
    pages = kept(pool, b"1", b"2", b"3")
    assert pool.find([b"1", b"2", b"x", b"3"]) == pages[:2]
    assert pool.find([b"x", b"1"]) == []


@pytest.mark.parametrize("held", [True, False])
def test_what_is_forgotten_is_free_as_soon_as_nobody_holds_it(held: bool) -> None:
    pool = PagePool(2)
    (page,) = kept(pool, b"1")
    pool.share([page] if held else [])
    pool.forget([page])
    assert (pool.find([b"1"]), pool.num_kept) == ([], 0)
    pool.give_back([page] if held else [])
    assert sorted(pool.take(2)) == [0, 1]
