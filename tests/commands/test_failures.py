"""How commands fail: one line with its cause, and a documented exit code."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ambidex.cli import run
from ambidex.commands.failures import EXIT_CODES, describe
from ambidex.runtime import errors
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]
Fail = Callable[..., tuple[int, str]]


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def test_a_missing_folder(tmp_path: Path, fail: Fail) -> None:
    code, line = fail("generate", tmp_path / "nowhere", "--prompt", "x")
    assert code == 3
    assert "nowhere" in line


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pt"])
def test_a_pickled_checkpoint(spoilt: Path, name: str, fail: Fail) -> None:
    for path in spoilt.glob("*.safetensors*"):
        path.unlink()
    (spoilt / name).write_bytes(b"\x80\x02}q\x00.")
    code, line = fail("generate", spoilt, "--prompt", "x")
    assert code == 4
    assert name in line
    assert "safetensors" in line


def test_a_truncated_file(spoilt: Path, fail: Fail) -> None:
    path = spoilt / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    code, line = fail("generate", spoilt, "--prompt", "x")
    assert code == 5
    assert path.name in line


def test_a_shape_that_disagrees_with_the_config(spoilt: Path, fail: Fail) -> None:
    path = spoilt / "model-00003-of-00003.safetensors"
    (tensor,) = load_file(path).values()
    save_file({"model.norm.weight": tensor[:-1].clone()}, path)
    code, line = fail("generate", spoilt, "--prompt", "x")
    assert code == 5
    assert "model.norm.weight" in line
    assert "63" in line
    assert "64" in line


def test_an_unknown_model_type(spoilt: Path, fail: Fail) -> None:
    change(spoilt, model_type="lama")
    code, line = fail("generate", spoilt, "--prompt", "x")
    assert code == 6
    assert "lama" in line
    assert "llama, mistral, qwen2, qwen3" in line


def test_a_dtype_that_the_profile_lacks(model: Path, fail: Fail) -> None:
    code, line = fail("explain", model, "--profile", "groq-lpu", "--dtype", "bfloat16")
    assert code == 11
    assert "choose dtype float16" in line
    code, line = fail("generate", model, "--prompt", "x", "--dtype", "float8")
    assert code == 6
    assert "bfloat16" in line


def test_a_model_larger_than_the_memory(spoilt: Path, fail: Fail) -> None:
    change(spoilt, intermediate_size=1 << 20, hidden_size=1 << 18, num_hidden_layers=8)
    code, line = fail("generate", spoilt, "--prompt", "x")
    assert code == 7
    assert line.count("GiB") >= 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "x" * 2000], "prompt has 2,000 tokens, the context holds 1,024"),
        (["--prompt", "x", "--temperature", "-1"], "temperature is -1"),
        (["--prompt", "x", "--top-p", "0"], "top_p is 0"),
        (["--prompt", "x", "--top-p", "nan"], "top_p is nan"),
        (["--prompt", "x", "--max-tokens", "0"], "max_tokens is 0"),
        (["--prompt", "x", "--n", "99"], "n is 99"),
        (["--prompt", "x", "--stop", ""], "stop has a string of 0 characters"),
    ],
)
def test_a_bad_request(model: Path, arguments: list[str], words: str, fail: Fail) -> None:
    code, line = fail("generate", model, *arguments)
    assert code == 8
    assert words in line


def test_a_profile_file_with_a_wrong_field(tmp_path: Path, fail: Fail) -> None:
    path = tmp_path / "nvidia-x.yaml"
    text = (ROOT / "hwprofiles" / "nvidia-h200-sxm.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("tdp_w: 700", "tdp_watts: 700"), encoding="utf-8")
    code, line = fail("profiles", path)
    assert code == 10
    assert "nvidia-x.yaml:" in line
    assert "tdp_watts: is not a field; did you mean tdp_w?" in line


def test_an_unknown_profile(model: Path, fail: Fail) -> None:
    code, line = fail("explain", model, "--profile", "nvidia-h200-smx")
    assert code == 10
    assert "did you mean nvidia-h200-sxm" in line


def test_an_impossible_kernel_says_why(model: Path, fail: Fail) -> None:
    arguments = ("--profile", "amd-mi300x", "--kernel", "norm_linear=norm_linear_cpu")
    code, line = fail("explain", model, *arguments)
    assert code == 9
    assert "norm_linear_cpu cannot serve norm_linear@" in line
    assert "language_missing" in line


def test_an_unknown_device(model: Path, fail: Fail) -> None:
    code, line = fail("generate", model, "--prompt", "x", "--device", "tpu")
    assert code == 11
    assert "cpu" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--promt", "x"], "did you mean --prompt"),
        (["generat", "--prompt", "x"], "Did you mean 'generate'?"),
        (["generate"], "Missing option '--prompt'"),
        (["generate", "--prompt", "x", "--max-tokens", "many"], "--max-tokens"),
        (["generate", "--prompt", "x", "--logprobs", "1"], "--json"),
        (["generate", "here", "--model", "there", "--prompt", "x"], "two models are named"),
        (["generate", "--prompt", "x", "--kernel", "linear"], "SITE=NAME"),
        (["bench", "latency", "--shape", "7b"], "0.5b, 1b"),
        (["bench", "latency", "--compare", "vllm"], "there are llama.cpp, openvino, transformers"),
        (["bench", "latency", "--batch-size", "0"], "whole numbers"),
    ],
)
def test_a_command_line_that_cannot_be_read(arguments: list[str], words: str, fail: Fail) -> None:
    code, line = fail(*arguments)
    assert code == 2
    assert words in line


def test_a_missing_torch_is_one_line() -> None:
    program = "import sys; sys.modules['torch'] = None; from ambidex.cli import run; sys.exit(run({}))"
    done = {
        arguments: subprocess.run(
            [sys.executable, "-c", program.format(arguments.split())], capture_output=True, text=True, check=False
        )
        for arguments in ("devices", "doctor", "profiles")
    }
    assert done["devices"].returncode == 12
    assert done["devices"].stderr.startswith("error: torch is not installed; pip install")
    assert done["devices"].stderr.count("\n") == 1
    assert done["doctor"].returncode == 1
    assert "torch is not installed" in done["doctor"].stdout
    assert done["profiles"].returncode == 0


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "ambidex", "profiles", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_an_interrupt_ends_quietly(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.StringIO):
        def read(self, size: int | None = -1) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    assert run(["generate", "--prompt", "-"]) == 130
    assert capsys.readouterr().out == ""


def test_a_fault_of_our_own_says_so(monkeypatch: pytest.MonkeyPatch, fail: Fail) -> None:
    def broken() -> Callable[[], None]:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("ambidex.commands.devices.inventory", broken)
    code, line = fail("devices")
    assert code == 1
    assert "ZeroDivisionError: division by zero; a fault of ambidex" in line
    monkeypatch.setenv("AMBIDEX_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run(["devices"])


def test_exit_codes_are_those_of_the_errors() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and each is not errors.AmbidexError]
    assert {kind.__name__: kind.exit_code for kind in kinds} == {  # type: ignore[attr-defined]
        kind.__name__: EXIT_CODES[kind.__name__] for kind in kinds
    }
    assert describe(errors.OutOfMemory("a\nb")) == ("a b", 7)


def test_the_codes_are_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(f"\n| {code} |" in text for code in {0, 1, 130, *EXIT_CODES.values()})
