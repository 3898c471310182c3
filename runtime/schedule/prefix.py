"""Keys of page contents: SHA-256 over the parent's key and the page's tokens, from a root of model, adapter and salt.

Equal keys mean equal tokens from the first on under the same weights, so a page found by key holds what would be
computed. The chain is the radix tree: a key names its whole path, and a page outlives its parent's eviction without
harm, since it is reached again as soon as the parent's content is. Cryptographic, because tenants share the pool: with
a short hash one could make another's prompt collide with one's own (CVE-2025-25183).
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray


def root_key(model: str, adapter: str, salt: str) -> bytes:
    """The parent of a request's first page; lengths go in, so that no two triples read alike."""
    digest = sha256()
    for part in (model, adapter, salt):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def page_key(parent: bytes, tokens: NDArray[np.int32]) -> bytes:
    return sha256(parent + tokens.tobytes()).digest()


class PageKeys:
    """The keys of one request's full pages of one size, made when they are first asked for."""

    def __init__(self, root: bytes, page_size: int) -> None:
        self._chain = [root]
        self._page_size = page_size

    def of(self, tokens: NDArray[np.int32]) -> list[bytes]:
        """Keys of the full pages of `tokens` (which begin with those asked before)."""
        begin, end = len(self._chain) - 1, len(tokens) // self._page_size
        if begin < end:
            pages = tokens[begin * self._page_size : end * self._page_size].reshape(-1, self._page_size)
            for page in pages:
                self._chain.append(page_key(self._chain[-1], page))
        return self._chain[1 : end + 1]
