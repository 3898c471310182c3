"""`ambidex plan` at the command line: what it prints, in JSON, as a page, and how it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ambidex.cli import run
from ambidex.planning.efficiency import KINDS

Capture = pytest.CaptureFixture[str]
KEYS = {
    "profile", "format", "fits", "min_tensor_parallel", "max_context_tokens", "max_concurrency", "ttft_ms", "tpot_ms",
    "tokens_per_s", "eur_per_million_tokens", "limit", "efficiency_source",
}  # fmt: skip
TWO = ("--profile", "nvidia-h100-sxm", "--profile", "amd-mi300x", "--format", "bf16", "--format", "fp4")


def ask(capsys: Capture, *arguments: str) -> Any:
    assert run(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def say(capsys: Capture, *arguments: str) -> str:
    assert run(["plan", *arguments]) == 0
    return capsys.readouterr().out


def fail(capsys: Capture, *arguments: str) -> tuple[int, str]:
    code = run(["plan", *arguments])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return code, err


def test_rows_as_json(capsys: Capture) -> None:
    found = ask(capsys, "--params", "8B", *TWO)
    assert (found["model"], found["num_parameters"]) == ("llama 8B", 8_030_261_248)
    assert [(row["profile"], row["format"], row["fits"]) for row in found["rows"]] == [
        ("nvidia-h100-sxm", "bf16", True), ("nvidia-h100-sxm", "fp4", False),
        ("amd-mi300x", "bf16", True), ("amd-mi300x", "fp4", False),
    ]  # fmt: skip
    assert all(row.keys() >= KEYS for row in found["rows"])
    assert set(found["best"]) == {"latency", "throughput", "cost"}
    assert all(point["limit"] for row in found["rows"] for point in row["batches"])


def test_all_profiles_and_formats_where_none_is_named(capsys: Capture) -> None:
    from ambidex.hwprofiles.reader import names
    from ambidex.planning.precision import FORMATS

    rows = ask(capsys, "--params", "8B")["rows"]
    assert [(row["profile"], row["format"]) for row in rows] == [(each, form) for each in names() for form in FORMATS]
    assert all(row["reason"] for row in rows if not row["fits"])


@pytest.mark.parametrize("columns", ["80", "140"])
def test_a_table_that_fits_the_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = say(capsys, "--params", "8B", *TWO, "--profile", "groq-lpu", "--profile", "cpu-avx512")
    assert max(map(len, out.splitlines())) <= int(columns)
    assert "…" not in out
    assert re.search(r"^nvidia-h100-sxm +bf16 +1 ", out, re.MULTILINE)
    assert re.search(r"^cost +amd-mi300x, bf16: [\d.]+ EUR a million tokens", out, re.MULTILINE)
    assert "multiplies no such matrices" in out
    assert "cpu-avx512: has the memory and rates of its host" in re.sub(r"\s+", " ", out)
    assert ("longest" in out) == (columns == "140")


def test_one_profile_and_format_in_full(capsys: Capture) -> None:
    out = say(capsys, "--params", "70B", "--profile", "nvidia-h100-sxm", "--format", "fp8")
    assert "fits             2 × nvidia-h100-sxm, fp8" in out
    rows = dict(re.findall(r"^  ([a-zA-Z ]+?)  +[\d.,]+ [GM]iB +([\d,]+) bytes", out, re.MULTILINE))
    assert list(rows) == ["weights", "KV cache", "requests", "workspace", "graphs", "communication", "unused"]
    sizes = {name: int(size.replace(",", "")) for name, size in rows.items()}
    assert sum(sizes.values()) == int(0.92 * int(79.18 * 2**30))
    assert "163,840 bytes a token" in out
    assert "load             58 s at 1.25 GB/s" in out
    assert re.search(r"^ +1 +9\.\d\d ", out, re.MULTILINE), "what is missing on a single device"


def test_what_does_not_fit_says_by_how_much(capsys: Capture) -> None:
    out = say(capsys, "--params", "405B", "--profile", "nvidia-h100-sxm", "--format", "bf16")
    assert "25.7 GiB are missing on each of 8 × nvidia-h100-sxm for 32 requests of 1,200 tokens" in out
    assert say(capsys, "--params", "405B", "--profile", "nvidia-h100-sxm", "--format", "bf16", "--format", "fp4")


def test_a_model_is_read_from_its_config(capsys: Capture, tmp_path: Path) -> None:
    config = {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6, "hidden_size": 3584,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18_944,
        "vocab_size": 152_064, "max_position_embeddings": 32_768, "dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = ask(capsys, str(tmp_path), "--profile", "nvidia-h200-sxm")
    assert found["num_parameters"] == 7_615_616_512
    assert {degree["tensor_parallel"] for degree in found["rows"][0]["degrees"]} == {1, 2, 4}
    del config["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code, line = fail(capsys, str(tmp_path))
    assert code == 6
    assert "hidden_size is missing" in line


def test_a_page_with_plots(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    before = say(capsys, "--params", "8B", *TWO)
    assert say(capsys, "--params", "8B", *TWO, "--html", str(path)) == before
    text = path.read_text("utf-8")
    assert text.count("<svg") == 3, "latency, cost, roofline"
    assert "Roofline of llama 8B bf16 on amd-mi300x" in text.replace("1 × ", "")
    assert "multiplies no fp4 matrices" in text
    say(capsys, "--params", "8B", "--profile", "cerebras-cs3", "--html", str(path))
    text = path.read_text("utf-8")
    assert "≥–" not in text
    assert re.search(r'<td class="number">≤[\d,]+</td>', text)


def test_a_model_with_a_hostile_name_is_harmless(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    from ambidex.bench.shapes import SHAPES

    (folder / "config.json").write_text(json.dumps(SHAPES["tiny"].config()), encoding="utf-8")
    page = tmp_path / "plan.html"
    say(capsys, str(folder), "--profile", "nvidia-h100-sxm", "--context", "1000", "--input-len", "500",
        "--html", str(page))  # fmt: skip
    assert "<script" not in page.read_text("utf-8")


def test_published_figures(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(capsys, "--published")
    assert 0.85 <= found["geometric_mean_ratio"] <= 1.15
    assert {"ratio", "predicted_tokens_per_s", "tokens_per_s", "limit", "explanation"} <= found["rows"][0].keys()
    monkeypatch.setenv("COLUMNS", "80")
    out = say(capsys, "--published")
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("*  ") == 2
    assert fail(capsys, "--published", "--params", "8B")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "name a folder or a hub id, or give --params"),
        (["here", "--params", "8B"], 2, "one of them"),
        (["--params", "seventy"], 6, "8B, 70B or 350M"),
        (["--params", "8B", "--family", "gtp"], 6, "known are llama"),
        (["--params", "8B", "--profile", "nvidia-h100"], 10, "did you mean nvidia-h100-sxm?"),
        (["--params", "8B", "--format", "fp5"], 6, "one of bf16, fp8, int8, int4, fp4"),
        (["--params", "8B", "--kv-format", "int2"], 6, "one of bf16, fp8"),
        (["--params", "8B", "--tensor-parallel", "3"], 6, "possible are 1, 2, 4, 8"),
        (["--params", "8B", "--tensor-parallel", "-1"], 6, "--tensor-parallel is -1"),
        (["--params", "8B", "--input-len", "0"], 6, "--input-len is 0"),
        (["--params", "8B", "--output-len", "-2"], 6, "--output-len is -2"),
        (["--params", "8B", "--concurrency", "0"], 6, "--concurrency is 0"),
        (["--params", "8B", "--load-gb-per-s", "-1"], 6, "--load-gb-per-s is -1"),
        (["--params", "8B", "--context", "1000000"], 6, "131,072 positions"),
        (["--params", "8B", "--context", "many"], 2, "--context"),
        (["a" * 300], 3, "is no folder: File name too long"),
        (["~nobody-is-called-so/model"], 3, "is no folder: nobody of that name"),
        ([".", "--family", "qwen2"], 2, "that of --params"),
        (["--params", "70B", "--check"], 2, "leave out what else is asked (--params)"),
        (["--check", "--profile", "nvidia-b200", "--html", "x.html"], 2, "(--profile, --html)"),
        (["--published", "--format", "fp8", "--check"], 2, "(--format, --check)"),
        (["--params", "8B", "--html", "/nowhere/plan.html"], 2, "there is no folder /nowhere"),
    ],
)
def test_a_bad_question_is_one_line(capsys: Capture, arguments: list[str], code: int, words: str) -> None:
    found, line = fail(capsys, *arguments)
    assert (found, words in line) == (code, True), line


def test_a_calibration_of_no_profile_that_is_asked_for_is_told(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    points, none = {"axis": [1.0], "shares": [1.0]}, dict.fromkeys(KINDS, 0.0)
    path.write_text(json.dumps({
        "profile": "nvidia-h100-sxm", "device": "one", "date": "2026-11-25", "usable_gib": 80.0, "launch_us": none,
        "bandwidth_gb_per_s": 3000.0, "matrix_tflops": {"bf16": 700.0}, "step_us": 0.0, "host_us": 0.0,
        "host_us_per_request": 0.0, "eager_us": 0.0, "beside_reading": 0.0, "read_share": 1.0,
        "curves": dict.fromkeys(KINDS, points),
    }), encoding="utf-8")  # fmt: skip
    named = ["--params", "8B", "--profile", "nvidia-b200", "--calibration", str(path)]
    code, line = fail(capsys, *named)
    assert (code, "is of no profile that is asked for" in line) == (2, True), line


def test_a_missing_model_is_one_line_with_the_nearest(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama-8b").mkdir()
    (tmp_path / "llama-8b" / "config.json").write_text("{}", encoding="utf-8")
    code, line = fail(capsys, str(tmp_path / "llama-9b"))
    assert code == 3
    assert "did you mean" in line
    assert "llama-8b?" in line


def test_help_does_not_load_torch() -> None:
    code = "import sys; from ambidex.cli import run; run(['plan', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
