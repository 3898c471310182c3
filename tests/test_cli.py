"""The command line: what it prints where, how it fails, and how little it costs to ask it for help."""

import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from ambidex.bench.shapes import SHAPES, write_checkpoint
from ambidex.cli import app, run
from ambidex.commands import options
from ambidex.commands.failures import EXIT_CODES, describe
from ambidex.runtime import errors
from ambidex.runtime.options import Options
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(SHAPES["tiny"], folder)
    return folder


@pytest.fixture
def spoilt(model: Path, tmp_path: Path) -> Path:
    """A copy of the model to take apart."""
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def ask(capsys: Capture, *arguments: str | Path) -> Any:
    """The JSON that a command prints."""
    assert run([str(each) for each in arguments] + ["--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fail(capsys: Capture, *arguments: str | Path) -> tuple[int, str]:
    """Exit code and message of a command that fails: one line, nothing on standard output."""
    code = run([str(each) for each in arguments])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return code, err


def cpu_seconds(*arguments: str) -> float:
    """Processor time of one run: what else happens on the machine hardly counts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "ambidex", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("arguments", "limit_s"), [(["--help"], 0.3), (["profiles"], 0.5)])
def test_light_commands_answer_fast(arguments: list[str], limit_s: float) -> None:
    assert min(cpu_seconds(*arguments) for _ in range(4)) < limit_s


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["profiles"], ["profiles", "groq-lpu"]])
def test_light_commands_do_not_load_torch(arguments: list[str]) -> None:
    code = f"import sys; from ambidex.cli import run; run({arguments}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize(
    "command",
    ["generate", "chat", "devices", "profiles", "explain", "plan", "doctor",
     "bench latency", "bench throughput", "bench prefix", "bench micro"],
)  # fmt: skip
def test_every_command_has_help_and_json(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.output.startswith("ambidex 0.")


def test_profiles_as_a_table(capsys: Capture) -> None:
    assert run(["profiles"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (b200,) = (line.split() for line in lines if line.startswith("nvidia-b200"))
    assert b200 == ["nvidia-b200", "178", "7.67", "2,250", "4,500", "9,000", "1,000", "6.5", "cuda"]
    assert next(line for line in lines if line.startswith("groq-lpu")).endswith("no backend")
    assert max(map(len, lines[:-3])) <= 80


def test_profiles_as_json(capsys: Capture) -> None:
    named = {profile["name"]: profile for profile in ask(capsys, "profiles")}
    assert {path.stem for path in (ROOT / "hwprofiles").glob("*.yaml")} == set(named)
    assert named["amd-mi300x"]["price"] == {"eur_per_hour": 3.0, "basis": "quoted"}


def test_one_profile_shows_sources_and_doubts(capsys: Capture) -> None:
    assert run(["profiles", "groq-lpu"]) == 0
    out = capsys.readouterr().out
    assert "300  (unverified)" in out
    assert "memory.raw_gb: TechPowerUp, Groq LPU" in out
    assert ask(capsys, "profiles", ROOT / "hwprofiles" / "groq-lpu.yaml")["unverified"] == ["tdp_w"]


def test_devices(capsys: Capture) -> None:
    found = ask(capsys, "devices")
    cpu = next(device for device in found["devices"] if device["device"] == "cpu:0")
    assert cpu["profile"].startswith("cpu-")
    assert cpu["match"] in ("exact", "near")
    assert 0 < cpu["free_bytes"] <= cpu["total_bytes"]
    assert all(reason for reason in found["missing"].values())
    assert run(["devices"]) == 0
    assert f"profile  {cpu['profile']}" in capsys.readouterr().out


def test_doctor(capsys: Capture) -> None:
    findings = ask(capsys, "doctor")
    assert findings["can_run"]
    assert findings["packages"]["torch"]
    assert findings["threads"] >= 1
    assert run(["doctor"]) == 0
    assert "a model can run here" in capsys.readouterr().out


def test_doctor_says_what_an_engine_would_take(model: Path, capsys: Capture) -> None:
    plan = ask(capsys, "doctor", model, "--memory", "50MiB", "--max-num-seqs", "4", "--enforce-eager")["engine"]
    assert plan["predicted_bytes"]["graphs"] == 0
    assert 0 < sum(plan["predicted_bytes"].values()) <= 50 << 20
    assert any("4 requests of 1,024 (all that can run at once)" in line for line in plan["decisions"])
    assert "engine" not in ask(capsys, "doctor")
    code, line = fail(capsys, "doctor", model, "--memory", "1MiB", "--no-graphs")
    assert code == 7
    assert "of memory are missing" in line
    assert "what cures it: --memory" in line


@pytest.mark.parametrize(
    ("arguments", "engine"),
    [
        ([], {}),
        (["--memory", "2GiB", "--no-overlap"], {"memory": "2GiB", "overlap": False}),
        (["--enforce-eager", "--no-prefix-caching"], {"graphs": False, "prefix_caching": False}),
        (["--graphs", "--dtype", "auto", "--step-budget-ms", "5"], {"graphs": True, "step_budget_ms": 5.0}),
        (["--kernel", "linear=reference", "--kernel", "a=b"], {"kernels": {"linear": "reference", "a": "b"}}),
    ],
)
def test_engine_options_reach_the_engine_if_they_were_given(arguments: list[str], engine: dict[str, Any]) -> None:
    seen: dict[str, Any] = {}

    def command(engine: dict[str, Any], model: options.ModelArgument = None) -> None:
        seen.update(engine, model=model)

    small = typer.Typer()
    small.command()(options.with_engine(command))
    assert CliRunner().invoke(small, ["here", *arguments]).exit_code == 0
    assert seen == {**engine, "model": "here"}
    assert set(options.ENGINE) - {"kernel"} <= set(Options.__dataclass_fields__)


@pytest.mark.parametrize("profile", ["amd-mi300x", "nvidia-h200-sxm"])
def test_explain_for_a_machine_that_is_not_here(model: Path, capsys: Capture, profile: str) -> None:
    record = ask(capsys, "explain", model, "--profile", profile)
    assert record["profile"] == profile
    assert record["fingerprint"].startswith("fp_")
    ops = {site["op"] for site in record["sites"]}
    assert {"embedding", "norm_qkv_rope_store", "paged_attention", "gated_linear", "sample"} <= ops
    refused = [
        reason for site in record["sites"] for choice in site["choices"] for reason in choice["refused"].values()
    ]
    assert refused
    assert all(reason["code"] and reason["text"] for reason in refused)
    # The kernels of this machine's language are refused there, with the reason; those of that one count as installed.
    assert {"language_missing"} <= {reason["code"] for reason in refused}
    assert not any("no GPU here" in reason["text"] for reason in refused)


def test_explain_as_text(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["explain", str(model), "--profile", "nvidia-h200-sxm", "--site", "norm_qkv_rope_store@*"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "norm_qkv_rope_store@kv  [bfloat16] × 2 layers" in out
    assert " ✗ norm_linear_cpu: language_missing:" in out
    assert "paged_attention@" not in out


def test_explain_keeps_a_choice(model: Path, capsys: Capture) -> None:
    record = ask(capsys, "explain", model, "--kernel", "norm_linear=parts")
    sites = [site for site in record["sites"] if site["op"] == "norm_linear"]
    assert {choice["chosen"] for site in sites for choice in site["choices"]} == {"parts"}
    assert all([part["op"] for part in site["parts"]] == ["rms_norm", "linear"] for site in sites)


GENERATE = ("--prompt", "def f(x):", "--max-tokens", "6", "--seed", "1")


def test_generate_streams_text_and_ends_with_facts(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(model), *GENERATE]) == 0
    out, err = capfd.readouterr()
    assert out.endswith("\n")
    assert err.count("\n") == 1
    device, profile, fingerprint, speed, share = err.rstrip().split(" · ")
    assert device.partition(":")[0] in ("cpu", "cuda", "rocm")
    assert "-" in profile
    assert fingerprint.startswith("fp_")
    assert speed.endswith("tok/s")
    assert share.endswith("% of the roofline")


def test_generate_as_json(model: Path, capsys: Capture) -> None:
    answer = ask(capsys, "generate", "--model", model, *GENERATE, "--logprobs", "2", "--n", "2")
    assert answer["finish_reason"] == "length"
    assert len(answer["token_ids"]) == 6
    assert [output["index"] for output in answer["outputs"]] == [0, 1]
    assert len(answer["outputs"][0]["logprobs"]) == 6
    assert 0 < answer["timings"]["first_token_s"] <= answer["timings"]["total_s"]
    facts = answer["facts"]
    weights = 2 * (64 * 512 + 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 160))
    assert weights < facts["bytes_per_step"] < 1.5 * weights
    step_s = answer["timings"]["decode_s"] / 5
    assert facts["share_of_roofline"] == pytest.approx(
        facts["bytes_per_step"] / facts["read_bandwidth_gb_per_s"] / 1e9 / step_s, rel=1e-2
    )


def test_the_same_seed_is_the_same_text(model: Path, capsys: Capture) -> None:
    first, second = (ask(capsys, "generate", model, *GENERATE)["token_ids"] for _ in range(2))
    assert first == second


def test_generation_config_gives_the_defaults(spoilt: Path, capsys: Capture) -> None:
    settings = {"temperature": 0.0, "top_p": 7, "eos_token_id": None}
    (spoilt / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    greedy = {tuple(ask(capsys, "generate", spoilt, *GENERATE[:4], "--seed", str(s))["token_ids"]) for s in range(2)}
    assert len(greedy) == 1
    assert run(["generate", str(spoilt), *GENERATE, "--temperature", "1", "--verbose"]) == 0
    assert "'temperature': 0.0" in capsys.readouterr().err


def test_on_a_terminal_a_line_says_what_was_decided(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambidex.commands.session._is_looked_at", lambda: True)
    assert run(["generate", str(model), *GENERATE, "--max-model-len", "64"]) == 0
    first, facts = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"\w+:\d+ \(.+\): [\d,]+ tokens of KV; [\d,]+ requests? of 64 \(.+\); takes [\d.]+ MiB \(weights .+, KV cache "
        r".+\) of [\d.]+ [GM]iB, .+ free.*",
        first,
    )
    assert "tok/s" in facts


def test_a_warning_is_said_even_where_nobody_looks(model: Path) -> None:
    command = [sys.executable, "-m", "ambidex", "generate", str(model), *GENERATE, "--fallback", "warn"]
    without = {**os.environ, "AMBIDEX_CPU_LIBRARY": "/nowhere.so"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=without, timeout=100)
    *warnings, facts = done.stderr.splitlines()
    assert "tok/s" in facts
    assert any(re.match(r"warning: \w+.* runs on its reference: ", line) for line in warnings)
    assert not any("tokens of KV" in line for line in warnings)


def test_verbose_says_what_was_decided(model: Path, capsys: Capture) -> None:
    assert run(["generate", str(model), *GENERATE, "--verbose", "--max-model-len", "64"]) == 0
    err = capsys.readouterr().err
    assert "at most 64 tokens each" in err
    assert re.match(r"[^\n]*: [\d,]+ tokens of KV; [\d,]+ requests? of 64 \(", err), "the line that sums up comes first"
    assert "KV cache" in err
    assert "by the reference:" in err


@pytest.mark.parametrize("arguments", [["generate", "--prompt", "x"], ["chat", "--message", "x"]])
def test_a_command_that_runs_a_model_takes_the_engines_options(
    spoilt: Path, capsys: Capture, arguments: list[str]
) -> None:
    (spoilt / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    command = [arguments[0], str(spoilt), *arguments[1:], "--max-tokens", "2"]
    asked = ["--memory", "40MiB", "--max-num-seqs", "3", "--max-num-batched-tokens", "48", "--no-graphs", "--verbose"]
    assert run([*command, *asked, "--step-budget-ms", "50", "--overlap", "--no-prefix-caching"]) == 0
    err = capsys.readouterr().err
    assert "memory     40.0 MiB, as asked for" in err
    assert "requests   3 at once" in err
    assert "steps of at most 48 tokens" in err
    assert "graphs     none" in err
    assert fail(capsys, *command, "--memory", "nonsense")[0] == 6
    assert fail(capsys, *command, "--step-budget-ms", "0")[0] == 6
    code, line = fail(capsys, *command, "--memory", "1MiB")
    assert code == 7
    assert "what cures it: --memory" in line


def test_generate_reads_standard_input(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n"))
    assert ask(capsys, "generate", model, "--prompt", "-", "--max-tokens", "2")["prompt"] == "import os\n"


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def test_chat(spoilt: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    (spoilt / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    answer = ask(capsys, "chat", spoilt, "--message", "hello", "--system", "be brief", "--max-tokens", "3")
    assert answer["prompt"] == "system: be brief\nuser: hello\nassistant:"
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/reset\nthree\n/exit\nfour\n"))
    assert run(["chat", str(spoilt), "--max-tokens", "3", "--json"]) == 0
    prompts = [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()]
    assert [prompt.count("user:") for prompt in prompts] == [1, 2, 1]
    assert prompts[1].startswith("user: one\nassistant: ")
    assert prompts[2] == "user: three\nassistant:"


def test_chat_needs_a_template(model: Path, capsys: Capture) -> None:
    code, line = fail(capsys, "chat", model, "--message", "hello")
    assert code == errors.RequestError.exit_code
    assert "chat template" in line


def test_a_missing_folder(tmp_path: Path, capsys: Capture) -> None:
    code, line = fail(capsys, "generate", tmp_path / "nowhere", "--prompt", "x")
    assert code == 3
    assert "nowhere" in line


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pt"])
def test_a_pickled_checkpoint(spoilt: Path, capsys: Capture, name: str) -> None:
    for path in spoilt.glob("*.safetensors*"):
        path.unlink()
    (spoilt / name).write_bytes(b"\x80\x02}q\x00.")
    code, line = fail(capsys, "generate", spoilt, "--prompt", "x")
    assert code == 4
    assert name in line
    assert "safetensors" in line


def test_a_truncated_file(spoilt: Path, capsys: Capture) -> None:
    path = spoilt / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    code, line = fail(capsys, "generate", spoilt, "--prompt", "x")
    assert code == 5
    assert path.name in line


def test_a_shape_that_disagrees_with_the_config(spoilt: Path, capsys: Capture) -> None:
    path = spoilt / "model-00003-of-00003.safetensors"
    (tensor,) = load_file(path).values()
    save_file({"model.norm.weight": tensor[:-1].clone()}, path)
    code, line = fail(capsys, "generate", spoilt, "--prompt", "x")
    assert code == 5
    assert "model.norm.weight" in line
    assert "63" in line
    assert "64" in line


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def test_an_unknown_model_type(spoilt: Path, capsys: Capture) -> None:
    change(spoilt, model_type="lama")
    code, line = fail(capsys, "generate", spoilt, "--prompt", "x")
    assert code == 6
    assert "lama" in line
    assert "llama, mistral, qwen2, qwen3" in line


def test_a_dtype_that_the_profile_lacks(model: Path, capsys: Capture) -> None:
    code, line = fail(capsys, "explain", model, "--profile", "groq-lpu", "--dtype", "bfloat16")
    assert code == 11
    assert "choose dtype float16" in line
    code, line = fail(capsys, "generate", model, "--prompt", "x", "--dtype", "float8")
    assert code == 6
    assert "bfloat16" in line


def test_a_model_larger_than_the_memory(spoilt: Path, capsys: Capture) -> None:
    change(spoilt, intermediate_size=1 << 20, hidden_size=1 << 18, num_hidden_layers=8)
    code, line = fail(capsys, "generate", spoilt, "--prompt", "x")
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
def test_a_bad_request(model: Path, capsys: Capture, arguments: list[str], words: str) -> None:
    code, line = fail(capsys, "generate", model, *arguments)
    assert code == 8
    assert words in line


def test_a_profile_file_with_a_wrong_field(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "nvidia-x.yaml"
    text = (ROOT / "hwprofiles" / "nvidia-h200-sxm.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("tdp_w: 700", "tdp_watts: 700"), encoding="utf-8")
    code, line = fail(capsys, "profiles", path)
    assert code == 10
    assert "nvidia-x.yaml:" in line
    assert "tdp_watts: is not a field; did you mean tdp_w?" in line


def test_an_unknown_profile(model: Path, capsys: Capture) -> None:
    code, line = fail(capsys, "explain", model, "--profile", "nvidia-h200-smx")
    assert code == 10
    assert "did you mean nvidia-h200-sxm" in line


def test_an_impossible_kernel_says_why(model: Path, capsys: Capture) -> None:
    arguments = ("--profile", "amd-mi300x", "--kernel", "norm_linear=norm_linear_cpu")
    code, line = fail(capsys, "explain", model, *arguments)
    assert code == 9
    assert "norm_linear_cpu cannot serve norm_linear@" in line
    assert "language_missing" in line


def test_an_unknown_device(model: Path, capsys: Capture) -> None:
    code, line = fail(capsys, "generate", model, "--prompt", "x", "--device", "tpu")
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
def test_a_command_line_that_cannot_be_read(capsys: Capture, arguments: list[str], words: str) -> None:
    code, line = fail(capsys, *arguments)
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


def test_a_fault_of_our_own_says_so(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Callable[[], None]:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("ambidex.commands.devices.inventory", broken)
    code, line = fail(capsys, "devices")
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
