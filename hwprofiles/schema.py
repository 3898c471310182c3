"""What a profile says about a device: frozen, typed numbers, each with its source.

A `null` in a CPU profile is "read it from the device" (`Profile.on_device`): such a profile describes a class of
machines. What a profile does not know: what other programs take of the memory, clocks under a power cap, and anything
about a device's name, which nothing here reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, model_validator

from .records import (
    RATE_NAMES,
    RATE_OF_DTYPE,
    BackendName,
    Capability,
    Compute,
    Count,
    DtypeName,
    Fp8,
    Language,
    Link,
    MatchRule,
    Memory,
    OnChip,
    Peak,
    Positive,
    Price,
    Quoted,
    RateName,
    Record,
    Vendor,
    Word,
)

# Tensor dtypes that exist but that no device multiplies matrices of.
_DTYPES_WITHOUT_RATE = {"float8_e8m0fnu", "bool", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}
READ_FROM_DEVICE = "read from the device"
"""The source of a number that `Profile.on_device` filled in."""


class Profile(Record):
    """The numbers of one device. Immutable; two profiles with the same numbers are equal."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)+$")]
    title: Word
    vendor: Vendor
    arch: Word
    backend: BackendName | None
    languages: Annotated[tuple[Language, ...], Field(strict=False)]
    match: MatchRule
    memory: Memory
    peak: Peak
    compute: Compute
    on_chip: OnChip
    lane_width: Count
    link: Link | None = None
    tdp_w: Positive | None = None
    price: Price | None = None
    quoted: Quoted | None = None
    fp8: Fp8 | None = None
    fp4: Annotated[tuple[Literal["mxfp4", "nvfp4"], ...], Field(strict=False)] = ()
    dtypes: Annotated[tuple[DtypeName, ...], Field(strict=False, min_length=1)]
    capabilities: Annotated[frozenset[Capability], Field(strict=False)] = frozenset()
    tuning_family: Word
    sources: dict[str, Word] = Field(default_factory=dict, description="field path -> where its number comes from")

    @model_validator(mode="before")
    @classmethod
    def _own_arch_by_default(cls, data: Any) -> Any:
        match = data.get("match") if isinstance(data, dict) else None
        if isinstance(match, dict) and "arch" not in match and isinstance(data.get("arch"), str):
            return {**data, "match": {**match, "arch": [data["arch"]]}}
        return data

    @field_serializer("capabilities", when_used="json")
    def _sorted(self, capabilities: frozenset[str]) -> list[str]:
        return sorted(capabilities)

    def __hash__(self) -> int:
        return hash((self.name, self.arch, self.compute.units, self.memory.usable_gib))

    def dense_tflops(self, dtype: str) -> float | None:
        """The dense peak for a rate (`bf16`) or a tensor dtype (`bfloat16`, `torch.bfloat16`).

        None where the device lacks that dtype (an `e4m3fn` tensor on an `e4m3fnuz` device, too) or its rate is unknown.
        """
        word = dtype.removeprefix("torch.")
        if word in RATE_NAMES:
            return self.peak.dense_tflops.get(word)
        if word in RATE_OF_DTYPE:
            return self.peak.dense_tflops.get(RATE_OF_DTYPE[word]) if word in self.dtypes else None
        if word in _DTYPES_WITHOUT_RATE:
            return None
        raise ValueError(f"unknown dtype {dtype!r}: give one of {', '.join([*RATE_NAMES, *RATE_OF_DTYPE])}")

    def devices_to_hold(self, num_bytes: float) -> int:
        """How many such devices it takes for `num_bytes` to be resident (weights on an SRAM machine have to be)."""
        if self.memory.usable_gib is None:
            raise ValueError(f"{self.name}: usable memory is read from the device: call on_device(usable_gib=…) first")
        return max(1, math.ceil(num_bytes / (self.memory.usable_gib * 2**30)))

    def on_device(
        self,
        *,
        units: int | None = None,
        usable_gib: float | None = None,
        bandwidth_gb_per_s: float | None = None,
        clock_ghz: float | None = None,
    ) -> Profile:
        """This profile with what one real device reports filled in; the dense peaks follow units and clock.

        Sparse peaks are dropped when units or clock change, and a card of other units leaves the tuning family. Raises
        `ValueError` for a number that is not positive.
        """
        data = self.model_dump()
        if units is not None or clock_ghz is not None:
            self._fill_compute(data, units, clock_ghz)
        if usable_gib is not None:
            data["memory"]["usable_gib"] = usable_gib
            data["match"]["min_memory_gib"] = None
            data["sources"]["memory.usable_gib"] = READ_FROM_DEVICE
        if bandwidth_gb_per_s is not None:
            data["memory"]["bandwidth_gb_per_s"]["measured"] = bandwidth_gb_per_s
            data["sources"]["memory.bandwidth_gb_per_s.measured"] = READ_FROM_DEVICE
        return Profile.model_validate(data)

    @property
    def is_read_from_device(self) -> bool:
        """Whether `on_device` has filled in numbers of a real machine."""
        return READ_FROM_DEVICE in self.sources.values()

    def _fill_compute(self, data: dict[str, Any], units: int | None, clock_ghz: float | None) -> None:
        compute, sources = data["compute"], data["sources"]
        if units is not None:
            compute["units"], sources["compute.units"] = units, READ_FROM_DEVICE
            data["match"]["units"] = self.match.units and units
            data["tuning_family"] = self.tuning_family if self.vendor == "cpu" else f"{self.arch}-{units}"
        if clock_ghz is not None:
            compute["clock_ghz"], sources["compute.clock_ghz"] = clock_ghz, READ_FROM_DEVICE
            compute["vector_clock_ghz"] = None
        peaks = dict(self._peaks_on(Compute.model_validate(compute)))
        data["peak"] = {"dense_tflops": peaks}
        for rate in peaks:
            doubt = "" if self._source_of(f"compute.flops_per_clock_per_unit.{rate}") else "unverified, "
            sources[f"peak.dense_tflops.{rate}"] = f"{doubt}calculated from units and clock of the device"

    def _peaks_on(self, compute: Compute) -> Iterator[tuple[RateName, float]]:
        """units × clock × FLOPs/clock where the last is known; else the published peak, scaled by units × clock."""
        old, new = self.compute, compute
        for rate in RATE_NAMES:
            peak, product = self.peak.dense_tflops.get(rate), compute.product_tflops(rate)
            if product is not None:
                yield rate, product
            elif peak is not None and old.units and old.clock_ghz and new.units and new.clock_ghz:
                yield rate, peak * (new.units * new.clock_ghz) / (old.units * old.clock_ghz)

    def numeric_fields(self) -> list[str]:
        """Paths of every number that the profile states (`memory.raw_gb`, `peak.dense_tflops.bf16`, …)."""
        facts = self.model_dump(exclude={"sources": True, "match": {"units", "min_memory_gib"}})
        return [path for path, value in _leaves(facts) if _is_numeric(value)]

    def unverified_fields(self) -> list[str]:
        """Numbers that no source stands behind: none is given, or its text begins with "unverified".

        A source covers its field and what lies under it; the longest path counts.
        """
        return [path for path in self.numeric_fields() if not self._source_of(path)]

    def _source_of(self, path: str) -> str | None:
        if path.startswith("quoted.") and self.quoted is not None:
            return self.quoted.source
        while path:
            if path in self.sources:
                return None if self.sources[path].startswith("unverified") else self.sources[path]
            path = path.rpartition(".")[0]
        return None


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, child in value.items():
        yield from _leaves(child, f"{path}.{key}" if path else str(key))


def _is_numeric(value: object) -> bool:
    if isinstance(value, tuple):
        return any(_is_numeric(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)
