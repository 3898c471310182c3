"""Detection against what drivers really report; names never count and missing telemetry never prevents a match."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ambidex.hwprofiles.match import DeviceReport, match
from ambidex.hwprofiles.reader import load

FIXTURES = {
    path.stem: json.loads(path.read_text("utf-8")) for path in Path(__file__).with_name("fixtures").glob("*.json")
}
CARDS = [name for name, fixture in FIXTURES.items() if fixture["report"]["vendor"] != "cpu"]
H200_BYTES = 143771 << 20


def report_of(fixture: dict[str, Any]) -> DeviceReport:
    fields = dict(fixture["report"])
    if fields.get("pci_device_id") is not None:
        fields["pci_device_id"] = int(fields["pci_device_id"], 16)
    if "flags" in fields:
        fields["flags"] = frozenset(fields["flags"].split())
    return DeviceReport(**fields)


def test_fixtures_say_where_they_come_from() -> None:
    assert len(FIXTURES) >= 10
    for fixture in FIXTURES.values():
        assert fixture["origin"] in ("recorded", "constructed from documentation")
        assert fixture["source"]


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_fixture_is_recognised(name: str) -> None:
    fixture = FIXTURES[name]
    found = match(report_of(fixture))
    assert found.profile is not None
    assert (found.profile.name, found.kind) == (fixture["profile"], fixture["kind"])


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_a_lying_name_changes_nothing(name: str) -> None:
    report = report_of(FIXTURES[name])
    for lie in ("", "NVIDIA H100 80GB HBM3", "AMD Instinct MI325X", "NVIDIA GeForce RTX 5090"):
        assert match(replace(report, name=lie)) == match(report)


@pytest.mark.parametrize("name", CARDS)
def test_without_pci_id_the_rest_suffices(name: str) -> None:
    found = match(replace(report_of(FIXTURES[name]), pci_device_id=None))
    assert found.profile is not None
    assert (found.profile.name, found.kind) == (FIXTURES[name]["profile"], "exact")


@pytest.mark.parametrize("name", CARDS)
def test_missing_telemetry_still_matches_the_architecture(name: str) -> None:
    report = report_of(FIXTURES[name])
    bare = DeviceReport(vendor=report.vendor, arch=report.arch)
    found = match(bare)
    assert found.kind == "near"
    assert found.profile is not None
    assert found.profile.arch == load(FIXTURES[name]["profile"]).arch
    assert "not reported" in found.reason


@pytest.mark.parametrize(
    ("report", "expected", "kind"),
    [
        (DeviceReport("amd", "gfx942", 304, 0x74A1), "amd-mi300x", "exact"),
        (DeviceReport("amd", "gfx942", 304, 0x74B5), "amd-mi300x", "exact"),
        (DeviceReport("amd", "gfx942", 304, 0x74A5), "amd-mi325x", "exact"),
        (DeviceReport("amd", "gfx942", 304, 0x74B9), "amd-mi325x", "exact"),
        (DeviceReport("amd", "gfx942", 304, None, 192 << 30), "amd-mi300x", "exact"),
        (DeviceReport("amd", "gfx942", 304, None, 256 << 30), "amd-mi325x", "exact"),
        (DeviceReport("amd", "gfx950", 256, 0x75A3), "amd-mi355x", "exact"),
        (DeviceReport("amd", None, 304, 0x74A5), "amd-mi325x", "exact"),
        (DeviceReport("nvidia", "sm_90a", 132, 0x2330), "nvidia-h100-sxm", "exact"),
        (DeviceReport("nvidia", "sm_90", 132, None, 81559 << 20), "nvidia-h100-sxm", "exact"),
        (DeviceReport("nvidia", "sm_90", 132, 0x2335, H200_BYTES), "nvidia-h200-sxm", "exact"),
        (DeviceReport("nvidia", "sm_100", 148), "nvidia-b200", "exact"),
        (DeviceReport("nvidia", "sm_100", 152), "nvidia-gb200", "exact"),
        (DeviceReport("nvidia", "sm_103", 148, 0x3182, 275040 << 20), "nvidia-b300", "exact"),
        # The memory is not reported and two cards share the rest: the smaller one is the safe one.
        (DeviceReport("amd", "gfx942", 304), "amd-mi300x", "near"),
        (DeviceReport("nvidia", "sm_90", 132), "nvidia-h100-sxm", "near"),
        # Cards without a profile of their own: H100 PCIe, GH200, MI308X, MI350X, GB300.
        (DeviceReport("nvidia", "sm_90", 114, 0x2331, 80 << 30), "nvidia-h100-sxm", "near"),
        (DeviceReport("nvidia", "sm_90", 132, 0x2348, 143 << 30), "nvidia-h200-sxm", "near"),
        (DeviceReport("amd", "gfx942", 80, 0x74A2, 192 << 30), "amd-mi300x", "near"),
        (DeviceReport("amd", "gfx950", 256, 0x75A0, 288 << 30), "amd-mi355x", "near"),
        (DeviceReport("nvidia", "sm_103", 152, 0x31C2, 275040 << 20), "nvidia-b300", "near"),
        # A slice of a card: one of eight partitions of an MI300X, a MIG instance of an H200.
        (DeviceReport("amd", "gfx942", 38, 0x74A1, 24 << 30), "amd-mi300x", "near"),
        (DeviceReport("nvidia", "sm_90", 60, 0x2335, 71 << 30), "nvidia-h200-sxm", "near"),
    ],
)
def test_cards(report: DeviceReport, expected: str, kind: str) -> None:
    found = match(report)
    assert found.profile is not None
    assert (found.profile.name, found.kind) == (expected, kind), found.reason


def test_the_reason_names_the_doubt() -> None:
    found = match(DeviceReport("nvidia", "sm_90", 114, 0x2331, 80 << 30))
    assert found.reason == (
        "PCI id 0x2331 is unknown, taken as the nearest sm_90; 114 SMs reported, 132 in the profile"
    )


@pytest.mark.parametrize(
    "report",
    [
        DeviceReport("nvidia", "sm_80", 108),
        DeviceReport("amd", "gfx1100", 96),
        DeviceReport("nvidia"),
        DeviceReport("moon"),
    ],
)
def test_no_profile_says_what_to_write(report: DeviceReport) -> None:
    found = match(report)
    assert (found.profile, found.kind) == (None, "none")
    assert f"hwprofiles/{report.vendor}-<device>.yaml" in found.reason


def test_only_the_given_profiles_are_candidates() -> None:
    report = DeviceReport("amd", "gfx942", 304, 0x74A5, 256 << 30)
    found = match(report, [load("amd-mi300x"), load("nvidia-b200")])
    assert (found.profile, found.kind) == (load("amd-mi300x"), "near")


def test_a_cpu_that_reports_no_flags_gets_no_vector_kernels() -> None:
    found = match(DeviceReport("cpu", "AMD64", units=8))
    assert found.kind == "near"
    assert found.profile is not None
    assert (found.profile.name, found.profile.capabilities) == ("cpu-avx2", frozenset())


def test_a_cpu_without_avx2_keeps_only_what_it_has() -> None:
    found = match(DeviceReport("cpu", "x86_64", flags=frozenset({"sse2", "f16c"})))
    assert found.kind == "near"
    assert "lacks avx2, fma" in found.reason
    assert found.profile is not None
    assert found.profile.capabilities == {"f16c"}


def test_an_arm_cpu_needs_no_flags() -> None:
    found = match(DeviceReport("cpu", "arm64"))
    assert (found.profile, found.kind) == (load("cpu-arm"), "exact")
