"""Stop strings, against what they mean: the whole text is searched anew after every piece."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from ambidex.runtime.stops import StopSearch
from hypothesis import example, given
from hypothesis import strategies as st

PIECES = st.lists(st.text("ab", max_size=5), max_size=20)
STOPS = st.lists(st.text("ab", min_size=1, max_size=7), min_size=1, max_size=5)


def ended(text: str, num_new: int, stops: list[str]) -> tuple[int, str] | None:
    """Of all places at which a stop string ends in the new characters the first, of those there the shortest."""
    old = len(text) - num_new
    return min(
        ((place, stop) for stop in stops for place in range(len(text))
         if text.startswith(stop, place) and place + len(stop) > old),
        default=None,
    )  # fmt: skip


def held_back(text: str, stops: list[str]) -> int:
    """The longest end of the text that begins a stop string and is not all of it."""
    return max(
        (length for stop in stops for length in range(len(stop)) if length <= len(text)
         and text.endswith(stop[:length])),
        default=0,
    )  # fmt: skip


@given(STOPS, PIECES)
@example(["abb", "b"], ["ab", "b"])
@example(["aab", "a"], ["aa", "", "ab"])
@example(["ab"], ["aaaaaaaaaaaa", "b"])
def test_every_piece_finds_what_a_search_of_the_whole_text_finds(stops: list[str], pieces: list[str]) -> None:
    """What was found before is passed over, as `min_tokens` does: the text goes on behind it."""
    search, text = StopSearch(stops), ""
    for piece in pieces:
        text += piece
        assert search.push(text, len(piece)) == ended(text, len(piece), stops)
        assert search.held_from == len(text) - held_back(text, stops)


@given(STOPS, PIECES)
def test_what_is_held_back_only_moves_forward(stops: list[str], pieces: list[str]) -> None:
    search, text, places = StopSearch(stops), "", [0]
    for piece in pieces:
        text += piece
        search.push(text, len(piece))
        places.append(search.held_from)
    assert all(before <= after for before, after in pairwise(places))


def median_us(search: StopSearch, piece: str, count: int) -> float:
    text, times = "", []
    for _ in range(count):
        text += piece
        begun = time.perf_counter()
        search.push(text, len(piece))
        times.append(time.perf_counter() - begun)
    return 1e6 * sorted(times)[count // 2]


@pytest.mark.parametrize("piece", ["wxyz", "aaaa", "abab"])
def test_long_stop_strings_cost_no_more_than_short_ones(piece: str) -> None:
    """16 of 256 characters, beside 16 of 4: searched anew each time they cost a hundred times as much."""
    long = [f"{index:x}" + "ab" * 127 + "!" for index in range(16)]
    short = [f"{index:x}ab!" for index in range(16)]
    assert median_us(StopSearch(long), piece, 400) < 8 * median_us(StopSearch(short), piece, 400)
