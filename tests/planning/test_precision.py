"""Formats of weights and keys: what a device can, what it costs in bits, and why it cannot."""

import pytest
from ambidex.hwprofiles.reader import load, names
from ambidex.planning.precision import FORMATS, precision
from ambidex.runtime.errors import ConfigError


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("format_name", FORMATS)
def test_every_profile_has_a_format_or_says_why_not(name: str, format_name: str) -> None:
    profile = load(name)
    found = precision(format_name, profile)
    if isinstance(found, str):
        assert found.startswith(f"{name} multiplies no ")
        assert not found.endswith("it has ")
        return
    known = profile.peak.dense_tflops.known()
    assert not known or found.rate in known
    assert 4 < found.weight_bits <= 16


@pytest.mark.parametrize(
    ("profile", "format_name", "bits", "rate"),
    [
        ("nvidia-h100-sxm", "bf16", 16, "bf16"),
        ("nvidia-h100-sxm", "fp8", 8, "fp8"),
        ("nvidia-h100-sxm", "int4", 4.125, "bf16"),  # 16-bit scales of groups of 128
        ("nvidia-b200", "fp4", 4.5, "fp4"),  # NVFP4: 8-bit scales of groups of 16
        ("amd-mi355x", "fp4", 4.25, "fp4"),  # MXFP4: 8-bit exponents of groups of 32
        ("groq-lpu", "bf16", 16, "fp16"),
        ("cerebras-cs3", "bf16", 16, "bf16"),  # by its dtypes: no dense rate is published
    ],
)
def test_bits_and_rates(profile: str, format_name: str, bits: float, rate: str) -> None:
    found = precision(format_name, load(profile), "bf16")
    assert not isinstance(found, str)
    assert (found.weight_bits, found.rate, found.weight_share) == (bits, rate, bits / 16)


def test_keys_in_fp8() -> None:
    found = precision("bf16", load("amd-mi300x"), "fp8")
    assert not isinstance(found, str)
    assert found.kv_share == 0.5
    assert "no FP8 for the KV cache" in str(precision("int8", load("groq-lpu"), "fp8"))


@pytest.mark.parametrize(("format_name", "kv_format"), [("fp7", "bf16"), ("bf16", "int3")])
def test_unknown_names_are_refused_with_the_known(format_name: str, kv_format: str) -> None:
    with pytest.raises(ConfigError, match="it is one of bf16, fp8"):
        precision(format_name, load("nvidia-h100-sxm"), kv_format)
