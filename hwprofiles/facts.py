"""Facts that profiles are held against: architectures, memory generations, and figures that are often quoted wrongly.

They are data (`tables/*.yaml`): a new architecture is a new entry, not a new branch. What an entry leaves out is not
checked.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from .records import Capability, MemoryKind, RateName, Rates, Record, Vendor

TABLES_FOLDER = Path(__file__).with_name("tables")


class Architecture(Record):
    vendor: Vendor
    memory_kind: MemoryKind
    max_units: int | None = None
    lane_width: int
    shared_memory_per_block_kib: float | None = None
    last_level_mib: float | None = None
    sparse_over_dense: float | None = None
    flops_per_clock_per_unit: Rates | None = None
    rates: Annotated[frozenset[RateName], Field(strict=False)] = frozenset()
    max_int8_over_fp8: float | None = None
    fp8_dialect: Literal["e4m3fn", "e4m3fnuz"] | None = None
    fp4: Annotated[frozenset[str], Field(strict=False)] = frozenset()
    capabilities: Annotated[frozenset[Capability], Field(strict=False)] = frozenset()
    note: str = ""
    source: str

    @property
    def known_rates(self) -> frozenset[RateName]:
        """The arithmetic that it has, in hardware or by widening; empty is "not listed"."""
        if self.rates or self.flops_per_clock_per_unit is None:
            return self.rates
        cut: list[RateName] = ["int8"] if self.max_int8_over_fp8 is not None else []
        return frozenset([*self.flops_per_clock_per_unit.known(), *cut])


class MemoryGeneration(Record):
    max_gbit_per_s_per_pin: float
    max_gb_per_stack: float
    source: str


class Misquote(Record):
    arch: str
    pci_device_ids: Annotated[frozenset[int], Field(strict=False)] = frozenset()
    field: str
    wrong: float | str
    right: float | str
    why: str
    severity: Literal["error", "flag"] = "error"


class Facts(Record):
    architectures: dict[str, Architecture]
    memory_generations: dict[str, MemoryGeneration]


@cache
def facts() -> Facts:
    return Facts.model_validate(yaml.safe_load((TABLES_FOLDER / "architectures.yaml").read_text("utf-8")))


@cache
def misquotes() -> tuple[Misquote, ...]:
    entries = yaml.safe_load((TABLES_FOLDER / "misquotes.yaml").read_text("utf-8"))
    return tuple(Misquote.model_validate(entry) for entry in entries)
