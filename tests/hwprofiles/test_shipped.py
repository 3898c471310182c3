"""Every shipped profile loads, agrees with itself, says where its numbers come from and survives its own JSON."""

import json
import subprocess
import sys
from typing import Any

import pytest
from ambidex.hwprofiles.reader import check, load, names
from ambidex.hwprofiles.schema import Profile

SHIPPED = [
    "amd-mi300x", "amd-mi325x", "amd-mi355x", "cerebras-cs3", "cpu-amx", "cpu-arm", "cpu-avx2", "cpu-avx512",
    "groq-lpu", "intel-gaudi3", "nvidia-b200", "nvidia-b300", "nvidia-gb200", "nvidia-h100-sxm", "nvidia-h200-sxm",
]  # fmt: skip
# What is quoted somewhere and stands on no source that could be named.
UNVERIFIED = {
    "cerebras-cs3": {"tdp_w"},
    "cpu-arm": {f"compute.flops_per_clock_per_unit.{rate}" for rate in ("fp64", "fp32", "fp16", "bf16", "int8")},
    "cpu-avx2": {"compute.flops_per_clock_per_unit.int8"},
    "cpu-avx512": {"compute.flops_per_clock_per_unit.bf16", "compute.flops_per_clock_per_unit.int8"},
    "groq-lpu": {"tdp_w"},
    "intel-gaudi3": {"memory.usable_gib", "memory.gbit_per_s_per_pin", "compute.clock_ghz", "fp8.max_value"},
    "nvidia-b300": {
        "peak.dense_tflops.fp64", "peak.dense_tflops.int8", "compute.units", "compute.vector_clock_ghz",
        "on_chip.l2_mib",
    },
    "nvidia-gb200": {"on_chip.l2_mib"},
}  # fmt: skip


def test_names_are_the_yaml_files() -> None:
    assert names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_profile_agrees_with_itself(name: str) -> None:
    flagged = [finding.field for finding in check(load(name))]
    assert flagged == (["peak.dense_tflops.int8"] if name == "nvidia-b300" else [])


@pytest.mark.parametrize("name", SHIPPED)
def test_unsourced_numbers_are_known(name: str) -> None:
    assert set(load(name).unverified_fields()) == UNVERIFIED.get(name, set())


@pytest.mark.parametrize("name", SHIPPED)
def test_json_round_trip(name: str) -> None:
    profile = load(name)
    dumped = profile.model_dump(mode="json")
    again = Profile.model_validate(json.loads(json.dumps(dumped)))
    assert again == profile
    assert hash(again) == hash(profile)


def test_json_is_ordered_and_readable() -> None:
    dumped = load("nvidia-b200").model_dump(mode="json")
    assert dumped["capabilities"] == sorted(dumped["capabilities"])
    assert dumped["match"]["pci_device_ids"] == ["0x2901"]
    assert dumped["peak"]["dense_tflops"]["fp4"] == 9000
    assert "int8" not in load("cerebras-cs3").model_dump(mode="json")["peak"]["sparse_tflops"]


def test_a_number_without_source_is_reported() -> None:
    data = load("amd-mi300x").model_dump()
    del data["sources"]["tdp_w"]
    data["sources"]["link"] = "unverified, a forum"
    assert set(Profile.model_validate(data).unverified_fields()) == {
        "tdp_w",
        "link.gb_per_s_bidirectional",
        "link.peers",
    }


@pytest.mark.parametrize(
    ("name", "eur_per_hour", "tokens_per_s_70b"),
    [
        ("nvidia-h100-sxm", 3.5, 2000),
        ("nvidia-h200-sxm", 4.5, 3200),
        ("nvidia-b200", 6.5, 5500),
        ("amd-mi300x", 3.0, 2800),
        ("amd-mi325x", 3.8, 3500),
        ("groq-lpu", None, 800),
    ],
)
def test_quoted_price_and_speed(name: str, eur_per_hour: float | None, tokens_per_s_70b: float) -> None:
    profile = load(name)
    assert (profile.price and profile.price.eur_per_hour) == eur_per_hour
    assert profile.price is None or profile.price.basis == "quoted"
    assert profile.quoted is not None
    assert profile.quoted.tokens_per_s_70b == tokens_per_s_70b


def test_dense_tflops_by_rate_and_by_dtype() -> None:
    h100, mi300x = load("nvidia-h100-sxm"), load("amd-mi300x")
    assert h100.dense_tflops("bf16") == h100.dense_tflops("torch.bfloat16") == 989.4
    assert h100.dense_tflops("float8_e4m3fn") == 1978.9
    assert mi300x.dense_tflops("float8_e4m3fnuz") == 2614.9
    assert mi300x.dense_tflops("float8_e4m3fn") is None
    assert h100.dense_tflops("float4_e2m1fn_x2") is None
    assert h100.dense_tflops("int64") is None
    with pytest.raises(ValueError, match="unknown dtype 'bfloat61'"):
        h100.dense_tflops("bfloat61")


def test_best_bandwidth_is_the_measured_one() -> None:
    assert load("nvidia-h200-sxm").memory.bandwidth_gb_per_s.best == 4300
    assert load("nvidia-h100-sxm").memory.bandwidth_gb_per_s.best == 3350
    assert load("cpu-avx2").memory.bandwidth_gb_per_s.best is None


def test_devices_to_hold() -> None:
    weights_70b = 70.6e9 * 2
    assert load("nvidia-h200-sxm").devices_to_hold(weights_70b) == 1
    assert load("nvidia-h100-sxm").devices_to_hold(weights_70b) == 2
    assert load("groq-lpu").devices_to_hold(weights_70b) == 614
    assert load("cerebras-cs3").devices_to_hold(weights_70b) == 4
    with pytest.raises(ValueError, match="on_device"):
        load("cpu-amx").devices_to_hold(1)


def test_on_device_fills_a_cpu_and_computes_its_peaks() -> None:
    profile = load("cpu-amx").on_device(units=2, clock_ghz=2.5, usable_gib=24, bandwidth_gb_per_s=25)
    assert profile.dense_tflops("bfloat16") == pytest.approx(2 * 2.5 * 1024 / 1000)
    assert profile.dense_tflops("float32") == pytest.approx(2 * 2.5 * 64 / 1000)
    assert profile.memory.bandwidth_gb_per_s.best == 25
    assert profile.devices_to_hold(25 * 2**30) == 2
    assert profile.unverified_fields() == []
    assert profile.is_read_from_device
    assert check(profile) == []
    assert load("cpu-amx").compute.units is None
    assert not load("cpu-amx").is_read_from_device


def test_on_device_keeps_doubts_about_the_arithmetic() -> None:
    profile = load("cpu-avx2").on_device(units=4, clock_ghz=3.0)
    assert set(profile.unverified_fields()) == {"compute.flops_per_clock_per_unit.int8", "peak.dense_tflops.int8"}


def test_on_device_without_a_clock_knows_no_peaks() -> None:
    profile = load("cpu-avx2").on_device(units=4, usable_gib=16)
    assert profile.peak.dense_tflops.items() == []


def test_on_device_scales_a_card_and_what_has_no_product() -> None:
    whole, part = load("nvidia-b300"), load("nvidia-b300").on_device(units=74)
    assert part.dense_tflops("bf16") == pytest.approx(2250 / 2, rel=1e-3)
    assert part.dense_tflops("int8") == pytest.approx(190 / 2)
    assert whole.dense_tflops("bf16") == 2250
    assert (whole.tuning_family, part.tuning_family) == ("sm_103-148", "sm_103-74")
    assert [finding for finding in check(part) if finding.severity == "error"] == []


def test_on_device_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        load("cpu-avx2").on_device(usable_gib=-1)
    with pytest.raises(ValueError, match="greater than 0"):
        load("cpu-avx2").on_device(units=0)


def test_profiles_are_immutable() -> None:
    rates: Any = load("amd-mi300x").peak.dense_tflops
    with pytest.raises(ValueError, match="frozen"):
        rates.bf16 = 1.0


def test_importing_does_not_import_torch() -> None:
    code = "import sys, ambidex.hwprofiles.match, ambidex.hwprofiles.roofline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
