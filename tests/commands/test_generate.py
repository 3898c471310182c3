"""`ambidex generate` and `chat`: text, facts, and what a model brings along."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ambidex.cli import run
from ambidex.runtime import errors

Capture = pytest.CaptureFixture[str]
Ask = Callable[..., Any]
Fail = Callable[..., tuple[int, str]]
GENERATE = ("--prompt", "def f(x):", "--max-tokens", "6", "--seed", "1")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


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


def test_generate_as_json(model: Path, ask: Ask) -> None:
    answer = ask("generate", "--model", model, *GENERATE, "--logprobs", "2", "--n", "2")
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


def test_the_same_seed_is_the_same_text(model: Path, ask: Ask) -> None:
    first, second = (ask("generate", model, *GENERATE)["token_ids"] for _ in range(2))
    assert first == second


def test_generation_config_gives_the_defaults(spoilt: Path, capsys: Capture, ask: Ask) -> None:
    settings = {"temperature": 0.0, "top_p": 7, "eos_token_id": None}
    (spoilt / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    greedy = {tuple(ask("generate", spoilt, *GENERATE[:4], "--seed", str(s))["token_ids"]) for s in range(2)}
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
    spoilt: Path, capsys: Capture, arguments: list[str], fail: Fail
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
    assert fail(*command, "--memory", "nonsense")[0] == 6
    assert fail(*command, "--step-budget-ms", "0")[0] == 6
    code, line = fail(*command, "--memory", "1MiB")
    assert code == 7
    assert "what cures it: --memory" in line


def test_generate_reads_standard_input(model: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n"))
    assert ask("generate", model, "--prompt", "-", "--max-tokens", "2")["prompt"] == "import os\n"


def test_chat(spoilt: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    (spoilt / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    answer = ask("chat", spoilt, "--message", "hello", "--system", "be brief", "--max-tokens", "3")
    assert answer["prompt"] == "system: be brief\nuser: hello\nassistant:"
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/reset\nthree\n/exit\nfour\n"))
    assert run(["chat", str(spoilt), "--max-tokens", "3", "--json"]) == 0
    prompts = [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()]
    assert [prompt.count("user:") for prompt in prompts] == [1, 2, 1]
    assert prompts[1].startswith("user: one\nassistant: ")
    assert prompts[2] == "user: three\nassistant:"


def test_chat_needs_a_template(model: Path, fail: Fail) -> None:
    code, line = fail("chat", model, "--message", "hello")
    assert code == errors.RequestError.exit_code
    assert "chat template" in line
