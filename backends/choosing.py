"""Which backends there are, and on which device to run: found by listing, ranked by how sure its profile is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from ..hwprofiles.match import DeviceReport, Match
from ..ops import discovery
from .contract import CONTRACT_VERSION, Backend, BackendError

DEVICE_VARIABLE = "AMBIDEX_DEVICE"
"""Names the device where no argument does: `cpu`, `cuda`, `rocm:1`."""

_CERTAINTY = {"exact": 0, "near": 1, "none": 2}


class Place(NamedTuple):
    """Where to run: a backend, one of its devices, and the profile that describes it."""

    backend: Backend
    report: DeviceReport
    match: Match

    @property
    def name(self) -> str:
        return f"{self.backend.name}:{self.report.index}"


@cache
def found() -> Mapping[str, Backend]:
    """Every backend by name: the files of `backends/` that define `BACKEND`, and the entry points `ambidex.backends`.

    BackendError: a backend written for another version of the contract, or two of one name.
    """
    modules = [discovery.module("backends", stem) for stem in discovery.stems("backends")]
    listed = [module.BACKEND for module in modules if hasattr(module, "BACKEND")]
    backends: dict[str, Backend] = {}
    for backend in [*listed, *discovery.plugins("backends").values()]:
        accepted = checked(backend)
        if accepted.name in backends:
            raise BackendError(f"two backends are called {accepted.name}: uninstall one of the plugins that bring it")
        backends[accepted.name] = accepted
    return backends


def checked(backend: Any) -> Backend:
    """The backend itself if it speaks this version of the contract, else BackendError."""
    version = getattr(backend, "contract_version", None)
    name = getattr(backend, "name", type(backend).__name__)
    if version != CONTRACT_VERSION:
        cure = "update ambidex" if isinstance(version, int) and version > CONTRACT_VERSION else f"update {name}"
        raise BackendError(f"backend {name} speaks contract {version}, this ambidex speaks {CONTRACT_VERSION}: {cure}")
    if not isinstance(backend, Backend):
        raise BackendError(f"backend {name} is a {type(backend).__name__}: derive it from ambidex.backends.contract")
    return backend


def places(backends: Mapping[str, Backend] | None = None) -> list[Place]:
    """Every device that can be used here, the best first.

    Accelerators whose profile is exact, then near, the higher bandwidth first; then the CPU; last what has no profile.
    """
    usable = [backend for backend in (backends or found()).values() if backend.missing() is None]
    every = [Place(backend, report, backend.profile(report)) for backend in usable for report in backend.probe()]
    return sorted(every, key=_rank)


def _rank(place: Place) -> tuple[bool, bool, int, float, str, int]:
    profile = place.match.profile
    bandwidth = profile.memory.bandwidth_gb_per_s.best if profile else None
    is_host = place.report.vendor == "cpu"
    certainty = _CERTAINTY[place.match.kind]
    return profile is None, is_host, certainty, -(bandwidth or 0.0), place.backend.name, place.report.index


def best(name: str | None = None, backends: Mapping[str, Backend] | None = None) -> Place:
    """The device to run on: the one named (argument, else the variable `AMBIDEX_DEVICE`), else the best with a profile.

    name: a backend (`cpu`, `cuda`), or a device of it (`cuda:0`). BackendError: unknown, absent, or without a profile.
    """
    known = backends or found()
    wanted = name or os.environ.get(DEVICE_VARIABLE) or None
    if wanted is None:
        return _with_profile(places(known))
    return _named(wanted, known)


def _with_profile(ranked: list[Place]) -> Place:
    if not ranked:
        raise BackendError("no device can be used here: `ambidex doctor` says what is missing")
    if ranked[0].match.profile is None:
        raise BackendError(f"{ranked[0].name} has no profile: {ranked[0].match.reason}")
    return ranked[0]


def _named(wanted: str, known: Mapping[str, Backend]) -> Place:
    name, colon, index = wanted.partition(":")
    if name not in known:
        raise BackendError(f"no backend is called {name!r}: there are {', '.join(sorted(known))}")
    backend = known[name]
    if (reason := backend.missing()) is not None:
        raise BackendError(f"{name} cannot be used: {reason}")
    candidates = places({name: backend})
    if colon:
        candidates = [place for place in candidates if str(place.report.index) == index]
    if not candidates:
        there = ", ".join(place.name for place in places({name: backend})) or "none"
        raise BackendError(f"there is no device {wanted}: {name} has {there}")
    return _with_profile(candidates)
