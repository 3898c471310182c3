"""`ambidex profiles`: the numbers of every device that is described, without a device and without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .table import table, wrapped

if TYPE_CHECKING:
    from ..hwprofiles.schema import Profile

_HEADER = ("profile", "memory", "TB/s", "bf16", "fp8", "fp4", "TDP W", "EUR/h", "backend")
_LEGEND = (
    "Memory in GiB as the driver reports it, its bandwidth, dense TFLOPS; – is unknown, none, or read from the device. "
    "Prices are quoted, not facts. `ambidex profiles NAME` shows every field with its source."
)


def profiles(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="One profile, or the path of a YAML file.")
    ] = None,
    as_object: options.AsJson = False,
) -> None:
    """List the hardware profiles, or show one in full.

    One profile is shown with the source of its numbers; those that nobody vouches for are marked unverified.
    """
    from ..hwprofiles.reader import load, names

    if name is not None:
        profile = load(name)
        print(json.dumps(_as_json(profile)) if as_object else shown(profile))
        return
    listed = [load(each) for each in names()]
    if as_object:
        print(json.dumps([_as_json(profile) for profile in listed]))
        return
    print(table([_HEADER, *(_row(profile) for profile in listed)], numbers=range(1, 8)))
    print()
    print(wrapped("", _LEGEND))


def _row(profile: Profile) -> tuple[str, ...]:
    rates, memory = profile.peak.dense_tflops, profile.memory
    bandwidth = memory.bandwidth_gb_per_s.best
    numbers = (
        memory.usable_gib, bandwidth / 1000 if bandwidth else None, rates.bf16, rates.fp8, rates.fp4, profile.tdp_w,
        profile.price.eur_per_hour if profile.price else None,
    )  # fmt: skip
    return (profile.name, *map(_number, numbers), profile.backend or "no backend")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}"


def _as_json(profile: Profile) -> dict[str, object]:
    return {**profile.model_dump(mode="json"), "unverified": profile.unverified_fields()}


def shown(profile: Profile) -> str:
    """Every field of a profile, one a line; beneath those numbers that have one, the source; unverified ones marked."""
    unverified = set(profile.unverified_fields())
    leaves = list(_leaves(profile.model_dump(mode="json", exclude={"sources"})))
    longest = max(len(path) for path, _ in leaves)
    lines = []
    for path, value in leaves:
        mark = "  (unverified)" if path in unverified else ""
        lines.append(wrapped(f"{path.ljust(longest)}  ", f"{value}{mark}"))
    if profile.sources:
        lines += ["", "sources, each for its field and what lies under it"]
    lines += [wrapped(f"  {field}: ", source) for field, source in profile.sources.items()]
    return "\n".join(lines)


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every field; absent ones are left out."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        if value:
            yield path, ", ".join(str(item) for item in value)
    elif value is not None:
        yield path, _exact(value)


def _exact(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
