"""The manifest: the record of a binding as plain values, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .binding import UNBOUNDED, Binding, BoundSite, Choice


def manifest(binding: Binding) -> dict[str, Any]:
    """JSON-able: profile, policy, layouts, and for every site and bucket what was chosen and who was refused."""
    return {
        "profile": binding.profile.name,
        "determinism": str(binding.policy.determinism),
        "fallback": binding.policy.fallback,
        "weight_layouts": {role: layout.name for role, layout in binding.weight_layouts.items()},
        "pages": {
            group: {"layout": demand.layout.name, "page_size": demand.page_size}
            for group, demand in binding.page_demands.items()
        },
        "sites": [_site(bound) for bound in binding.sites],
    }


def fingerprint(binding: Binding) -> str:
    """Twelve hexadecimal digits over everything that was decided (not over who was refused)."""
    record = manifest(binding)
    _drop_refused(record["sites"])
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), default=str)
    return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:12]


def references(binding: Binding) -> list[str]:
    """Names of the sites (parts included) that only the reference serves in some bucket."""
    return [bound.site.name for bound in _all(binding.sites) if any(c.chosen == "reference" for c in bound.choices)]


def _all(sites: tuple[BoundSite, ...]) -> list[BoundSite]:
    return [each for bound in sites for each in (bound, *_all(bound.parts))]


def _site(bound: BoundSite) -> dict[str, Any]:
    return {
        **bound.site.plain(),
        "name": bound.site.name,
        "choices": [_choice(choice) for choice in bound.choices],
        "parts": [_site(part) for part in bound.parts],
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "max_rows": None if choice.bucket == UNBOUNDED else choice.bucket,
        "chosen": choice.chosen,
        "launch": dict(choice.launch),
        "launch_source": choice.source,
        "refused": {name: {"code": reason.code, "text": reason.text} for name, reason in choice.refused.items()},
    }


def _drop_refused(sites: list[dict[str, Any]]) -> None:
    for site in sites:
        for choice in site["choices"]:
            del choice["refused"]
        _drop_refused(site["parts"])
