"""A completion as the scheduler sees it, from its arrival to its last token."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..request import SamplingParams
from .prefix import PageKeys

Rank = tuple[float, int]
"""Who is served before whom: time of arrival, put off by the priority; then the number."""


@dataclass(eq=False)
class Scheduled:
    """One completion. tokens: what the host knows of it while it has no slot (`Running.tokens` while it has one).

    stop_ids end it; allowed: words of the allowed-token mask, or None for all; allowed_early: the same without the stop
    ids, in force before min_tokens are there. request: the number of the first completion of its request. leader: the
    completion of the same prompt whose pages it may share, followers: those that wait for this one's prompt;
    num_shareable: tokens of it that are computed and lie in its pages. pages: by state group, the page of each stretch
    of its context.
    """

    number: int
    tokens: NDArray[np.int32]
    prompt_length: int
    params: SamplingParams
    seed: int
    max_length: int
    rank: Rank
    priority: int = 0
    request: int = -1
    stop_ids: tuple[int, ...] = ()
    root: bytes = b""
    allowed: NDArray[np.int32] | None = None
    allowed_early: NDArray[np.int32] | None = None
    leader: Scheduled | None = None
    followers: list[Scheduled] = field(default_factory=list["Scheduled"])
    slot: int = -1
    ticket: int = -1
    has_started: bool = False
    is_waiting: bool = False
    num_shareable: int = 0
    pages: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    _keys: dict[int, PageKeys] = field(default_factory=dict[int, PageKeys])

    def __post_init__(self) -> None:
        if self.request < 0:
            self.request = self.leader.request if self.leader else self.number

    @property
    def is_masked(self) -> bool:
        return self.allowed is not None or self.allowed_early is not None

    def mask(self, num_outputs: int) -> NDArray[np.int32] | None:
        """The mask of the token that comes behind `num_outputs` others."""
        return self.allowed_early if num_outputs < self.params.min_tokens else self.allowed

    def keys(self, page_size: int, tokens: NDArray[np.int32]) -> list[bytes]:
        """Keys of the full pages of `tokens`, a beginning of this completion's context."""
        if page_size not in self._keys:
            self._keys[page_size] = PageKeys(self.root, page_size)
        return self._keys[page_size].of(tokens)
