"""Steps that are alike, taken in one call: as long as nobody comes, ends or makes way, each of them gives every running
request one more token. For whoever knows what will be sampled, as a simulation does; no worker is told of them.
"""

from __future__ import annotations

import numpy as np

from .deltas import Deltas
from .scheduler import Scheduler


def num_alike(scheduler: Scheduler, most: int, token: int) -> int:
    """How many of the next steps, up to `most`, only give every running request one more `token`, nothing being in
    flight. 0 where one of them has to be planned: requests wait or are in their prompt, one may end, pages run short.
    """
    running, order = scheduler.running, scheduler.running.order
    if scheduler.waiting or not len(order):
        return 0
    count = min(most, int((running.max_length - running.known)[order].min()) - 1)
    if count <= 0 or running.may_stop(order, token):
        return 0
    if np.count_nonzero((running.computed < np.maximum(running.known - 1, running.prompt_length))[order]):
        return 0
    # For so many steps pages suffice wherever in its last one each request is.
    pages = [(scheduler.pools[group].num_free // len(order)) * size for group, size in scheduler.page_sizes.items()]
    return min(count, *pages)


def repeat(scheduler: Scheduler, num_steps: int, token: int) -> None:
    """What so many calls of `schedule` and `commit` would do, at most `num_alike`: at once from page to page."""
    running, order = scheduler.running, scheduler.running.order
    while num_steps:
        scheduler.grow(order, Deltas(scheduler.token_budget, None))
        count = num_steps
        for group, size in scheduler.page_sizes.items():
            count = min(count, int((running.num_pages[group] * size - running.computed)[order].min()))
        running.extend(order, count, token)
        scheduler.calm(count)
        num_steps -= count
