"""The parts that a profile is made of: frozen, typed, no unknown field.

Units stand in the names: `_gb` is the vendor's label (vendors count HBM in binary gigabytes), `_gib` is 2**30 bytes,
`_gb_per_s` is 1e9 bytes a second, `_tflops` is 1e12 operations a second (a multiply-add is two; for `int8` read TOPS).
Peaks are dense; structured sparsity has its own table.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_serializer,
    model_serializer,
)

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# Free names, because a vendor, its backend and a kernel language are added by adding their files.
Vendor = Name
BackendName = Name
Language = Name
MemoryKind = Literal["hbm", "sram", "dram"]
RateName = Literal["fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp6", "fp4", "int8"]
DtypeName = Literal[
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float4_e2m1fn_x2", "int8",
]  # fmt: skip

RATE_NAMES: tuple[RateName, ...] = get_args(RateName)
RATE_OF_DTYPE: dict[str, RateName] = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "float8_e4m3fnuz": "fp8",
    "float8_e5m2fnuz": "fp8",
    "float4_e2m1fn_x2": "fp4",
    "int8": "int8",
}


def _parse_pci_id(value: object) -> object:
    return int(value, 16) if isinstance(value, str) and value.lower().startswith("0x") else value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
_CONTROLS = r"\x00-\x1f\x7f-\x9f"  # a terminal would obey them
Word = Annotated[str, Field(min_length=1, pattern=rf"^[^\s{_CONTROLS}]([^{_CONTROLS}]*[^\s{_CONTROLS}])?$")]
Capability = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
PciDeviceId = Annotated[
    int,
    BeforeValidator(_parse_pci_id),
    Field(ge=0, le=0xFFFF),
    PlainSerializer(lambda value: f"0x{value:04x}", return_type=str, when_used="json"),
]


class Record(BaseModel):
    """Base of every part of a profile: immutable, no unknown field, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Rates(Record):
    """One number per kind of arithmetic; `None` is "the device has none, or nobody published it"."""

    fp64: Positive | None = None
    fp32: Positive | None = None
    tf32: Positive | None = None
    fp16: Positive | None = None
    bf16: Positive | None = None
    fp8: Positive | None = None
    fp6: Positive | None = None
    fp4: Positive | None = None
    int8: Positive | None = None

    def get(self, rate: RateName) -> float | None:
        value: float | None = getattr(self, rate)
        return value

    def items(self) -> list[tuple[RateName, float]]:
        """The known (rate, number) pairs, in the order of `RATE_NAMES`."""
        return [(rate, value) for rate in RATE_NAMES if (value := self.get(rate)) is not None]

    def known(self) -> list[RateName]:
        return [rate for rate, _ in self.items()]

    @model_serializer
    def _known_only(self) -> dict[str, float]:
        return {rate: int(value) if value.is_integer() else value for rate, value in self.items()}


class Bandwidth(Record):
    spec: Positive | None = None
    measured: Positive | None = None

    @property
    def best(self) -> float | None:
        """What is known of one device of this kind: the measured number where there is one, else the specified."""
        return self.measured if self.measured is not None else self.spec


class Memory(Record):
    kind: MemoryKind
    generation: Literal["hbm2e", "hbm3", "hbm3e"] | None = None
    raw_gb: Positive | None = Field(description="the vendor's label")
    usable_gib: Positive | None = Field(description="what the driver reports as the total")
    bandwidth_gb_per_s: Bandwidth
    bus_bits: Count | None = None
    gbit_per_s_per_pin: Positive | None = None


class Peak(Record):
    dense_tflops: Rates
    sparse_tflops: Rates = Rates()


class Compute(Record):
    """Where the peaks come from: units × clock × operations a clock and unit.

    `vector_clock_ghz` is the clock of fp64 and fp32 where a vendor quotes those at another one than the matrix units.
    """

    unit: Word
    units: Count | None
    clock_ghz: Positive | None
    vector_clock_ghz: Positive | None = None
    flops_per_clock_per_unit: Rates

    def product_tflops(self, rate: RateName) -> float | None:
        """units × clock × FLOPs/clock/unit in TFLOPS, or None where one of the three is unknown."""
        clock_ghz = self.vector_clock_ghz if rate in ("fp64", "fp32") and self.vector_clock_ghz else self.clock_ghz
        flops = self.flops_per_clock_per_unit.get(rate)
        if self.units is None or clock_ghz is None or flops is None:
            return None
        return self.units * clock_ghz * flops / 1000


class OnChip(Record):
    """Memory beside the units. `l2_mib` is the sum over `l2_slices`, one a die (None: all units reach one cache)."""

    shared_memory_per_block_kib: Positive | None = None
    l2_mib: Positive | None = None
    l2_slices: Count | None = None
    last_level_mib: Positive | None = None


class Link(Record):
    kind: Word
    gb_per_s_bidirectional: Positive
    peers: Count | None = None


class Price(Record):
    """Somebody's price, never a fact about the device: `basis` says so."""

    eur_per_hour: Positive
    basis: Literal["quoted"]


class Quoted(Record):
    """A claim that is carried as a claim: no roofline and no plan reads it."""

    tokens_per_s_70b: Positive
    source: Word


class Fp8(Record):
    """How FP8 bits are read: `e4m3fn` (OCP, maximum 448) or `e4m3fnuz` (maximum 240, 0x80 is NaN)."""

    dialect: Literal["e4m3fn", "e4m3fnuz"]
    max_value: Positive
    block_scale: Literal["fp32", "ue8m0"] | None = None


class MatchRule(Record):
    """What a device must report to be this profile's. `arch` defaults to the profile's own architecture."""

    arch: Annotated[tuple[Word, ...], Field(strict=False, min_length=1)]
    units: Count | None = None
    pci_device_ids: Annotated[tuple[PciDeviceId, ...], Field(strict=False)] = ()
    min_memory_gib: Positive | None = None
    flags: Annotated[frozenset[Capability], Field(strict=False)] = frozenset()

    @field_serializer("flags", when_used="json")
    def _sorted(self, flags: frozenset[str]) -> list[str]:
        return sorted(flags)
