"""Pages that leave for another engine, and pages that come from one: the scheduler's part of a transfer of KV.

What moves is named by content, as everything kept is (`prefix.py`): an engine of the same model lends the pages that it
keeps of a prompt, and another one takes pages for the same content and finds them from then on as if it had computed
them. Only whole pages have names, so the few tokens behind a prompt's last full page are computed again by whoever
receives. Keys are by state group, first page first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .admission import Admission
from .request import Scheduled

Keys = Mapping[str, Sequence[bytes]]
Pages = Mapping[str, Sequence[int]]
Written = Mapping[str, Sequence[tuple[int, bytes]]]


def content(page_sizes: Mapping[str, int], request: Scheduled, num_tokens: int) -> Keys:
    """The names of the whole pages of a request's first `num_tokens` tokens."""
    return {group: request.keys(size, request.tokens[:num_tokens]) for group, size in page_sizes.items()}


def lend(admission: Admission, keys: Keys) -> Pages:
    """What is kept of this content, from its beginning on; it stays where it is until `take_back`."""
    pages = {group: admission.pools[group].find(names) for group, names in keys.items()}
    for group, found in pages.items():
        admission.pools[group].share(found)
    return pages


def take_back(admission: Admission, pages: Pages) -> None:
    """The transfer has read them."""
    for group, lent in pages.items():
        admission.pools[group].give_back(lent)


def receive(admission: Admission, keys: Keys) -> Written:
    """The pages that a transfer is to write, each with its name, held and not found until `received`; what is there
    already of this content is left out. As many as there is room for: a request whose pages are not all found computes
    the rest."""
    written: dict[str, list[tuple[int, bytes]]] = {}
    for group, names in keys.items():
        pool = admission.pools[group]
        found = pool.find(names)
        pool.share(found)  # so that none of them gives way to the others
        missing = [name for name in names[len(found) :] if not pool.find([name])]
        written[group] = list(zip(pool.take(min(len(missing), pool.num_free)), missing, strict=False))
        pool.give_back(found)
    return written


def received(admission: Admission, written: Written) -> None:
    """The transfer has written them: they are found from now on, and idle until somebody does."""
    for group, pages in written.items():
        pool = admission.pools[group]
        for page, name in pages:
            pool.keep(page, name)
        pool.give_back([page for page, _ in pages])
