"""Figures that are quoted wrongly in public, put into a copy of the right profile: each is refused or flagged."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ambidex.hwprofiles.reader import ProfileError, check, load, load_file
from ambidex.hwprofiles.schema import Profile

DENSE, SPARSE = "peak.dense_tflops", "peak.sparse_tflops"
REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("sparse quoted as dense", "nvidia-h200-sxm", {f"{DENSE}.fp8": 3958, f"{DENSE}.bf16": 1979}),
    ("HBM2e is the PCIe card", "nvidia-h100-sxm", {"memory.generation": "hbm2e"}),
    ("sparse FP8 quoted as dense", "nvidia-b200", {f"{DENSE}.fp8": 9000}),
    ("two GPUs taken for one", "nvidia-b200", {"memory.raw_gb": 384}),
    ("raw memory taken for usable", "nvidia-b200", {"memory.usable_gib": 192}),
    ("rounded bandwidth", "nvidia-b200", {"memory.bandwidth_gb_per_s.spec": 8000}),
    ("consumer Blackwell", "nvidia-b200", {"arch": "sm_120"}),
    ("everything grew, not only FP4", "nvidia-b300", {f"{DENSE}.fp8": 7000, f"{DENSE}.bf16": 3500}),
    ("INT8 like the B200", "nvidia-b300", {f"{DENSE}.int8": 4500}),
    ("TDP of the MI300X", "amd-mi325x", {"tdp_w": 750}),
    ("memory as announced", "amd-mi325x", {"memory.raw_gb": 288}),
    ("dense quoted as sparse", "amd-mi300x", {f"{SPARSE}.fp8": 2614}),
    ("dense quoted as sparse", "amd-mi325x", {f"{SPARSE}.fp8": 2614}),
    ("FP8 quoted as FP16", "amd-mi300x", {f"{DENSE}.fp16": 2615}),
    ("a quarter of each", "amd-mi300x", {f"{DENSE}.fp16": 330, f"{DENSE}.fp8": 661}),
    ("sparse FP4 quoted as dense", "amd-mi355x", {f"{DENSE}.fp4": 20100}),
    ("L3 of nobody", "amd-mi355x", {"on_chip.last_level_mib": 64}),
    ("CUs on the dies", "amd-mi355x", {"compute.units": 288}),
    ("RDNA's lanes", "amd-mi300x", {"lane_width": 32}),
    ("RDNA's lanes", "amd-mi355x", {"lane_width": 32}),
    ("INT8 TOPS quoted as FP8", "groq-lpu", {f"{DENSE}.fp8": 750}),
    ("sparse FP16 quoted as FP8", "cerebras-cs3", {f"{DENSE}.fp8": 125000}),
    ("sparse FP16 quoted as dense", "cerebras-cs3", {f"{DENSE}.fp16": 125000}),
    ("TDP of Gaudi 2", "intel-gaudi3", {"tdp_w": 600}),
]
FLAGGED: list[tuple[str, str, dict[str, Any]]] = [
    ("unconfirmed peak", "intel-gaudi3", {f"{DENSE}.bf16": 1856}),
    ("unconfirmed peak", "intel-gaudi3", {f"{DENSE}.fp8": 1856}),
]


def with_edits(name: str, edits: dict[str, Any]) -> dict[str, Any]:
    data = load(name).model_dump(mode="json")
    del data["match"]["arch"]
    for path, value in edits.items():
        *parents, last = path.split(".")
        part = data
        for word in parents:
            part = part[word]
        part[last] = value
    return data


def fields_of(data: dict[str, Any], severity: str) -> set[str]:
    return {finding.field for finding in check(Profile.model_validate(data)) if finding.severity == severity}


@pytest.mark.parametrize(("why", "name", "edits"), REFUSED, ids=lambda value: str(value).replace(" ", "_")[:60])
def test_misquote_is_refused(why: str, name: str, edits: dict[str, Any], tmp_path: Path) -> None:
    data = with_edits(name, edits)
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False), "utf-8")
    with pytest.raises(ProfileError) as refused:
        load_file(file)
    assert refused.value.field in edits
    assert set(edits) <= fields_of(data, "error")


@pytest.mark.parametrize(("why", "name", "edits"), FLAGGED)
def test_misquote_is_flagged(why: str, name: str, edits: dict[str, Any]) -> None:
    data = with_edits(name, edits)
    assert set(edits) <= fields_of(data, "flag")
    assert not fields_of(data, "error")


def test_unedited_copies_are_clean() -> None:
    for name in {name for _, name, _ in REFUSED}:
        assert not fields_of(with_edits(name, {}), "error")


def test_sparsity_is_named_as_the_cause() -> None:
    findings = check(Profile.model_validate(with_edits("nvidia-h200-sxm", {f"{DENSE}.bf16": 1979})))
    assert "with sparsity: move it to peak.sparse_tflops and write 989.4" in str(findings[0])


def test_a_consistent_lie_about_the_arithmetic_is_refused() -> None:
    edits = {f"{DENSE}.fp8": 9000, f"{SPARSE}.fp8": 18000, "compute.flops_per_clock_per_unit.fp8": 32768}
    assert fields_of(with_edits("nvidia-b200", edits), "error") == {"compute.flops_per_clock_per_unit.fp8"}


@pytest.mark.parametrize(
    ("name", "edits", "field"),
    [
        ("amd-mi300x", {"fp8.dialect": "e4m3fn", "fp8.max_value": 448}, "fp8.dialect"),
        ("amd-mi300x", {"fp8.max_value": 448}, "fp8.max_value"),
        ("amd-mi300x", {"dtypes": ["bfloat16", "float8_e4m3fn"]}, "dtypes"),
        ("amd-mi300x", {"fp4": ["mxfp4"]}, "fp4"),
        ("amd-mi355x", {"fp4": ["mxfp4", "nvfp4"]}, "fp4"),
        ("nvidia-h100-sxm", {"capabilities": ["tcgen05"]}, "capabilities"),
        ("nvidia-h100-sxm", {"languages": ["hip"]}, "languages"),
        ("groq-lpu", {"languages": ["torch"]}, "languages"),
        ("nvidia-h100-sxm", {"on_chip.shared_memory_per_block_kib": 228}, "on_chip.shared_memory_per_block_kib"),
        ("amd-mi300x", {"on_chip.shared_memory_per_block_kib": 160}, "on_chip.shared_memory_per_block_kib"),
        ("nvidia-h100-sxm", {"memory.usable_gib": None}, "memory.usable_gib"),
        ("nvidia-h200-sxm", {"memory.bandwidth_gb_per_s.measured": 5200}, "memory.bandwidth_gb_per_s.measured"),
        ("nvidia-h100-sxm", {"match.units": 114}, "match.units"),
        ("nvidia-h100-sxm", {"sources": {"memory.raw_gib": "x"}}, "sources.memory.raw_gib"),
        ("nvidia-h100-sxm", {"vendor": "amd"}, "arch"),
        ("nvidia-h100-sxm", {"name": "h100-sxm"}, "name"),
    ],
)
def test_contradiction_is_refused(name: str, edits: dict[str, Any], field: str) -> None:
    assert field in fields_of(with_edits(name, edits), "error")


def test_unknown_architecture_is_flagged_not_refused() -> None:
    data = with_edits("nvidia-h100-sxm", {"arch": "sm_91", "tuning_family": "sm_91-132"})
    assert fields_of(data, "error") == set()
    assert "arch" in fields_of(data, "flag")
