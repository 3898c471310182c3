"""Keys of pages: equal for equal beginnings under equal circumstances, and for nothing else."""

from __future__ import annotations

import numpy as np
from ambidex.runtime.schedule.prefix import PageKeys, page_key, root_key
from hypothesis import given
from hypothesis import strategies as st

TOKENS = st.lists(st.integers(0, 3), max_size=12)


def keys(tokens: list[int], size: int = 3, root: bytes = b"root") -> list[bytes]:
    return PageKeys(root, size).of(np.array(tokens, dtype=np.int32))


def test_roots_differ_by_model_adapter_and_salt_and_by_where_one_ends_and_the_next_begins() -> None:
    triples = [
        ("m", "", ""), ("m", "a", ""), ("m", "", "a"), ("", "m", ""), ("", "", "m"), ("ma", "", ""), ("m\0", "", ""),
        ("m", "\0a", ""), ("ä", "", ""), ("", "ä", ""),
    ]  # fmt: skip
    assert len({root_key(*each) for each in triples}) == len(triples)


def test_only_full_pages_have_keys() -> None:
    assert [len(keys([1] * count)) for count in (0, 2, 3, 5, 6)] == [0, 0, 1, 1, 2]


def test_a_key_depends_on_its_parent_and_on_every_token() -> None:
    root, page = b"r" * 32, np.array([1, 2, 3], dtype=np.int32)
    assert len({page_key(root, page), page_key(b"s" * 32, page), page_key(root, page[[1, 0, 2]])}) == 3
    same_page = keys([1, 2, 3, 7, 7, 7]), keys([1, 2, 4, 7, 7, 7])
    assert same_page[0][1] != same_page[1][1]
    assert keys([1, 2, 3], root=b"other") != keys([1, 2, 3])


@given(TOKENS, TOKENS)
def test_keys_agree_as_far_as_whole_pages_do(one: list[int], other: list[int]) -> None:
    common = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    length = min(len(one), len(other)) if common is None else common
    agreeing = [a == b for a, b in zip(keys(one), keys(other), strict=False)]
    assert agreeing == [page < length // 3 for page in range(len(agreeing))]


@given(TOKENS, st.lists(st.integers(0, 12), max_size=5), st.integers(1, 5))
def test_keys_asked_for_bit_by_bit_are_those_of_the_whole(tokens: list[int], cuts: list[int], size: int) -> None:
    whole = np.array(tokens, dtype=np.int32)
    made = PageKeys(b"root", size)
    for cut in cuts:
        assert made.of(whole[:cut]) == keys(tokens[:cut], size)
    assert made.of(whole) == keys(tokens, size)


def test_a_view_with_gaps_has_the_keys_of_its_values() -> None:
    wide = np.arange(12, dtype=np.int32)
    assert PageKeys(b"root", 3).of(wide[::2]) == keys([0, 2, 4, 6, 8, 10])
