"""Which of the kernels that serve a site comes first: by priority, and by time where several were measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from .contract import Kernel
from .launches import Launches
from .types import Reason, Site


class Ranking:
    """The order of kernels at a site and bucket. Times are of tuned rows for this very site, in microseconds."""

    def __init__(self, launches: Launches) -> None:
        self._launches = launches

    def us(self, kernel: Kernel, site: Site, bucket: int) -> float:
        """What the kernel took when it was measured; infinity if it was not."""
        measured = self._launches.time_us(kernel, site, bucket)
        return inf if measured is None else measured

    def dealt(self, kernels: Sequence[Kernel], site: Site, bucket: int) -> dict[str, int]:
        """Priorities by name, those of measured kernels dealt out anew: the fastest gets the highest."""
        times = {each.name: self.us(each, site, bucket) for each in kernels}
        by_time = sorted((name for name in times if times[name] < inf), key=lambda name: (times[name], name))
        own = {each.name: each.priority for each in kernels}
        return own | dict(zip(by_time, sorted((own[name] for name in by_time), reverse=True), strict=True))

    def ordered(self, kernels: Sequence[Kernel], site: Site, bucket: int) -> list[Kernel]:
        """The best first."""
        dealt = self.dealt(kernels, site, bucket)
        return sorted(kernels, key=lambda each: (-dealt[each.name], self.us(each, site, bucket), each.name))

    def beaten(self, kernel: Kernel, best: Kernel, site: Site, bucket: int) -> Reason:
        """Why `kernel` comes after `best`."""
        own, least = self.us(kernel, site, bucket), self.us(best, site, bucket)
        if max(own, least) < inf:
            return Reason("policy", f"{own:.1f} us measured, {best.name} took {least:.1f}")
        return Reason("policy", f"{best.name} comes before it")
