"""In which form weights and keys are planned to lie, what that costs in bits, and on which devices it runs.

Bits a value, scales included: fp8 has one float32 scale a block of 128 × 128 or fewer, int8 one a row of 4,096 or more
(both below 0.01 bit), int4 a 16-bit scale and no zero a group of 128 (Frantar et al., arXiv:2210.17323), NVFP4 an 8-bit
scale a group of 16, MXFP4 an 8-bit exponent a group of 32 (OCP Microscaling v1.0). As in `runtime/loading.py` the
layers' products are stored so; tables, norms and the head stay in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..hwprofiles.records import RATE_OF_DTYPE, RateName
from ..hwprofiles.schema import Profile
from ..runtime.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """weight_bits: of a layer's weight. rate: at which products run. kv_bits: of a key's or value's number."""

    name: str
    weight_bits: float
    rate: RateName
    kv_bits: int

    @property
    def weight_share(self) -> float:
        """Of the bytes at 16 bits."""
        return self.weight_bits / 16

    @property
    def kv_share(self) -> float:
        return self.kv_bits / 16


_NVFP4_BITS, _MXFP4_BITS = 4.5, 4.25
_FORMS: dict[str, tuple[float, RateName]] = {
    "bf16": (16.0, "bf16"),
    "fp8": (8.0, "fp8"),
    "int8": (8.0, "int8"),
    "int4": (4.125, "bf16"),
    "fp4": (_NVFP4_BITS, "fp4"),
}
FORMATS = tuple(_FORMS)
KV_FORMATS = {"bf16": 16, "fp8": 8}


def precision(name: str, profile: Profile, kv_format: str = "bf16") -> Precision | str:
    """The precision of that name on that device; or why the device has none such, in one line.

    ConfigError: no format or KV format is called so.
    """
    check_formats([name], kv_format)
    bits, rate = _FORMS[name]
    if name == "fp4" and profile.fp4 and "nvfp4" not in profile.fp4:
        bits = _MXFP4_BITS
    found = _rate(profile, rate)
    if found is None:
        return f"{profile.name} multiplies no {rate} matrices: it has {', '.join(_rates(profile))}"
    if kv_format == "fp8" and profile.fp8 is None:
        return f"{profile.name} has no FP8 for the KV cache: it has {', '.join(_rates(profile))}"
    return Precision(name, bits, found, KV_FORMATS[kv_format])


def check_formats(names: Iterable[str], kv_format: str) -> None:
    """ConfigError: no format or KV format is called so."""
    for name in names:
        if name not in _FORMS:
            raise ConfigError(f"format is {name!r}: it is one of {', '.join(FORMATS)}")
    if kv_format not in KV_FORMATS:
        raise ConfigError(f"KV format is {kv_format!r}: it is one of {', '.join(KV_FORMATS)}")


def _rate(profile: Profile, rate: RateName) -> RateName | None:
    """The rate itself; for 16 bits the other kind of them where a device has but one."""
    known = _rates(profile)
    if rate == "bf16" and rate not in known and "fp16" in known:
        return "fp16"
    return rate if rate in known else None


def _rates(profile: Profile) -> list[RateName]:
    """Those published; of a class of hosts those that follow from the machine; else those of the device's dtypes."""
    known = profile.peak.dense_tflops.known() or profile.compute.flops_per_clock_per_unit.known()
    return known or list(dict.fromkeys(RATE_OF_DTYPE[each] for each in profile.dtypes))
