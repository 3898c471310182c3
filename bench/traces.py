"""Who a binding would choose for a trial's call, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from ..ops.binding import BindingError, bind
from ..ops.bound import BoundSite
from ..ops.support import bucket_of
from .trials import POLICY, Place, Trial


def traced(trial: Trial, place: Place) -> list[str]:
    """The sites of the case's call and who serves them on the profile, a line each, parts below their composite."""
    try:
        binding = bind((trial.site,), place.profile, POLICY, missing=place.missing)
    except BindingError as error:
        return [f"{trial.site.name}: {error}"]
    return list(_lines(binding.sites[0], bucket_of(trial.num_rows, POLICY), ""))


def _lines(bound: BoundSite, bucket: int, indent: str) -> Iterator[str]:
    choice = next(choice for choice in bound.choices if choice.bucket == bucket)
    launch = " ".join(f"{name}={value}" for name, value in choice.launch.items())
    yield f"{indent}{bound.site.name}: {choice.chosen} {launch}".rstrip()
    yield from (f"{indent}  not {name}: {reason}" for name, reason in choice.refused.items())
    for part in bound.parts:
        yield from _lines(part, bucket, indent + "    ")
