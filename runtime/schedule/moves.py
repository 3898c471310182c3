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


def receive(admission: Admission, keys: Keys) -> Pages:
    """The pages that a transfer writes, with what is there already of this content left out; found from now on. As many
    as there is room for: a request whose pages are not all found computes the rest."""
    written: dict[str, Sequence[int]] = {}
    for group, names in keys.items():
        pool = admission.pools[group]
        found = pool.find(names)
        pool.share(found)
        missing = [name for name in names[len(found) :] if not pool.find([name])]
        taken = pool.take(min(len(missing), pool.num_free))
        for page, name in zip(taken, missing, strict=False):
            pool.keep(page, name)
        pool.give_back([*found, *taken])
        written[group] = taken
    return written
