"""The six recipes of docs/adding.md, taken from the page, installed as a package beside Ambidex, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
FILES: Mapping[str, str] = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
ENTRY_POINTS = """
[ambidex.backends]
acme = acme_house.acme:BACKEND
[ambidex.ops]
soft_clip = acme_house.soft_clip:OP
[ambidex.kernels]
rms_norm_fused = acme_house.rms_norm_fused:KERNELS
[ambidex.formats]
int8_rows = acme_house.int8_rows:FORMAT
[ambidex.models]
acme_lm = acme_house.acme_lm:Model
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder with the package of the page's files and its entry points."""
    site = tmp_path_factory.mktemp("site")
    package, metadata = site / "acme_house", site / "acme_house-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    for name, text in FILES.items():
        (package / name).write_text(text, encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme_house\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    return site


def run(house: Path, code: str) -> str:
    """What a fresh interpreter prints that has the package installed."""
    path = os.pathsep.join([str(house), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_the_files_that_are_run() -> None:
    kinds = {"nvidia-h200-nvl.yaml", "acme.py", "acme-one.yaml", "soft_clip.py", "rms_norm_fused.py", "int8_rows.py"}
    assert set(FILES) == {*kinds, "acme_lm.py"}


def test_a_gpu_is_one_yaml(house: Path) -> None:
    from ambidex.hwprofiles.match import DeviceReport, match
    from ambidex.hwprofiles.reader import load, load_file

    profile = load_file(house / "acme_house" / "nvidia-h200-nvl.yaml")
    report = DeviceReport("nvidia", arch="sm_90", units=132, pci_device_id=0x233B, memory_bytes=150 * 10**9)
    found = match(report, [profile, load("nvidia-h200-sxm"), load("nvidia-h100-sxm")])
    assert (found.profile, found.kind) == (profile, "exact")
    assert profile.unverified_fields()


def test_a_vendor_is_a_backend_and_its_yaml(house: Path) -> None:
    code = """
from ambidex import LLM, SamplingParams
llm = LLM(device="acme", max_model_len=64, progress=False)
output = llm.generate("def ", SamplingParams(temperature=0, max_tokens=4))[0]
print(llm.decided.profile.name, llm.decided.backend.name, len(output.outputs[0].token_ids))
"""
    assert run(house, code).split() == ["acme-one", "acme", "4"]


def test_an_op_runs_through_its_reference(house: Path) -> None:
    code = """
import torch
from ambidex.hwprofiles.reader import load
from ambidex.ops import discovery
from ambidex.ops.binding import bind
from ambidex.ops.tracing import Recorder
x = torch.randn(3, 8)
recorder = Recorder(discovery.ops(), num_logits=1)
recorder.soft_clip(x.to("meta"), limit=2.0)
binding = bind(recorder.sites, load("amd-mi300x"))
print(torch.allclose(binding.ops.soft_clip(x, limit=2.0), 2 * torch.tanh(x / 2)), binding.sites[0].choices[0].chosen)
"""
    assert run(house, code).split() == ["True", "reference"]


def test_a_kernel_is_found_and_can_be_chosen(house: Path) -> None:
    code = """
import torch
from ambidex.hwprofiles.reader import load
from ambidex.ops import discovery
from ambidex.ops.binding import bind
from ambidex.ops.contract import Policy
from ambidex.ops.layouts import dense
from ambidex.ops.tracing import Recorder
recorder = Recorder(discovery.ops(), num_logits=1)
recorder.rms_norm(torch.empty(3, 8, device="meta"), dense("norm", torch.empty(8, device="meta")), eps=1e-5)
binding = bind(recorder.sites, load("cpu-avx2"), Policy(choices={"rms_norm": "rms_norm_fused"}))
print({choice.chosen for choice in binding.sites[0].choices})
x, weight = torch.randn(3, 8), dense("norm", torch.rand(8))
wanted = discovery.ops()["rms_norm"].reference(x, weight, eps=1e-5)
print(torch.allclose(binding.ops.rms_norm(x, weight, eps=1e-5), wanted))
"""
    assert run(house, code).split() == ["{'rms_norm_fused'}", "True"]


def test_a_format_loads_and_stays_close(house: Path) -> None:
    code = """
from ambidex import LLM, SamplingParams
params = SamplingParams(temperature=0, max_tokens=1, logprobs=1)
full, eight = (LLM(quantization=name, max_model_len=64, progress=False) for name in (None, "int8_rows"))
values = [llm.generate("import ", params)[0].outputs[0].cumulative_logprob for llm in (full, eight)]
print(abs(values[0] - values[1]) < 0.5, eight.decided.weight_bytes < 0.75 * full.decided.weight_bytes)
formats = {name for site in eight.manifest()["sites"] for name in site["formats"]}
print(sorted(formats))
"""
    assert run(house, code).split("\n")[:2] == ["True True", "['dense', 'int8_rows']"]


def test_a_model_is_the_file_of_its_type(house: Path, tmp_path: Path) -> None:
    """The embedded checkpoint under another model_type, with biases of zero, writes what it wrote before."""
    from ambidex.runtime.embedded.location import folder
    from safetensors.torch import load_file, save_file

    config = json.loads((folder() / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "acme_lm"}), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder() / name, tmp_path / name)
    tensors = load_file(folder() / "model.safetensors")
    for name in [name for name in tensors if re.search(r"\.[qkv]_proj\.weight$", name)]:
        tensors[name.replace("weight", "bias")] = tensors[name].new_zeros(tensors[name].shape[0])
    save_file(tensors, tmp_path / "model.safetensors")
    code = f"""
from ambidex import LLM, SamplingParams
params = SamplingParams(temperature=0, max_tokens=12)
models = [LLM(name, max_model_len=64, progress=False) for name in ({str(tmp_path)!r}, None)]
texts = [llm.generate("import os", params)[0].outputs[0].token_ids for llm in models]
sites = {{site["name"]: site["dims"] for site in models[0].manifest()["sites"]}}
print(texts[0] == texts[1], sites["norm_qkv_rope_store@kv"]["bias"])
"""
    assert run(house, code).split() == ["True", "True"]


def test_the_page_names_the_folders_that_exist() -> None:
    folders = re.findall(r"^## .*?`([\w/]+)/<", PAGE, re.MULTILINE)
    assert folders == ["hwprofiles", "backends", "ops", "kernels", "quant", "runtime/models"]
    assert all((ROOT / folder).is_dir() for folder in folders)
    assert yaml.safe_load(FILES["acme-one.yaml"])["vendor"] == "acme"
