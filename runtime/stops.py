"""Stop strings in a text that grows: which one ends it, and how much of its end may yet become one.

The cost of a new character does not depend on how long the stop strings are. What is held back is the longest end of
the text that begins a stop string; where it starts only moves forward, and every stop string that is completed by new
characters starts there or later, so nothing before it is looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopSearch:
    """stops: the strings, none of them empty. held_from: where the end that is held back starts, the text's length if
    none is: the first place p at which text[p:] begins a stop string and is not all of it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.held_from = 0
        self._stops = tuple(dict.fromkeys(stops))
        self._longest = max(map(len, self._stops))
        self._by_first: dict[str, tuple[str, ...]] = {}
        for stop in self._stops:
            self._by_first[stop[0]] = (*self._by_first.get(stop[0], ()), stop)

    def push(self, text: str, num_new: int) -> tuple[int, str] | None:
        """The text with `num_new` more characters: the stop string that ends in these and begins first (the shortest of
        those), with its place."""
        old, begin = len(text) - num_new, self.held_from
        self._hold(text)
        found = [(text.find(stop, max(begin, old + 1 - len(stop))), stop) for stop in self._stops]
        return min(((start, stop) for start, stop in found if start >= 0), default=None)

    def _hold(self, text: str) -> None:
        place, end = max(self.held_from, len(text) + 1 - self._longest), len(text)
        while place < end and not self._begins(text, place):
            place += 1
        self.held_from = min(place, end)

    def _begins(self, text: str, place: int) -> bool:
        """Whether what stands from `place` on begins a stop string, and is not all of it."""
        candidates = self._by_first.get(text[place])
        if candidates is None:
            return False
        rest = text[place:]
        return any(len(stop) > len(rest) and stop.startswith(rest) for stop in candidates)
