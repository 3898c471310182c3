"""What a simulation takes of this machine's own memory, told before it is taken.

A worker keeps a key for each page of its cache and the ids of the tokens in it, so that it grows until its pages have
all been used; a request is a row of columns. Both were measured; what the interpreter takes beside them is not counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ...runtime.errors import ConfigError
from .scenario import Scenario
from .worker import Replica

_WORKER, _PAGE, _TOKEN, _REQUEST = 150_000, 220, 4, 400
_GIB = 2**30


def check_footprint(
    scenario: Scenario, replicas: Sequence[Sequence[Replica]], num_requests: int, limit_bytes: int | None = None
) -> None:
    """limit_bytes: None is what this machine has. ConfigError: the simulation would take more, with the number."""
    limit = _physical_bytes() if limit_bytes is None else limit_bytes
    wanted = footprint(scenario, replicas, num_requests)
    if wanted > limit:
        workers = sum(each.most for fleet in scenario.fleets for each in fleet.workers)
        raise ConfigError(
            f"{workers:,} workers and {num_requests:,} requests take {wanted / _GIB:,.1f} GiB of this machine's "
            f"{limit / _GIB:,.1f} once their pages are full: simulate fewer workers or requests"
        )


def footprint(scenario: Scenario, replicas: Sequence[Sequence[Replica]], num_requests: int) -> int:
    """Bytes when the pages of all workers have been used."""
    workers = sum(
        spec.most * _worker_bytes(replica)
        for fleet, kinds in zip(scenario.fleets, replicas, strict=True)
        for spec, replica in zip(fleet.workers, kinds, strict=True)
    )
    return workers + _REQUEST * num_requests


def _worker_bytes(replica: Replica) -> int:
    pages = replica.kv_cache_tokens // replica.page_size
    return _WORKER + pages * (_PAGE + _TOKEN * replica.page_size)


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
