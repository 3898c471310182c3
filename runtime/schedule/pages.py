"""The page pool of a state group: which pages are free, held, or kept for what they contain. Integers and keys only.

A page is *held* by as many requests as read it, *idle* when nobody holds it but its content has a key, else *free*.
Idle pages are found again by their key until their place is needed: the least recently used goes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice


class PagePool:
    """`num_pages` pages. What was given back last is taken first, then what nobody ever had, in order; idle ones only
    when none is free. What is kept of a page begins with its first use, so that a large pool costs nothing by itself.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free: list[int] = []  # those that were used before
        self._idle: dict[int, None] = {}  # in order of use
        self._holders: list[int] = []
        self._keys: list[bytes | None] = []
        self._by_key: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that `take` can give."""
        return len(self._free) + len(self._idle) + self._num_unused

    @property
    def _num_unused(self) -> int:
        return self.num_pages - len(self._holders)

    @property
    def num_kept(self) -> int:
        """Pages whose content can be found by key."""
        return len(self._by_key)

    def holders(self, page: int) -> int:
        return self._holders[page] if page < len(self._holders) else 0

    def take(self, count: int) -> list[int]:
        """Errors: MemoryError if fewer than `count` can be given (nothing is taken then)."""
        if count > self.num_free:
            raise MemoryError(f"{count} pages wanted, {self.num_free} of {self.num_pages} free")
        unused = min(max(count - len(self._free), 0), self._num_unused)
        if count > unused + len(self._free):
            self.forget(list(islice(self._idle, count - unused - len(self._free))))
        taken = [self._free.pop() for _ in range(count - unused)]
        for page in taken:
            self._holders[page] = 1
        return [*taken, *self._first_used(unused)]

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each of these pages, which somebody holds or whose content is kept."""
        for page in pages:
            if self._holders[page] == 0:
                del self._idle[page]
            self._holders[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """One holder fewer, last page first: the end of a prefix is less likely to be asked for than its beginning."""
        for page in reversed(pages):
            assert self._holders[page] > 0, "a page was given back that nobody holds"
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._let_go(page)

    def keep(self, page: int, key: bytes) -> None:
        """A held, full page can from now on be found by its key; the first page of a key stays the one."""
        if key not in self._by_key and self._keys[page] is None:
            self._by_key[key] = page
            self._keys[page] = key

    def forget(self, pages: Iterable[int]) -> None:
        """These pages are not found by key any more."""
        for page in pages:
            key = self._keys[page]
            if key is not None:
                del self._by_key[key]
                self._keys[page] = None
                if self._holders[page] == 0:
                    del self._idle[page]
                    self._free.append(page)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The pages of the longest run of known keys, from the first on."""
        found: list[int] = []
        for key in keys:
            page = self._by_key.get(key)
            if page is None:
                break
            found.append(page)
        return found

    def _first_used(self, count: int) -> range:
        begin = len(self._holders)
        self._holders += [1] * count
        self._keys += [None] * count
        return range(begin, begin + count)

    def _let_go(self, page: int) -> None:
        if self._keys[page] is None:
            self._free.append(page)
        else:
            self._idle[page] = None


def counts(pools: Iterable[PagePool]) -> tuple[int, int, int]:
    """Free, kept and all pages."""
    found = [(each.num_free, each.num_kept, each.num_pages) for each in pools]
    return sum(free for free, _, _ in found), sum(kept for _, kept, _ in found), sum(pages for _, _, pages in found)
