"""Steps that are alike, taken in one call: as long as nobody comes, ends or makes way, each of them gives every running
request one more token. For whoever knows what will be sampled, as a simulation does; no worker is told of them.
"""

from __future__ import annotations

from .deltas import Deltas
from .scheduler import Scheduler


def num_alike(scheduler: Scheduler, most: int, token: int) -> int:
    """How many of the next steps, up to `most`, only give every running request one more `token`, nothing being in
    flight. 0 where one of them has to be planned: requests wait or are in their prompt, one may end, pages run short.
    """
    running, order = scheduler.running, scheduler.running.order
    if scheduler.waiting or not len(order):
        return 0
    computed, known = running.computed[order], running.known[order]
    count = min(most, int((running.max_length[order] - known).min()) - 1)
    is_alike = (known - computed == 1) & (computed >= running.prompt_length[order])
    if count <= 0 or not is_alike.all() or running.may_stop(order, token):
        return 0
    for group, size in scheduler.page_sizes.items():
        wanted = (computed + count - 1) // size + 1 - running.num_pages[group][order]
        if wanted.sum() > scheduler.pools[group].num_free:
            return 0
    return count


def repeat(scheduler: Scheduler, num_steps: int, token: int) -> None:
    """What so many calls of `schedule` and `commit` would do, at most `num_alike`: from one page to the next at once."""
    running, order = scheduler.running, scheduler.running.order
    while num_steps:
        scheduler.grow(order, Deltas(scheduler.token_budget, None))
        room = [(running.num_pages[group] * size - running.computed)[order] for group, size in scheduler.page_sizes.items()]
        count = min(num_steps, *(int(each.min()) for each in room))
        running.extend(order, count, token)
        scheduler.calm(count)
        num_steps -= count
