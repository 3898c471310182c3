"""`ambidex explain` for cards that are not here: every op's kernel, its launch, and where the launch comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from ambidex.cli import run
from ambidex.hwprofiles.reader import load
from ambidex.ops import discovery

PROFILES = ["nvidia-h100-sxm", "nvidia-h200-sxm", "nvidia-b200", "amd-mi300x", "amd-mi325x", "amd-mi355x"]
SOURCES = {"exact", "near", "derived"}


def all_sites(sites: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for site in sites:
        yield site
        yield from all_sites(site["parts"])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_op_has_a_kernel_with_its_launch_and_where_it_comes_from(
    profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", "--profile", profile, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["references"] == []
    kernels, limit = discovery.kernels(), load(profile).on_chip.shared_memory_per_block_kib
    assert limit is not None
    served = {site["op"] for site in record["sites"]}
    assert served >= {
        "embedding", "norm_linear", "norm_qkv_rope_store", "paged_attention", "linear_add", "gated_linear"
    }  # fmt: skip
    for site in all_sites(record["sites"]):
        for choice in site["choices"]:
            if choice["chosen"] == "parts":
                assert site["parts"]
                continue
            kernel = kernels[choice["chosen"]]
            assert (choice["launch_source"] in SOURCES) == (kernel.launch is not None)
            assert bool(choice["launch"]) == (kernel.launch is not None)
            if kernel.on_chip_bytes is not None:
                assert kernel.on_chip_bytes(choice["launch"]) <= limit * 1024


@pytest.mark.parametrize("profile", PROFILES)
def test_the_text_says_it_too(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "--profile", profile, "--site", "qkv_rope_store"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert any(f"qkv_rope_store_triton ({source}: block_h=" in text for source in SOURCES)


@pytest.mark.parametrize("profile", PROFILES)
def test_logits_of_many_rows_are_multiplied_by_the_matrix_units(
    profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch's kernel of 16-bit operands that writes float32 multiplies in float32."""
    assert run(["explain", "--profile", profile, "--json"]) == 0
    sites = [site for site in all_sites(json.loads(capsys.readouterr().out)["sites"]) if site["op"] == "linear"]
    logits = [site for site in sites if site["dtypes"]["y"] == "float32"]
    assert logits
    assert {choice["chosen"] for site in logits for choice in site["choices"]} == {
        "linear_triton", "linear_triton_large"
    }  # fmt: skip


def test_of_parts_only_the_rows_that_come_to_them_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "--profile", "nvidia-h200-sxm", "--site", "norm_qkv_rope_store@*"]) == 0
    text = capsys.readouterr().out
    whole, parts = text.split("  norm_linear@")
    assert "1         → norm_qkv_rope_store_triton" in whole
    arrows = [line.split("→")[0].strip() for line in parts.splitlines() if "→" in line]
    assert arrows
    assert all(int(re.split(r"[+–]", rows)[0]) >= 65 for rows in arrows)


def test_a_lone_request_leaves_room_on_chip_beside_its_attention(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "--profile", "nvidia-h200-sxm", "--site", "paged_attention@*", "--json"]) == 0
    (site,) = json.loads(capsys.readouterr().out)["sites"]
    stages = [choice["launch"]["stages"] for choice in site["choices"]]
    assert stages == [stages[1] - 1, *[stages[1]] * (len(stages) - 1)]
