"""Does a profile agree with itself, with its architecture and with physics?

The main test is units × clock × operations a clock and unit = dense peak, within 2 %: a sparse figure given as dense is
off by two. Memory has its own product: bus width × rate of a pin = bandwidth, within 3 % (vendors round more there).
What contradicts is an error, and the reader refuses the file; what cannot be judged or only looks wrong is a flag.
Checks do not know whether a *consistent* set of numbers is true: that is what `Profile.sources` is for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator

from .facts import Misquote, facts, misquotes
from .finding import Finding, architecture, error, flag, off
from .format_rules import fp4_kinds, fp8_dialect
from .memory_rules import memory_bandwidth, stacks_and_pins, usable_memory
from .schema import Profile

PEAK_TOLERANCE = 0.02
LANGUAGES: dict[str, set[str]] = {
    "nvidia": {"torch", "triton", "cuda"},
    "amd": {"torch", "triton", "hip"},
    "cpu": {"torch", "triton", "cpu"},
}


def check(profile: Profile) -> list[Finding]:
    """Everything that is wrong with a profile (errors first) or that a reader of it should know (flags)."""
    found = [finding for rule in _RULES for finding in rule(profile)]
    return sorted(found, key=lambda finding: finding.severity != "error")


def _identity(profile: Profile) -> Iterator[Finding]:
    known = facts().architectures
    arch = known.get(profile.arch)
    if arch is None:
        near = difflib.get_close_matches(profile.arch, known, n=1, cutoff=0.5)
        cure = f"did you mean {near[0]}? " if near else ""
        yield flag("arch", f"{profile.arch} is not in tables/architectures.yaml", f"{cure}nothing about it was checked")
    elif arch.vendor != profile.vendor:
        cause = f"{profile.arch} is made by {arch.vendor}, the profile says {profile.vendor}"
        yield error("arch", cause, "correct one")
    elif arch.memory_kind != profile.memory.kind:
        cause = f"{profile.arch} has {arch.memory_kind} memory, the profile says {profile.memory.kind}"
        yield error("arch", cause, f"correct one: {profile.arch} is {arch.note or 'described by ' + arch.source}")
    if not profile.name.startswith(f"{profile.vendor}-"):
        yield error("name", f"{profile.name} does not begin with its vendor", f"call it {profile.vendor}-<device>")


def _languages(profile: Profile) -> Iterator[Finding]:
    if profile.backend and profile.vendor not in LANGUAGES:
        return
    possible = LANGUAGES[profile.vendor] if profile.backend else set[str]()
    for language in sorted(set(profile.languages) - possible):
        where = f"{profile.vendor} devices" if profile.backend else "a device without a backend"
        yield error("languages", f"{language} kernels do not run on {where}", f"remove {language}")


def _completeness(profile: Profile) -> Iterator[Finding]:
    if profile.vendor == "cpu":
        return
    needed = {
        "memory.raw_gb": profile.memory.raw_gb,
        "memory.usable_gib": profile.memory.usable_gib,
        "memory.bandwidth_gb_per_s.spec": profile.memory.bandwidth_gb_per_s.spec,
        "compute.units": profile.compute.units,
    }
    for field, value in needed.items():
        if value is None:
            yield error(field, "is null", "give the number (only CPU profiles read it from the device)")


def _unit_count(profile: Profile) -> Iterator[Finding]:
    arch, compute = architecture(profile), profile.compute
    if arch and arch.max_units and compute.units and compute.units > arch.max_units:
        cause = f"{compute.units} {compute.unit}s, but {profile.arch} parts have at most {arch.max_units}"
        yield error("compute.units", cause, "count active units, not those on the die")


def _arithmetic(profile: Profile) -> Iterator[Finding]:
    arch, tables = architecture(profile), profile.peak
    for table, rates in (("dense_tflops", tables.dense_tflops), ("sparse_tflops", tables.sparse_tflops)):
        for rate in rates.known():
            if arch and arch.known_rates and rate not in arch.known_rates:
                cure = f"remove it: {arch.note}" if arch.note else "remove it"
                yield error(f"peak.{table}.{rate}", f"{profile.arch} has no {rate} arithmetic", cure)


def _flops_per_clock(profile: Profile) -> Iterator[Finding]:
    arch = architecture(profile)
    for rate, flops in profile.compute.flops_per_clock_per_unit.items():
        expected = arch.flops_per_clock_per_unit.get(rate) if arch and arch.flops_per_clock_per_unit else None
        if arch and expected is not None and flops != expected:
            cause = f"{flops:g}, but a {profile.arch} {profile.compute.unit} does {expected:g}"
            yield error(f"compute.flops_per_clock_per_unit.{rate}", cause, f"write {expected:g} ({arch.source})")


def _peaks(profile: Profile) -> Iterator[Finding]:
    arch, compute = architecture(profile), profile.compute
    for rate, peak in profile.peak.dense_tflops.items():
        field, product = f"peak.dense_tflops.{rate}", compute.product_tflops(rate)
        if product is None:
            yield flag(field, f"{peak:g} cannot be checked", "give units, clock and FLOPs per clock and unit")
        elif off(peak, product) > PEAK_TOLERANCE:
            ratio = peak / product
            sparse = arch is not None and arch.sparse_over_dense and off(ratio, arch.sparse_over_dense) < PEAK_TOLERANCE
            hint = "that is the figure with sparsity: move it to peak.sparse_tflops and " if sparse else ""
            cause = f"{peak:g} is {ratio:.2f} × units × clock × FLOPs/clock = {product:.1f} dense TFLOPS"
            yield error(field, cause, f"{hint}write {product:.1f}, or correct what it is made of")


def _int8_cut(profile: Profile) -> Iterator[Finding]:
    arch, dense = architecture(profile), profile.peak.dense_tflops
    limit = arch.max_int8_over_fp8 if arch else None
    if arch and limit is not None and dense.int8 and dense.fp8 and dense.int8 > limit * dense.fp8:
        cause = f"{dense.int8:g} TOPS is {dense.int8 / dense.fp8:.2f} of FP8, {profile.arch} has at most {limit:g}"
        yield error("peak.dense_tflops.int8", cause, f"look it up: {arch.note}")


def _sparse(profile: Profile) -> Iterator[Finding]:
    arch = architecture(profile)
    for rate, sparse in profile.peak.sparse_tflops.items():
        field, dense = f"peak.sparse_tflops.{rate}", profile.peak.dense_tflops.get(rate)
        expected = arch.sparse_over_dense if arch else None
        if dense is not None and off(sparse, dense) < PEAK_TOLERANCE:
            yield error(field, f"{sparse:g} is the dense figure", "remove it, or correct the dense one")
        elif dense is not None and expected and off(sparse, expected * dense) > PEAK_TOLERANCE:
            cause = f"{sparse:g} is {sparse / dense:.2f} × dense, {profile.arch} has {expected:g} ×"
            yield error(field, cause, f"write {expected * dense:g}")
        elif dense is None and expected:
            yield flag(field, "is given without the dense figure", f"write {sparse / expected:g} as dense, too")


def _lanes_and_caches(profile: Profile) -> Iterator[Finding]:
    arch, on_chip = architecture(profile), profile.on_chip
    if arch is None:
        return
    fields = {
        "lane_width": (profile.lane_width, arch.lane_width),
        "on_chip.shared_memory_per_block_kib": (on_chip.shared_memory_per_block_kib, arch.shared_memory_per_block_kib),
        "on_chip.last_level_mib": (on_chip.last_level_mib, arch.last_level_mib),
    }
    for field, (value, expected) in fields.items():
        if expected is not None and value != expected:
            given = "null" if value is None else f"{value:g}"
            cure = f"write {expected:g}" + (f": {arch.note}" if arch.note else "")
            yield error(field, f"{given}, but {profile.arch} has {expected:g}", cure)


def _capabilities(profile: Profile) -> Iterator[Finding]:
    arch = architecture(profile)
    for capability in sorted(profile.capabilities - arch.capabilities) if arch else ():
        yield error("capabilities", f"{profile.arch} has no {capability}", f"remove it, or add it for {profile.arch}")


def _matching(profile: Profile) -> Iterator[Finding]:
    rule, units, usable_gib = profile.match, profile.compute.units, profile.memory.usable_gib
    if rule.units is not None and rule.units != units:
        yield error("match.units", f"{rule.units} would never match the {units} of compute.units", f"write {units}")
    if rule.min_memory_gib and usable_gib and rule.min_memory_gib > usable_gib:
        cause = f"{rule.min_memory_gib:g} GiB is above the usable {usable_gib:g}"
        yield error("match.min_memory_gib", cause, f"write at most {usable_gib:g}")
    family = profile.arch if profile.vendor == "cpu" else f"{profile.arch}-{units}"
    if profile.backend and profile.tuning_family != family:
        cause = f"{profile.tuning_family} is not architecture-units"
        yield flag("tuning_family", cause, f"write {family}, so that equal devices share tuned rows")


def _sources(profile: Profile) -> Iterator[Finding]:
    paths = {path for leaf in profile.numeric_fields() for path in _prefixes(leaf)} | set(_every_field(profile))
    for path in profile.sources:
        if path not in paths:
            near = difflib.get_close_matches(path, paths, n=1)
            hint = f"did you mean {near[0]}?" if near else "name a field that is given"
            yield error(f"sources.{path}", "no such field in this profile", hint)


def _prefixes(path: str) -> Iterator[str]:
    words = path.split(".")
    return (".".join(words[: count + 1]) for count in range(len(words)))


def _every_field(profile: Profile) -> Iterator[str]:
    for key, value in profile.model_dump().items():
        yield key
        if isinstance(value, dict):
            yield from (f"{key}.{child}" for child in value)


def _known_misquotes(profile: Profile) -> Iterator[Finding]:
    for entry in misquotes():
        same_part = not entry.pci_device_ids or entry.pci_device_ids & set(profile.match.pci_device_ids)
        if entry.arch == profile.arch and same_part and _says(profile, entry):
            wrong, right = (f"{word:g}" if isinstance(word, float) else word for word in (entry.wrong, entry.right))
            cure = f"write {right}" if right != "none" else "remove it"
            yield Finding(entry.severity, entry.field, f"{wrong} is a known misquote: {entry.why}", cure)


def _says(profile: Profile, entry: Misquote) -> bool:
    value: object = profile
    for word in entry.field.split("."):
        value = getattr(value, word, None)
    if isinstance(entry.wrong, str) or not isinstance(value, int | float):
        return value == entry.wrong
    return off(value, entry.wrong) < 0.005


_RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    _known_misquotes,  # first: they say most
    _identity,
    _languages,
    _completeness,
    _unit_count,
    _arithmetic,
    _flops_per_clock,
    _peaks,
    _int8_cut,
    _sparse,
    usable_memory,
    stacks_and_pins,
    memory_bandwidth,
    _lanes_and_caches,
    _capabilities,
    fp8_dialect,
    fp4_kinds,
    _matching,
    _sources,
)
