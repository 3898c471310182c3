"""Finding checkpoints and reading safetensors files: what is true is read, what is not yields one line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from ambidex.runtime.checkpoint import Checkpoint, resolve
from ambidex.runtime.errors import AmbidexError, CheckpointCorrupt, CheckpointRefused, ModelNotFound
from ambidex.runtime.tensor_file import read_entries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Header = dict[str, Any]
EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"


def taken_apart(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(folder)
    found = {}
    for name, entry in checkpoint.tensors.items():
        found[name] = torch.empty(entry.shape, dtype=entry.dtype)
        checkpoint.read(name, 0, entry.shape[0], found[name])
    return found


def refused(folder: Path, kind: type[AmbidexError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        read_all(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_every_tensor_is_read(plain: Path, files: Any) -> None:
    found, expected = read_all(plain), files.plain_tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.float8_e4m3fn])
def test_rows_of_every_dtype(tmp_path: Path, files: Any, dtype: torch.dtype) -> None:
    values = torch.randn(7, 5).mul(3).to(dtype)
    files.tensors(tmp_path / "x.safetensors", {"a": values, "empty": values[:0], "vector": values[0].clone()})
    checkpoint = Checkpoint.open(tmp_path)
    out = torch.zeros(4, 5, dtype=dtype)
    checkpoint.read("a", 3, 3, out)
    assert torch.equal(out.view(torch.uint8)[:3], values[3:6].view(torch.uint8))
    assert not out[3].view(torch.uint8).any()
    assert checkpoint.tensors["empty"].shape == (0, 5)


@pytest.mark.parametrize("keep", [0, 5, 8, 40, -1200, -401, -1])
def test_truncated(plain: Path, keep: int) -> None:
    path = plain / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(plain, CheckpointCorrupt, "is truncated.*download it again")


def test_shorter_after_its_header_was_read(plain: Path) -> None:
    path, out = plain / "model.safetensors", torch.empty(10, 8)
    checkpoint = Checkpoint.open(plain)
    path.write_bytes(path.read_bytes()[:-4])
    last = max(checkpoint.tensors.values(), key=lambda entry: entry.begin)
    with pytest.raises(CheckpointCorrupt, match="became shorter while"):
        checkpoint.read(last.name, 0, last.shape[0], out.flatten()[: last.num_bytes // 4].view(last.shape))


def change(name: str, **fields: Any) -> Callable[[Header], None]:
    return lambda header: header[name].update(fields)


LIES = {
    "dtype": (change(NORM, dtype="F4_MAGIC"), "'model.norm.weight' has dtype 'F4_MAGIC'; known are BOOL"),
    "dtype-of-another-size": (change(NORM, dtype="F64"), r"is F64 \[8\], which takes 64 bytes, but lies in 32"),
    "no-dtype": (lambda header: header[NORM].pop("dtype"), "has dtype None"),
    "shape": (change(NORM, shape=[9]), r"is F32 \[9\], which takes 36 bytes, but lies in 32"),
    "shape-negative": (change(EMBED, shape=[-10, -8]), r"has shape \[-10, -8\], it must be a list of at most 64 sizes"),
    "shape-of-many-axes": (change(NORM, shape=[1 << 62] * 400), "it must be a list of at most 64 sizes"),
    "shape-bool": (change(NORM, shape=[True]), r"has shape \[True\]"),
    "shape-overflow": (change(NORM, shape=[1 << 62, 4, 2]), "takes 1475.* but lies in 32"),
    "shape-wraps-to-32": (change(NORM, shape=[(1 << 62) + 8]), "but lies in 32"),
    "offsets-text": (change(NORM, data_offsets="0"), "has data_offsets '0'"),
    "offsets-reversed": (change(NORM, data_offsets=[32, 0]), r"offsets \[32, 0\]"),
    "offsets-huge": (change(NORM, data_offsets=[1 << 70, (1 << 70) + 32]), "has data_offsets"),
    "offsets-outside": (change(NORM, data_offsets=[1 << 40, (1 << 40) + 32]), "is truncated: tensor 'model.norm"),
    "offsets-of-nothing": (change(NORM, data_offsets=[64, 64]), "but lies in 0"),
    "entry-number": (lambda header: header.update({NORM: 3}), "'model.norm.weight' is described by 3"),
    "tensor-left-out": (lambda header: header.pop(NORM), "leaves a gap after|after the last tensor"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(plain: Path, lie: str) -> None:
    spoil, message = LIES[lie]
    header, data = taken_apart(plain / "model.safetensors")
    spoil(header)
    put_together(plain / "model.safetensors", json.dumps(header).encode(), data)
    refused(plain, CheckpointCorrupt, message)


def test_overlap(plain: Path) -> None:
    header, data = taken_apart(plain / "model.safetensors")
    begin, _ = header[EMBED]["data_offsets"]
    header[NORM]["data_offsets"] = [begin + 16, begin + 48]
    put_together(plain / "model.safetensors", json.dumps(header).encode(), data)
    refused(plain, CheckpointCorrupt, "'model.norm.weight' overlaps tensor 'model.embed_tokens.weight'")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "holds a list, it must be a JSON object"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b'{"a":' * 50_000, "is nested too deep"),
        (b'{"a": {}, "a": {}}', "the key 'a' stands there twice"),
        (b'{"\\u001b[31m": 1}', r"tensor '\\x1b\[31m' is described by 1"),
    ],
)
def test_headers_that_are_none(tmp_path: Path, header: bytes, message: str) -> None:
    put_together(tmp_path / "model.safetensors", header, b"")
    refused(tmp_path, CheckpointCorrupt, message)


def test_a_header_longer_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000_001))
    with path.open("r+b") as file:
        file.truncate(200_000_000)  # a hole: takes no room
    refused(tmp_path, CheckpointCorrupt, "a header of 100,000,001 bytes, more than the 100,000,000 allowed")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1200), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_any_spoilt_file_is_read_within_bounds_or_refused(plain: Path, place: int, byte: int, cut: int) -> None:
    whole = plain / "model.safetensors"
    content = bytearray(whole.read_bytes())
    content[place] = byte
    spoilt = plain / "spoilt.safetensors"
    spoilt.write_bytes(bytes(content[: len(content) - cut]))
    with suppress(CheckpointCorrupt):
        entries = read_entries(spoilt)
        assert all(8 <= entry.begin <= entry.begin + entry.num_bytes <= len(content) - cut for entry in entries)


@pytest.fixture
def sharded(plain: Path, files: Any) -> Path:
    """The plain checkpoint in two shards with an index."""
    tensors = files.plain_tensors()
    (plain / "model.safetensors").unlink()
    homes = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for shard in set(homes.values()):
        files.tensors(plain / shard, {name: tensors[name] for name, home in homes.items() if home == shard})
    write_index(plain, homes)
    return plain


def write_index(folder: Path, homes: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}), encoding="utf-8")


def index_of(folder: Path) -> dict[str, Any]:
    homes: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    return homes


def test_shards(sharded: Path, files: Any) -> None:
    found, expected = read_all(sharded), files.plain_tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("outside", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", 3, None])
def test_an_index_that_points_elsewhere(sharded: Path, files: Any, outside: Any) -> None:
    files.tensors(sharded.parent / "model.safetensors", files.plain_tensors())
    write_index(sharded, index_of(sharded) | {NORM: outside})
    refused(sharded, CheckpointCorrupt, "'model.norm.weight' is in .*, it must be in a .safetensors file beside it")


def test_an_index_that_disagrees(sharded: Path, files: Any) -> None:
    homes = index_of(sharded)
    write_index(sharded, homes | {"ghost": homes[NORM]})
    refused(sharded, CheckpointCorrupt, "says that tensor 'ghost' is in model-.*, but it is in None")
    write_index(sharded, {name: home for name, home in homes.items() if name != NORM})
    refused(sharded, CheckpointCorrupt, "says that tensor 'model.norm.weight' is in None, but it is in model-")
    write_index(sharded, [])
    refused(sharded, CheckpointCorrupt, "weight_map must say in which file each tensor is")
    write_index(sharded, homes)
    (sharded / homes[NORM]).unlink()
    refused(sharded, CheckpointCorrupt, r"lacks model-.*\(1 of 2 shards\)")


def test_a_tensor_in_two_files(plain: Path, files: Any) -> None:
    (plain / "model.safetensors").rename(plain / "a.safetensors")
    files.tensors(plain / "b.safetensors", {NORM: torch.ones(8)})
    refused(plain, CheckpointCorrupt, "tensor 'model.norm.weight' is in a.safetensors and in .*b.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02.")
    refused(tmp_path, CheckpointRefused, f"{name}, which is not read: such files run code .*convert.*save_pretrained")
    with pytest.raises(CheckpointRefused, match="save_pretrained"):
        resolve(str(tmp_path / name))


def test_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(tmp_path, CheckpointRefused, "model.gguf, which is not read: take the safetensors checkpoint")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    refused(tmp_path, ModelNotFound, "has no .safetensors file: name the folder")
    refused(tmp_path / "nothing", ModelNotFound, "there is no folder")


def test_resolve_a_folder(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain.parent)
    assert resolve(str(plain)) == plain
    assert resolve(plain.name) == Path(plain.name)


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./missing", "~/missing-folder", "a/b/c", "", "a b", "x" * 5000, "\0"]
)
def test_resolve_what_is_not_there(model: str) -> None:
    with pytest.raises(ModelNotFound, match=r"there is no folder|can be neither a folder nor a hub id") as caught:
        resolve(model)
    assert len(str(caught.value).splitlines()) == 1


def test_resolve_a_file(plain: Path) -> None:
    with pytest.raises(ModelNotFound, match="is a file: name the folder"):
        resolve(str(plain / "model.safetensors"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's client with an empty cache, told to stay offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_hub_id_from_the_cache(offline: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = offline / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}", encoding="utf-8")
    refs = offline / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit, encoding="utf-8")
    assert resolve("owner/name") == snapshot
    assert resolve("owner/name", revision=commit) == snapshot


def test_a_hub_id_without_network(offline: Path) -> None:
    cure = r"not in the cache \(.*cache\), and HF_HUB_OFFLINE is set: fetch it .*hf download owner/name"
    with pytest.raises(ModelNotFound, match=cure) as caught:
        resolve("owner/name")
    assert len(str(caught.value).splitlines()) == 1


def test_a_hub_that_cannot_be_reached(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(ModelNotFound, match=r"the hub cannot be reached|could not be fetched from the hub"):
        resolve("owner/name")
