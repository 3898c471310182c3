"""From files to weights: layouts, dtypes, what does not belong together, and how much memory the way takes."""

from __future__ import annotations

import json
import os
import pty
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ambidex.ops.layouts import PANEL16
from ambidex.ops.types import Weight
from ambidex.runtime import loading
from ambidex.runtime.checkpoint import Checkpoint
from ambidex.runtime.config import read_config
from ambidex.runtime.errors import CheckpointCorrupt, CheckpointRefused
from ambidex.runtime.loading import load_weights
from ambidex.runtime.model import find_model

CPU = torch.device("cpu")
PANELS = dict.fromkeys(["embed", "layers.*.qkv", "layers.*.o", "layers.*.gate_up", "layers.*.down", "lm_head"], PANEL16)


def load(folder: Path, dtype: torch.dtype = torch.float32, layouts: Any = None, **more: Any) -> dict[str, Weight]:
    config = read_config(folder)
    parameters = find_model(config.model_type).parameters(config)
    return load_weights(Checkpoint.open(folder), parameters, layouts or {}, dtype, CPU, **more)


def joined(tensors: dict[str, torch.Tensor], *modules: str) -> torch.Tensor:
    return torch.cat([tensors[f"model.layers.0.{module}.weight"] for module in modules])


@pytest.mark.parametrize("staging_bytes", [1, 600, 4 << 20])
def test_rows_land_in_their_place(plain: Path, files: Any, staging_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources of 8, 4, 4 and of 12 and 12 rows share panels of 16, whatever passes at once."""
    monkeypatch.setattr(loading, "STAGING_BYTES", staging_bytes)
    tensors = files.plain_tensors()
    expected = {
        "embed": tensors["model.embed_tokens.weight"],
        "layers.0.qkv": joined(tensors, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "layers.0.gate_up": joined(tensors, "mlp.gate_proj", "mlp.up_proj"),
        "layers.0.down": joined(tensors, "mlp.down_proj"),
        "layers.0.norm_mlp": joined(tensors, "post_attention_layernorm"),
    }
    for layouts in ({}, PANELS):
        for dtype in (torch.float32, torch.bfloat16):
            weights = load(plain, dtype, layouts)
            for name, values in expected.items():
                assert weights[name].values.dtype == dtype
                assert weights[name].layout is (layouts.get(weights[name].role) or weights["norm"].layout)
                assert torch.equal(weights[name].logical(), values.to(dtype))
    assert load(plain, layouts=PANELS)["layers.0.gate_up"].values[1, :, 8:].count_nonzero() == 0


def test_sizes_are_known_before(plain: Path) -> None:
    assert {name: weight.shape for name, weight in load(plain).items()} == {
        parameter.name: parameter.shape for parameter in find_model("llama").parameters(read_config(plain))
    }


def test_half_precisions_are_not_exchanged_unasked(plain: Path, files: Any) -> None:
    tensors = {name: values.half() for name, values in files.plain_tensors().items()}
    files.tensors(plain / "model.safetensors", tensors)
    with pytest.raises(
        CheckpointRefused, match="is float16, and bfloat16 cannot hold all its values: ask for dtype=float16"
    ):
        load(plain, torch.bfloat16)
    weights = load(plain, torch.bfloat16, explicit_dtype=True)
    assert torch.equal(weights["lm_head"].logical(), tensors["lm_head.weight"].bfloat16())
    assert torch.equal(load(plain, torch.float32)["lm_head"].logical(), tensors["lm_head.weight"].float())


def test_values_beyond_float16(plain: Path, files: Any) -> None:
    files.tensors(plain / "model.safetensors", files.plain_tensors() | {"lm_head.weight": torch.full((10, 8), 7e4)})
    with pytest.raises(CheckpointRefused, match=r"lm_head\.weight has values beyond float16"):
        load(plain, torch.float16)


def test_quantized_tensors(plain: Path, files: Any) -> None:
    files.tensors(plain / "model.safetensors", files.plain_tensors() | {"lm_head.weight": torch.ones(10, 8).char()})
    with pytest.raises(CheckpointRefused, match=r"tensor lm_head\.weight is int8, a quantized weight"):
        load(plain)


def test_a_tied_head_and_what_is_harmless(plain: Path, files: Any) -> None:
    files.config(plain, tie_word_embeddings=True)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    files.tensors(plain / "model.safetensors", files.plain_tensors() | extra)
    assert "lm_head" not in load(plain)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 11}, r"embed_tokens.weight is \[10, 8\], config.json asks for \[11, 8\]"),
        ({"num_key_value_heads": 2}, r"k_proj.weight is \[4, 8\], config.json asks for \[8, 8\]"),
        ({"intermediate_size": 6}, r"gate_proj.weight is \[12, 8\], config.json asks for \[6, 8\]"),
        ({"num_hidden_layers": 2}, "lacks tensor 'model.layers.1.input_layernorm.weight' and 8 more"),
        ({"attention_bias": True}, "lacks tensor 'model.layers.0.self_attn.q_proj.bias' and 3 more"),
        ({"model_type": "qwen3", "head_dim": 4}, "lacks tensor 'model.layers.0.self_attn.q_norm.weight' and 1 more"),
    ],
)
def test_a_config_that_disagrees(plain: Path, files: Any, config: dict[str, Any], message: str) -> None:
    files.config(plain, **config)
    with pytest.raises(CheckpointCorrupt, match=message) as caught:
        load(plain)
    assert len(str(caught.value).splitlines()) == 1


def test_tensors_of_no_use(plain: Path, files: Any) -> None:
    extra = {"model.layers.0.self_attn.q_proj.bias": torch.ones(8)}
    files.tensors(plain / "model.safetensors", files.plain_tensors() | extra)
    with pytest.raises(
        CheckpointCorrupt, match=r"has tensor '.*q_proj\.bias', for which its config\.json has no place"
    ):
        load(plain)


def written(controller: int) -> bytes:
    """What a terminal has been sent so far."""
    text = b""
    with suppress(BlockingIOError):
        while piece := os.read(controller, 1 << 16):
            text += piece
    return text


def test_progress_on_a_terminal_only(
    plain: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    load(plain)
    assert capfd.readouterr() == ("", "")
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        load(plain, progress=False)
        os.set_blocking(controller, False)
        assert written(controller) == b""
        load(plain)
        assert b"weights" in written(controller)
    os.close(controller)


MEASURED = """
import sys
from pathlib import Path
import torch
from ambidex.ops.layouts import PANEL16
from ambidex.runtime.checkpoint import Checkpoint
from ambidex.runtime.config import read_config
from ambidex.runtime.loading import load_weights
from ambidex.runtime.model import find_model

def mib(field):
    status = Path("/proc/self/status").read_text().split(field + ":")[1]
    return int(status.split()[0]) / 1024

folder = Path(sys.argv[1])
config = read_config(folder)
parameters = find_model("llama").parameters(config)
before = mib("VmRSS")
weights = load_weights(Checkpoint.open(folder), parameters, {"embed": PANEL16}, torch.float32, torch.device("cpu"))
held = sum(weight.num_bytes for weight in weights.values()) / 2**20
print(held, mib("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak of memory from Linux's /proc")
def test_the_peak_of_memory_is_the_weights(tmp_path: Path, files: Any) -> None:
    """80 MiB of bfloat16 zeros in a file that is one hole, read into panels of float32."""
    files.config(
        tmp_path, vocab_size=40_960, hidden_size=1024, intermediate_size=16, head_dim=8, tie_word_embeddings=True
    )
    config = replace(read_config(tmp_path), tied=True)
    sources = [source for parameter in find_model("llama").parameters(config) for source in parameter.sources]
    header: dict[str, Any] = {}
    end = 0
    for source in sources:
        begin, end = end, end + torch.Size(source.shape).numel() * 2
        header[source.name] = {"dtype": "BF16", "shape": source.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    held, peak = map(float, done.stdout.split())
    assert held > 160
    assert peak < held + 24
