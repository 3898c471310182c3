"""Which worker gets a request: one small class a policy, found by its name.

A router knows what a balancer in front of real workers can know: what it sent where, and whose first and last tokens
have come back. How long an answer will be it does not know; it counts with the mean of those that have ended. In a
mixed fleet loads are divided by the workers' speeds, so that a slower one is full with less.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import ConfigError

Reals = NDArray[np.float64]


class Loads:
    """W places for workers. requests, tokens: not ended yet, tokens not computed yet; closed: 0, or infinite where no
    worker takes requests; speed: relative to the others."""

    def __init__(self, num_places: int) -> None:
        self.requests = np.zeros(num_places)
        self.tokens = np.zeros(num_places)
        self.speed = np.ones(num_places)
        self.closed = np.full(num_places, np.inf)

    def open(self, place: int, speed: float) -> None:
        self.requests[place] = self.tokens[place] = self.closed[place] = 0.0
        self.speed[place] = speed

    def close(self, place: int) -> None:
        self.closed[place] = np.inf

    def is_open(self, place: int) -> bool:
        return bool(self.closed[place] == 0.0)

    @property
    def num_open(self) -> int:
        return int((self.closed == 0.0).sum())


class Choice(NamedTuple):
    """num_known: tokens of the prompt that need not be computed there, as far as the router knows."""

    place: int
    num_known: int = 0


class Policy(Protocol):
    """choose: the place of an open worker, of which there is one at least. prefix: the beginning that the prompt shares
    with others (-1: none), of `prefix_tokens` tokens. forget: the place has a new worker, who remembers nothing."""

    def choose(self, loads: Loads, prefix: int, prefix_tokens: int) -> Choice: ...

    def forget(self, place: int) -> None: ...


class RoundRobin:
    """Each open worker in turn, whatever it has to do."""

    def __init__(self) -> None:
        self._last = -1

    def choose(self, loads: Loads, prefix: int, prefix_tokens: int) -> Choice:
        places = np.flatnonzero(loads.closed == 0.0)
        self._last = int(places[np.searchsorted(places, self._last, side="right") % len(places)])
        return Choice(self._last)

    def forget(self, place: int) -> None:
        """Nothing is remembered."""


class LeastRequests:
    """The worker with the fewest requests for its speed."""

    def choose(self, loads: Loads, prefix: int, prefix_tokens: int) -> Choice:
        return Choice(int(np.argmin((loads.requests + 1.0) / loads.speed + loads.closed)))

    def forget(self, place: int) -> None:
        """Nothing is remembered."""


class LeastPendingTokens:
    """The worker with the fewest tokens to compute for its speed."""

    def choose(self, loads: Loads, prefix: int, prefix_tokens: int) -> Choice:
        return Choice(int(np.argmin((loads.tokens + 1.0) / loads.speed + loads.closed)))

    def forget(self, place: int) -> None:
        """Nothing is remembered."""


class PrefixAware:
    """Least pending tokens, where the tokens of a prefix that a worker has served before need not be computed there:
    a worker with the prefix is preferred as long as it is ahead by no more than the prefix saves. Who has seen which is
    kept of the prefixes used last."""

    def __init__(self, most_prefixes: int = 4096) -> None:
        self._most = most_prefixes
        self._seen: dict[int, NDArray[np.bool_]] = {}  # by time of use

    def choose(self, loads: Loads, prefix: int, prefix_tokens: int) -> Choice:
        tokens = loads.tokens + 1.0
        if prefix < 0:
            return Choice(int(np.argmin(tokens / loads.speed + loads.closed)))
        seen = self._seen.pop(prefix, None)
        if seen is None:
            seen = np.zeros(len(tokens), dtype=np.bool_)
        place = int(np.argmin((tokens - prefix_tokens * seen) / loads.speed + loads.closed))
        num_known = prefix_tokens * int(seen[place])
        seen[place] = True
        self._seen[prefix] = seen
        if len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]
        return Choice(place, num_known)

    @property
    def num_remembered(self) -> int:
        return len(self._seen)

    def forget(self, place: int) -> None:
        for seen in self._seen.values():
            seen[place] = False


POLICIES: dict[str, type[RoundRobin] | type[LeastRequests] | type[LeastPendingTokens] | type[PrefixAware]] = {
    "round_robin": RoundRobin,
    "least_requests": LeastRequests,
    "least_pending_tokens": LeastPendingTokens,
    "prefix_aware": PrefixAware,
}


def policy(name: str) -> Policy:
    """ConfigError: no policy of that name, with the nearest ones."""
    if name not in POLICIES:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), POLICIES, n=2, cutoff=0.4)
        guess = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"unknown routing policy {name!r}: {guess}known are {', '.join(POLICIES)}")
    return POLICIES[name]()
