"""Budgets of machine code: what counts as worse, how they are kept, and how machine code is read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ambidex.bench.machine_code import TARGETS, better, compared, main, worse, write
from ambidex.hwprofiles.reader import load

BUDGETS = Path(__file__).with_name("budgets")
FACTS = {
    "matrix": "wgmma f32.bf16.bf16",
    "registers": 90,
    "shared": 4096,
    "loads": "16×8",
    "stores": "4×2",
    "narrow": 2,
}

ASSEMBLY = """
	buffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen
	buffer_load_ushort v5, v6, s[0:3], 0 offen
	global_load_dwordx2 v[7:8], v[9:10], off
	global_load_lds_dwordx4 v[7:8], off
	v_mfma_f32_16x16x8_xf32 v[0:3], v[4:5], v[6:7], v[0:3]
	v_mfma_f32_32x32x16_bf16 v[0:3], v[4:5], v[6:7], v[0:3]
	global_store_short v[9:10], v5, off
    .private_segment_fixed_size: 12
    .sgpr_spill_count: 9
    .vgpr_count:     128
    .vgpr_spill_count: 3
"""


def with_facts(**changes: Any) -> dict[str, Any]:
    return {**FACTS, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"registers": 91}, "registers 90 → 91"),
        ({"shared": 8192}, "bytes on chip 4,096 → 8,192"),
        ({"narrow": 3, "stores": "4×3"}, "narrow accesses 2 → 3 (loads 16×8, stores 4×3)"),
        ({"matrix": "mma.sync f32.bf16.bf16.f32"}, "matrix instructions wgmma f32.bf16.bf16 → mma.sync"),
        ({"matrix": ""}, "→ none"),
        ({"spills": 8}, "spills 0 → 8"),
    ],
)
def test_what_is_worse_is_said(changes: dict[str, Any], said: str) -> None:
    (found,) = worse(FACTS, with_facts(**changes))
    assert said in found


def test_what_is_better_passes_with_a_hint(tmp_path: Path) -> None:
    write(tmp_path, "sm_90", {"_a_kernel": {"one": FACTS, "two": FACTS}})
    assert compared(tmp_path, "sm_90", {"_a_kernel": {"one": FACTS, "two": FACTS}}) == ([], [])
    assert better(FACTS, with_facts(registers=80))
    failures, hints = compared(tmp_path, "sm_90", {"_a_kernel": {"one": with_facts(registers=80)}})
    assert failures == []
    assert hints == ["_a_kernel two: is compiled no more", "_a_kernel one: is better than its budget"]


def test_an_entry_without_a_budget_fails(tmp_path: Path) -> None:
    write(tmp_path, "sm_90", {"_a_kernel": {"one": FACTS}})
    assert compared(tmp_path, "gfx942", {"_a_kernel": {"one": FACTS}})[0] == ["_a_kernel one: has no budget"]
    assert compared(tmp_path, "sm_90", {"_b_kernel": {"one": FACTS}})[0] == ["_b_kernel one: has no budget"]


def test_budgets_are_written_a_line_each_and_lose_what_is_gone(tmp_path: Path) -> None:
    write(tmp_path, "sm_90", {"_a_kernel": {"two": FACTS, "one": FACTS}, "_b_kernel": {"one": FACTS}})
    write(tmp_path, "gfx942", {"_a_kernel": {"one": FACTS}})
    text = (tmp_path / "_a_kernel.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == ["gfx942", "sm_90"]
    assert [line.split(":")[0].strip() for line in text.splitlines() if "registers" in line] == [
        '"one"',
        '"one"',
        '"two"',
    ]
    write(tmp_path, "sm_90", {"_a_kernel": {"one": FACTS}})
    assert not (tmp_path / "_b_kernel.json").exists()


def test_a_part_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["write", "nowhere", "--kernels", "a*"])
    assert "budgets are written for all kernels" in capsys.readouterr().err


def test_amd_assembly_is_read() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from ambidex.kernels.triton.machine_code import of

    code = of(SimpleNamespace(asm={"amdgcn": ASSEMBLY}, metadata=SimpleNamespace(shared=512)))
    assert (code.registers, code.spilled, code.scratch_bytes, code.shared_bytes) == (128, 3, 12, 512)
    assert code.matrix == ("v_mfma f32 bf16", "v_mfma f32 xf32")
    assert (dict(code.loads), dict(code.stores)) == ({16: 2, 2: 1, 8: 1}, {2: 1})
    assert code.num_narrow == 3


def test_the_budgets_are_whole() -> None:
    """Both versions have the same kernels, each on every target; each target has a profile of its architecture."""
    assert all(load(profile).arch == target for target, profile in TARGETS.items())
    versions = sorted(BUDGETS.iterdir())
    assert [folder.name for folder in versions] == ["triton-3.6", "triton-3.9"]
    names = [{path.name for path in folder.glob("*.json")} for folder in versions]
    assert names[0] == names[1]
    for path in BUDGETS.glob("*/*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert found.keys() == TARGETS.keys(), path
        assert all(
            facts.keys() - {"spills"} == FACTS.keys() for entries in found.values() for facts in entries.values()
        ), path
