"""`ambidex explain`: which kernel serves each site of a model, and why every other one does not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .table import fields, wrapped

if TYPE_CHECKING:
    from ..hwprofiles.schema import Profile
    from ..ops.binding import Binding

Plain = dict[str, Any]
"""A site of a manifest."""


def explain(
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Any profile, or a YAML file; by default the best device here."),
    ] = None,
    site: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only these sites or ops, as in 'linear@*' or sample.")
    ] = None,
    dtype: options.Dtype = "auto",
    determinism: options.Determinism = "run",
    kernel: options.Kernels = None,
    fallback: options.Fallback = "allow",
    as_object: options.AsJson = False,
) -> None:
    """Show which kernel serves each site, and why not others.

    Any model on any profile, on any machine.

    Loads no weights and needs no such device: kernels of another machine's profile count as installed.
    """
    named = options.one_model(model, model_option)
    binding = bound(named, profile, dtype, determinism, fallback, options.kernel_choices(kernel))
    record = full_manifest(binding)
    if site is not None:
        record["sites"] = [each for each in record["sites"] if _matches(each, site)]
        if not record["sites"]:
            raise typer.BadParameter(f"no site or op matches {site!r}", param_hint="--site")
    if as_object:
        print(json.dumps(record))
        return
    print(heading(record, binding.profile, named or "embedded"))
    for each in record["sites"]:
        print()
        print("\n".join(site_lines(each)))


def bound(
    model: str | None, profile: str | None, dtype: str, determinism: str, fallback: str, kernels: Mapping[str, str]
) -> Binding:
    """The binding of a model's sites to a profile, or to this machine's best device."""
    from ..ops.binding import bind
    from ..runtime.options import Options, policy
    from ..runtime.start import model_sites

    numbers, missing = target(profile)
    sites = model_sites(model, dtype, numbers)
    asked = policy(Options(determinism=determinism, fallback=fallback, kernels=kernels), numbers)
    return bind(sites, numbers, asked, missing=missing)


def target(name: str | None) -> tuple[Profile, Mapping[str, str]]:
    """The profile to bind to, and the languages that cannot run there (none, where the device is elsewhere)."""
    from ..backends.choosing import best, places
    from ..hwprofiles.reader import load
    from ..ops.discovery import missing_languages

    if name is None:
        here = best().match.profile
        assert here is not None
        return here, missing_languages()
    profile = load(name)
    for place in places():
        if place.match.profile is not None and place.match.profile.name == profile.name:
            return place.match.profile, missing_languages()
    return profile, {}


def full_manifest(binding: Binding) -> Plain:
    """The manifest with its fingerprint and the sites that only a reference serves."""
    from ..ops.manifest import fingerprint, manifest, references

    found = {**manifest(binding), "fingerprint": fingerprint(binding), "references": references(binding)}
    return {**found, "warnings": list(binding.warnings)}


def heading(record: Plain, profile: Profile, model: str) -> str:
    """What holds for the whole binding: profile, model, layouts, hash, sites that nothing but a reference serves."""
    layouts: dict[str, list[str]] = {}
    for role, layout in record["weight_layouts"].items():
        layouts.setdefault(layout, []).append(role)
    pages = [f"{name}: {page['layout']}, {page['page_size']} tokens" for name, page in record["pages"].items()]
    references = record["references"]
    return fields(
        [
            ("profile", f"{profile.name} ({profile.title}), languages {', '.join(profile.languages) or 'none'}"),
            ("model", f"{model}, determinism {record['determinism']}, fallback {record['fallback']}"),
            ("weights", "; ".join(f"{name}: {', '.join(roles)}" for name, roles in layouts.items()) or "no layouts"),
            ("pages", "; ".join(pages) or "none"),
            ("manifest", record["fingerprint"]),
            ("reference", f"{len(references)} sites: {', '.join(references)}" if references else "serves no site"),
            *(("warning", line) for line in record["warnings"]),
        ]
    )


def _matches(site: Plain, pattern: str) -> bool:
    own = fnmatchcase(site["name"], pattern) or site["op"] == pattern
    return own or any(_matches(part, pattern) for part in site["parts"])


def site_lines(site: Plain, depth: int = 0, reached: Sequence[int] | None = None) -> Iterator[str]:
    """A site, who serves which rows of it, who is refused and why; then its parts, indented. reached: the buckets that
    come to it, of a part those in which the whole is served by parts; None: all."""
    margin, places = "  " * depth, range(len(site["choices"])) if reached is None else reached
    choices = [site["choices"][place] for place in places]
    dtypes = sorted(set(site["dtypes"].values()))
    repeated = f" × {site['num_layers']} layers" if site["num_layers"] > 1 else ""
    yield wrapped(f"{margin}{site['name']}  ", f"[{', '.join(dtypes)}]{repeated}")
    for alike in _merged(choices, _outcome):
        launch = " ".join(f"{name}={value}" for name, value in alike[0]["launch"].items())
        source = f" ({alike[0]['launch_source']}: {launch})" if launch else ""
        yield wrapped(f"{margin}  {_rows(site, alike).ljust(9)} → ", f"{alike[0]['chosen']}{source}")
    for name, spans in _refusals(site, choices).items():
        for reason, where in spans.items():
            scope = "" if where == _rows(site, choices) else f" (rows {where})"
            yield wrapped(f"{margin}    ✗ {name}: ", f"{reason}{scope}")
    if not any(choice["refused"] or choice["chosen"] not in ("reference", "parts") for choice in choices):
        yield f"{margin}    no kernel of this op exists"
    by_parts = [place for place in places if site["choices"][place]["chosen"] == "parts"]
    for part in site["parts"]:
        yield from site_lines(part, depth + 1, by_parts)


def _outcome(choice: Plain) -> tuple[str, str, str]:
    return choice["chosen"], str(choice["launch"]), str(choice["launch_source"])


def _merged(choices: Sequence[Plain], key: Any) -> list[list[Plain]]:
    """Neighbouring buckets with one outcome, together."""
    merged: list[list[Plain]] = []
    for choice in choices:
        if merged and key(merged[-1][-1]) == key(choice):
            merged[-1].append(choice)
        else:
            merged.append([choice])
    return merged


def _rows(site: Plain, choices: Sequence[Plain]) -> str:
    """The rows that neighbouring buckets cover: `all`, `1`, `2–8`, `65+`."""
    every = site["choices"]
    position = every.index(choices[0])
    first = every[position - 1]["max_rows"] + 1 if position else 1
    last = choices[-1]["max_rows"]
    if last is None:
        return f"{first}+" if position else "all rows"
    return f"{first}–{last}" if last > first else str(first)


def _refusals(site: Plain, choices: Sequence[Plain]) -> dict[str, dict[str, str]]:
    """Kernel -> reason (code and text) -> the rows for which it holds, of the buckets that come to the site."""
    found: dict[str, dict[str, list[Plain]]] = {}
    for choice in choices:
        for name, reason in choice["refused"].items():
            text = f"{reason['code']}: {reason['text']}"
            found.setdefault(name, {}).setdefault(text, []).append(choice)
    return {name: {reason: _rows(site, where) for reason, where in reasons.items()} for name, reasons in found.items()}
