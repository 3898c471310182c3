"""Launch parameters: an explicit choice, a tuned row, the nearest tuned row, or the default that a profile gives.

Every pick says which of these it is. A row's launch is taken only where it fits: its parameters are those that the
kernel has, its words and flags (an instruction level, dependent launch) are among those that the kernel offers here, it
fits the on-chip memory of the profile, and the kernel does not refuse it. At `Determinism.BATCH` the smallest bucket's
launch serves all buckets: decode matters most, and another launch would be another order of sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..hwprofiles.schema import Profile
from .contract import Kernel, Launch
from .support import UNBOUNDED, on_chip_reason
from .tuned import Row, Tuned
from .types import Reason, Scalar, Site

Source = Literal["explicit", "exact", "near", "derived"]
_ROWS_WITHOUT_BOUND = 4096
"""Rows that stand for the last bucket: a long chunk of a prompt."""


@dataclass(frozen=True)
class Pick:
    """The launch of a kernel in a bucket and where it comes from (None: the kernel has no parameters)."""

    launch: Launch
    source: Source | None


def typical_rows(above: int, bucket: int) -> int:
    """The number of rows that stands for a bucket of more than `above`: its bound, or a long chunk's."""
    return bucket if bucket < UNBOUNDED else max(_ROWS_WITHOUT_BOUND, 2 * above)


def offered(kernel: Kernel, site: Site, profile: Profile, bucket: int) -> list[Launch]:
    """The launches that the kernel itself names: its default, then its configurations that fit, each once."""
    if kernel.launch is None:
        return [{}]
    found = [kernel.launch(site, profile, bucket)]
    for launch in kernel.configurations(site, profile, bucket) if kernel.configurations else ():
        if launch not in found and _memory_reason(kernel, site, profile, launch) is None:
            found.append(launch)
    return found


def launch_reason(kernel: Kernel, site: Site, profile: Profile, bucket: int, launch: Launch) -> Reason | None:
    """Why the kernel cannot be launched so, whoever proposes it; None if it can."""
    known = offered(kernel, site, profile, bucket)
    if launch in known:
        return None
    if launch.keys() != known[0].keys():
        has = ", ".join(known[0]) or "no launch parameters"
        return Reason("launch", f"has {has}, not {', '.join(sorted(launch.keys() ^ known[0].keys()))}")
    for name, value in launch.items():
        if isinstance(value, str | bool) and value not in {each[name] for each in known}:
            return Reason("launch", f"offers no {name}={value} on {profile.name}")
    if not (kernel.on_chip_bytes or kernel.refuses_launch) and profile.on_chip.shared_memory_per_block_kib:
        return Reason("launch", f"does not say what memory it takes, so it is launched as it offers on {profile.name}")
    return _memory_reason(kernel, site, profile, launch)


def _memory_reason(kernel: Kernel, site: Site, profile: Profile, launch: Launch) -> Reason | None:
    refused = kernel.refuses_launch(site, profile, launch) if kernel.refuses_launch else None
    return on_chip_reason(kernel, profile, launch) or refused


class Launches:
    """The picks of one binding. single: one launch serves all buckets of a site."""

    def __init__(self, profile: Profile, tuned: Tuned, buckets: Sequence[int], *, single: bool) -> None:
        self._profile, self._tuned, self._single = profile, tuned, single
        self._spans = {upper: (above, upper) for above, upper in pairwise((0, *buckets))}
        self._first = buckets[0]
        self._picks: dict[tuple[str, tuple[object, ...], int], Pick] = {}
        self._measured: dict[tuple[str, tuple[object, ...], int], list[Row]] = {}

    def pick(self, kernel: Kernel, site: Site, bucket: int) -> Pick:
        key = (kernel.name, site.signature, bucket)
        if key not in self._picks:
            self._picks[key] = self._picked(kernel, site, bucket)
        return self._picks[key]

    def times_us(self, kernel: Kernel, site: Site, bucket: int) -> dict[int, float]:
        """What the kernel took at this very site on this family, by the number of rows, the most typical first."""
        times: dict[int, float] = {}
        for row in self._rows(kernel, site, self._first if self._single else bucket):
            times.setdefault(row.rows, row.time_us)
        return times

    def _picked(self, kernel: Kernel, site: Site, bucket: int) -> Pick:
        if kernel.launch is None:
            return Pick({}, None)
        if self._single and bucket != self._first:
            first = self.pick(kernel, site, self._first)
            return Pick(first.launch, "near" if first.source == "exact" else first.source)
        for exact in self._rows(kernel, site, bucket):
            return Pick(exact.launch, "exact")
        rows = typical_rows(*self._spans[bucket])
        for near in self._fitting(kernel, site, bucket, self._tuned.near(kernel.name, site, self._profile, rows)):
            return Pick(near.launch, "near")
        return Pick(kernel.launch(site, self._profile, bucket), "derived")

    def _rows(self, kernel: Kernel, site: Site, bucket: int) -> list[Row]:
        key = (kernel.name, site.signature, bucket)
        if key not in self._measured:
            span, family = self._spans[bucket], self._profile.tuning_family
            rows = self._tuned.exact(kernel.name, site, family, span, typical_rows(*span))
            self._measured[key] = list(self._fitting(kernel, site, bucket, rows))
        return self._measured[key]

    def _fitting(self, kernel: Kernel, site: Site, bucket: int, rows: Iterable[Row]) -> Iterator[Row]:
        return (row for row in rows if launch_reason(kernel, site, self._profile, bucket, row.launch) is None)


def parse_choice(text: str) -> tuple[str, Launch]:
    """`linear_triton{block_n=64,level=amx}` as a name and the parameters that are asked for. ValueError: misspelt."""
    name, brace, rest = text.partition("{")
    if not brace:
        return text, {}
    pairs = [pair.partition("=") for pair in rest.removesuffix("}").split(",")]
    if not rest.endswith("}") or not all(key.strip() and equals and value.strip() for key, equals, value in pairs):
        raise ValueError(f"{text!r} is not NAME{{parameter=value,…}}, as in linear_triton{{block_n=64}}")
    return name, {key.strip(): _scalar(value.strip()) for key, _, value in pairs}


def _scalar(word: str) -> Scalar:
    if word in ("true", "false"):
        return word == "true"
    try:
        return int(word)
    except ValueError:
        return word
