"""A wrong profile file gives one line with file, line, field, cause and cure."""

from pathlib import Path

import pytest
from ambidex.hwprofiles.reader import PROFILES_FOLDER, ProfileError, load, load_file

GOOD = (PROFILES_FOLDER / "amd-mi300x.yaml").read_text("utf-8")


def refusal(text: str, tmp_path: Path) -> ProfileError:
    file = tmp_path / "mine.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(ProfileError) as refused:
        load_file(file)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(file))
    return refused.value


def line_of(text: str, start: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.strip().startswith(start))


@pytest.mark.parametrize(
    ("old", "new", "field", "said"),
    [
        ("lane_width: 64", "lane_widht: 64", "lane_widht", "did you mean lane_width?"),
        ("  raw_gb: 192", "  raw_gib: 192", "memory.raw_gib", "did you mean raw_gb?"),
        ("  raw_gb: 192", "  raw_gb: 192 GB", "memory.raw_gb", "'192 GB' does not fit; input should be a valid number"),
        ("  raw_gb: 192", "  raw_gb: '192'", "memory.raw_gb", "input should be a valid number"),
        ("  raw_gb: 192", "  raw_gb: -192", "memory.raw_gb", "greater than 0"),
        ("  raw_gb: 192", "  raw_gb: .nan", "memory.raw_gb", "nan does not fit"),
        ("  kind: hbm", "  kind: ddr", "memory.kind", "input should be 'hbm', 'sram' or 'dram'"),
        ("  units: 304", "  units: 304.5", "compute.units", "valid integer"),
        ("tdp_w: 750", "tdp_w: yes", "tdp_w", "True does not fit"),
        (
            "languages: [torch, triton, hip]",
            "languages: [torch, hpi]",
            "languages",
            "hpi kernels do not run on amd devices",
        ),
        ("lane_width: 64", "lane_width: 64\nlane_width: 32", "lane_width", "is given twice"),
        ("  units: 304", "  units: 304\n  units: 256", "compute.units", "is given twice"),
        ("  clock_ghz: 2.1", "  clock_ghz: 2.4", "peak.dense_tflops.fp64", "dense TFLOPS"),
    ],
)
def test_wrong_field_is_named(old: str, new: str, field: str, said: str, tmp_path: Path) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    error = refusal(text, tmp_path)
    assert error.field == field
    assert said in str(error)
    assert f"mine.yaml:{error.line}: {field}: " in str(error)


def test_line_is_the_line_of_the_field(tmp_path: Path) -> None:
    text = GOOD.replace("  raw_gb: 192", "  raw_gb: much", 1)
    assert refusal(text, tmp_path).line == line_of(text, "raw_gb: much")
    twice = GOOD.replace("tdp_w: 750", "tdp_w: 750\ntdp_w: 700", 1)
    assert refusal(twice, tmp_path).line == line_of(twice, "tdp_w: 700")
    lanes = GOOD.replace("lane_width: 64", "lane_width: 32", 1)
    assert refusal(lanes, tmp_path).line == line_of(lanes, "lane_width")


def test_missing_field_points_to_its_place(tmp_path: Path) -> None:
    text = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith("  usable_gib"))
    error = refusal(text, tmp_path)
    assert (error.field, error.line) == ("memory.usable_gib", line_of(text, "memory:"))
    assert "is missing; add it" in str(error)


def test_several_errors_are_counted(tmp_path: Path) -> None:
    text = GOOD.replace("lane_width: 64", "lane_width: 32", 1).replace("tdp_w: 750", "tdp_w: 750\nfoo: 1", 1)
    assert refusal(text, tmp_path).field == "foo"
    both = GOOD.replace("lane_width: 64", "lane_width: 32", 1).replace("max_value: 240", "max_value: 448", 1)
    assert "(and 1 more)" in str(refusal(both, tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a mapping"),
        ("- a\n- b\n", "is not a mapping"),
        ("name: [1\n", "is not valid YAML"),
        ("a: 1\n\tb: 2\n", "is not valid YAML"),
        ("x: !!python/object/apply:os.system [echo]\n", "is not valid YAML"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "uses an alias"),
        (f"name: {'9' * 5000}\n", "has a value that cannot be read"),
        (f"a: {'[' * 2000}{']' * 2000}\n", "nest"),
    ],
)
def test_not_a_profile(text: str, said: str, tmp_path: Path) -> None:
    assert said in str(refusal(text, tmp_path))


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"cannot read the profile: No such file or directory; give a readable"):
        load_file(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ProfileError, match="not UTF-8"):
        load_file(tmp_path / "binary.yaml")


def test_unknown_name_has_a_suggestion_and_the_list() -> None:
    with pytest.raises(ProfileError, match=r"unknown profile 'nvidia-h100'; did you mean nvidia-h100-sxm"):
        load("nvidia-h100")
    with pytest.raises(ProfileError, match=r"did you mean amd-mi325x\? known: amd-mi300x, .*nvidia-h200-sxm"):
        load("mi325x")
    with pytest.raises(ProfileError, match=r"'zzz'; known: amd-mi300x"):
        load("zzz")


def test_load_takes_a_path_and_keeps_shipped_profiles(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD.replace("name: amd-mi300x", "name: amd-mine", 1), "utf-8")
    assert load(str(file)).name == "amd-mine"
    assert load("amd-mi300x") is load("amd-mi300x")
