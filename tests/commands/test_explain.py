"""`ambidex explain`, on a model of this machine's and of others' profiles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ambidex.cli import run

Capture = pytest.CaptureFixture[str]
Ask = Callable[..., Any]


@pytest.mark.parametrize("profile", ["amd-mi300x", "nvidia-h200-sxm"])
def test_explain_for_a_machine_that_is_not_here(model: Path, profile: str, ask: Ask) -> None:
    record = ask("explain", model, "--profile", profile)
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


def test_explain_keeps_a_choice(model: Path, ask: Ask) -> None:
    record = ask("explain", model, "--kernel", "norm_linear=parts")
    sites = [site for site in record["sites"] if site["op"] == "norm_linear"]
    assert {choice["chosen"] for site in sites for choice in site["choices"]} == {"parts"}
    assert all([part["op"] for part in site["parts"]] == ["rms_norm", "linear"] for site in sites)
