"""The page pool of a state group: which pages are free, which are held. Integers only."""

from __future__ import annotations


class PagePool:
    """`num_pages` pages; `take` gives distinct free ones, `give_back` returns them. The lowest free page goes first."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._held: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Errors: MemoryError if fewer than `count` are free (nothing is taken then)."""
        if count > len(self._free):
            raise MemoryError(f"{count} pages wanted, {len(self._free)} of {self.num_pages} free")
        taken = [self._free.pop() for _ in range(count)]
        self._held.update(taken)
        return taken

    def give_back(self, pages: list[int]) -> None:
        assert self._held.issuperset(pages), "a page was given back that nobody holds"
        self._held.difference_update(pages)
        self._free.extend(reversed(pages))
