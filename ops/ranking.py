"""Which of the kernels that serve a site comes first: by priority, and by time where several were measured.

Times are of tuned rows for this very site, in microseconds, and are compared at one number of rows only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .contract import Kernel
from .launches import Launches
from .types import Reason, Site

Times = Mapping[int, float]
"""By the number of rows, the one that is most like its bucket first."""


class Ranking:
    """The order of kernels at a site and bucket."""

    def __init__(self, launches: Launches) -> None:
        self._launches = launches

    def times(self, kernels: Sequence[Kernel], site: Site, bucket: int) -> dict[str, float]:
        """What kernels took, by name, at the number of rows at which most of them were measured."""
        by_rows: dict[int, dict[str, float]] = {}
        for each in kernels:
            for rows, us in self._launches.times_us(each, site, bucket).items():
                by_rows.setdefault(rows, {})[each.name] = us
        return max(by_rows.values(), key=len, default={})

    def dealt(self, kernels: Sequence[Kernel], site: Site, bucket: int) -> dict[str, int]:
        """Priorities by name, those of measured kernels dealt out anew: the fastest gets the highest."""
        times = self.times(kernels, site, bucket)
        by_time = sorted(times, key=lambda name: (times[name], name))
        own = {each.name: each.priority for each in kernels}
        return own | dict(zip(by_time, sorted((own[name] for name in by_time), reverse=True), strict=True))

    def ordered(self, kernels: Sequence[Kernel], site: Site, bucket: int) -> list[Kernel]:
        """The best first."""
        dealt, times = self.dealt(kernels, site, bucket), self.times(kernels, site, bucket)
        return sorted(kernels, key=lambda each: (-dealt[each.name], times.get(each.name, 0.0), each.name))

    def beaten(self, kernels: Sequence[Kernel], best: Kernel, site: Site, bucket: int) -> dict[str, Reason]:
        """Why each of the others comes after `best`."""
        times = self.times(kernels, site, bucket)
        reasons: dict[str, Reason] = {}
        for name in (each.name for each in kernels if each is not best):
            measured = {name, best.name} <= times.keys()
            text = f"{times[name]:.1f} us measured, {best.name} took {times[best.name]:.1f}" if measured else None
            reasons[name] = Reason("policy", text or f"{best.name} comes before it")
        return reasons


def parts_reason(whole: Times, parts: Sequence[Times]) -> Reason | None:
    """Why a kernel for the whole is passed over: its parts took less together, at a number of rows at which all were
    measured."""
    rows = next((rows for rows in whole if all(rows in part for part in parts)), None)
    if rows is None or (total := sum(part[rows] for part in parts)) >= whole[rows]:
        return None
    return Reason("policy", f"{whole[rows]:.1f} us measured, its parts took {total:.1f}")
