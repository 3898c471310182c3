"""Finding a checkpoint and reading its tensors: a local folder or a hub id, safetensors only, no code from it.

The folder is foreign input: names of shards, headers and the index are checked before a byte of a tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import AmbidexError, CheckpointCorrupt, CheckpointRefused, ModelNotFound
from .fields import read_json, shown
from .tensor_file import TensorEntry, read_entries, read_rows

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WANTED = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*"]  # other runtimes' copies of the same weights
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_CURES = {
    ".gguf": "take the safetensors checkpoint from which it was made",
    **dict.fromkeys(
        (".bin", ".pt", ".pth", ".ckpt"),
        'such files run code when opened; convert where you trust them: python -c "from transformers import '
        "AutoModelForCausalLM as A; A.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\"",
    ),
}


def resolve(model: str, revision: str | None = None, wanted: Sequence[str] = _WANTED) -> Path:
    """The folder of a checkpoint: `model` itself, or the hub's files of that id (cached; HF_HUB_OFFLINE is respected).
    wanted: patterns of the files that are fetched.

    Errors: ModelNotFound (no such folder or id, or the hub cannot be reached), CheckpointRefused (a file of weights).
    """
    try:
        folder = Path(model).expanduser()
        if model and folder.is_dir():
            return folder
        is_file = folder.is_file()
    except (OSError, RuntimeError):
        raise ModelNotFound(f"{shown(model)} can be neither a folder nor a hub id") from None
    if is_file:
        raise _one_file(folder)
    if not _HUB_ID.fullmatch(model):
        raise ModelNotFound(
            f"there is no folder {shown(model)}: name the folder of a checkpoint, or a hub id (owner/name)"
        )
    return _from_hub(model, revision, wanted)


def _one_file(path: Path) -> AmbidexError:
    cure = _CURES.get(path.suffix)
    if cure:
        return CheckpointRefused(f"{path} is not read: {cure.format(folder=path.parent)}")
    return ModelNotFound(f"{path} is a file: name the folder that holds it and its config.json ({path.parent})")


def _from_hub(model: str, revision: str | None, wanted: Sequence[str]) -> Path:
    import huggingface_hub  # a second to import, and needed here only
    from huggingface_hub import errors

    unreachable: tuple[type[BaseException], ...] = (*errors.HfHubHTTPError.__bases__, OSError, ValueError)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=list(wanted), ignore_patterns=_UNWANTED
            )
        )
    except errors.GatedRepoError:
        cure = f"accept its licence at https://huggingface.co/{model} and set HF_TOKEN"
        raise ModelNotFound(f"{model} is gated: {cure}") from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFound(
            f"{model} is neither a folder here nor a public model on the hub: check the name, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFound(f"{model} has no revision {shown(revision)} on the hub") from None
    except errors.LocalEntryNotFoundError as failure:
        raise ModelNotFound(_not_cached(model, type(failure).__name__)) from None
    except unreachable as failure:
        raise ModelNotFound(f"{model} could not be fetched from the hub: {' '.join(str(failure).split())}") from None


def _not_cached(model: str, kind: str) -> str:
    from huggingface_hub import constants

    state = "only partly in the cache" if kind == "IncompleteSnapshotError" else "not in the cache"
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    return (
        f"{model} is no folder here, {state} ({constants.HF_HUB_CACHE}), and {why}: fetch it where there is a network "
        f"(hf download {model} --local-dir FOLDER) and name that folder"
    )


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder, by name, without their bytes."""

    folder: Path
    tensors: Mapping[str, TensorEntry]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Reads the headers of `model.safetensors`, or of the index's shards, or of every safetensors file.

        Errors: ModelNotFound (no weights), CheckpointRefused (only formats that are not read), CheckpointCorrupt (a
        header, shard or index that is not true).
        """
        if not folder.is_dir():
            raise ModelNotFound(f"there is no folder {folder}")
        if (folder / _SINGLE).is_file():
            return cls(folder, _gather([folder / _SINGLE]))
        if (folder / _INDEX).is_file():
            return cls(folder, _sharded(folder))
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise _no_weights(folder)
        return cls(folder, _gather(files))

    def read(self, name: str, row0: int, num_rows: int, out: torch.Tensor) -> None:
        """Rows `[row0, row0 + num_rows)` of a tensor, from the file straight into the first rows of `out` (CPU)."""
        read_rows(self.tensors[name], row0, out[:num_rows])


def _gather(files: Iterable[Path]) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for path in files:
        for entry in read_entries(path):
            if entry.name in found:
                raise CheckpointCorrupt(f"tensor {shown(entry.name)} is in {found[entry.name].file.name} and in {path}")
            found[entry.name] = entry
    return found


def _sharded(folder: Path) -> dict[str, TensorEntry]:
    index = folder / _INDEX
    homes = _homes(index, read_json(index, CheckpointCorrupt).get("weight_map"))
    files = sorted(set(homes.values()))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise CheckpointCorrupt(
            f"{folder} lacks {missing[0]} ({len(missing)} of {len(files)} shards): download it again"
        )
    found = _gather(folder / name for name in files)
    for name in [*homes, *found]:
        home, actual = homes.get(name), found[name].file.name if name in found else None
        if home != actual:
            raise CheckpointCorrupt(f"{index} says that tensor {shown(name)} is in {home}, but it is in {actual}")
    return found


def _homes(index: Path, homes: Any) -> dict[str, str]:
    """The index's map from tensor to shard; a shard is a plain file name of the same folder."""
    if not isinstance(homes, dict) or not homes:
        raise CheckpointCorrupt(f"{index}: weight_map must say in which file each tensor is")
    for name, file in homes.items():
        plain = isinstance(file, str) and re.fullmatch(r"[^/\\\0]+\.safetensors", file)
        if not plain:
            raise CheckpointCorrupt(
                f"{index}: tensor {shown(name)} is in {shown(file)}, it must be in a .safetensors file beside it"
            )
    return homes


def _no_weights(folder: Path) -> AmbidexError:
    for path in sorted(folder.iterdir()):
        if path.suffix in _CURES:
            cure = _CURES[path.suffix].format(folder=folder)
            return CheckpointRefused(f"{folder} holds its weights as {path.name}, which is not read: {cure}")
    return ModelNotFound(f"{folder} has no .safetensors file: name the folder that holds a checkpoint's weights")
