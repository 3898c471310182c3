"""Text, tokenizer and token arrays for the embedded model, from what every Python installation carries.

    python -m ambidex.runtime.embedded.corpus --out out/embedded

Three sources, all under the PSF licence: the standard library's `.py` files, the language topics of `pydoc`, and the
documentation strings of the modules written in C, set as stubs. Test suites and machine-made tables are left out.

Every text has a path, and a hash of that path puts it in the train, validation or test split, so the split is the same
on every machine and no file is in two of them. Leading underscores are ignored by the hash: `_heapq` (C) follows
`heapq.py`. What this does not exclude: sentences that two files share, such as licence headers.

Written to `--out`, as uint16 arrays: `train-clean.npy` (the tokenizer's own segmentation), `train-cut-N.npy` (each text
cut at random characters and the pieces encoded one by one: a prompt may end in the middle of a word, or after the space
that the tokenizer would join to the next word), `train-chat.npy` (functions of the training files as answers in the
chat template), `validation.npy`, `test.npy`; and `model/` with the tokenizer, its configuration and `corpus.json`.
"""

import argparse
import ast
import hashlib
import inspect
import json
import random
import sys
import sysconfig
import textwrap
import tokenize
import types
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .vocabulary import (
    ASSISTANT,
    BEGIN,
    END_OF_TEXT,
    END_OF_TURN,
    SYSTEM,
    USER,
    token_id,
    train_tokenizer,
    write_json,
    write_model_files,
)

TEST_PERCENT, VALIDATION_PERCENT = 3, 5
SPLITS = ("train", "validation", "test")

EXCLUDED_FOLDERS = {"__pycache__", "_bundled", "dist-packages", "idle_test", "lib-dynload", "site-packages"}
TEST_FOLDERS = {"test", "tests"}
EXCLUDED_FILES = {"html/entities.py", "pydoc_data/topics.py", "re/_casefix.py", "stringprep.py"}
EXCLUDED_STEMS = ("_sysconfigdata", "_test", "_xx", "xx")
MAX_ANSWER_CHARACTERS = 2000


def source_files() -> Iterator[tuple[str, str]]:
    """Relative path and text of each file of the standard library that people wrote."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        unwanted = (EXCLUDED_FOLDERS | TEST_FOLDERS) & set(name.parts) or name.parts[0].startswith("config-")
        if unwanted or name.as_posix() in EXCLUDED_FILES or name.name.startswith(EXCLUDED_STEMS):
            continue
        with tokenize.open(path) as file:
            text = file.read()
        is_charmap = name.parts[0] == "encodings" and ("decoding_table" in text or "decoding_map" in text)
        if text.strip() and not is_charmap and name.as_posix() != "encodings/aliases.py":
            yield name.as_posix(), text


def topics() -> Iterator[tuple[str, str]]:
    """The chapters of the language reference that `help()` shows."""
    for name, text in sorted(import_module("pydoc_data.topics").topics.items()):
        yield f"topics/{name}", text


def stub(name: str, value: object, indent: str = "") -> str:
    """`value` as a definition without a body, or nothing where it has no documentation of its own."""
    doc = inspect.getdoc(value)
    if not doc:
        return ""
    try:
        signature = str(inspect.signature(value)) if callable(value) else "(*args, **kwargs)"
    except (ValueError, TypeError):
        signature = "(*args, **kwargs)"
    if " at 0x" in signature:
        signature = "(*args, **kwargs)"
    if inspect.isclass(value):
        head, body = f"class {name}:", "".join(member_stubs(value))
    else:
        head, body = f"def {name}{signature}:", "    ...\n"
    doc = doc.replace("\\", "\\\\").replace('"""', "'''")
    return textwrap.indent(f'{head}\n    """{textwrap.indent(doc, "    ").strip()}"""\n{body}\n', indent)


def member_stubs(owner: type) -> Iterator[str]:
    """Stubs of the methods of a class; the slots that every object has say nothing new and are left out."""
    for name, value in sorted(vars(owner).items()):
        if isinstance(value, (types.MethodDescriptorType, types.ClassMethodDescriptorType)):
            text = stub(name, value, "    ")
            if text:
                yield "\n" + text.rstrip("\n") + "\n"


def extension_modules() -> Iterator[types.ModuleType]:
    for name in sorted(sys.stdlib_module_names):
        if name.startswith(EXCLUDED_STEMS):
            continue
        spec = find_spec(name)
        if spec is None or not (spec.origin == "built-in" or str(spec.origin).endswith(".so")):
            continue
        try:
            yield import_module(name)
        except ImportError:
            print(f"{name}: cannot be imported here; its documentation is left out", file=sys.stderr)


def documentation_strings() -> Iterator[tuple[str, str]]:
    """One stub file for each module written in C."""
    for module in extension_modules():
        members = [
            stub(name, value)
            for name, value in sorted(vars(module).items())
            if isinstance(value, types.BuiltinFunctionType) or (inspect.isclass(value) and name == value.__name__)
        ]
        text = "\n".join(member for member in members if member)
        if text:
            yield f"{module.__name__}.pyi", f'"""{inspect.getdoc(module) or module.__name__}"""\n\n{text}'


def split_of(path: str) -> str:
    """The split of a text, by its path alone."""
    key = "/".join(part.lstrip("_") for part in path.removesuffix("i").split("/"))
    percent = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    if percent < TEST_PERCENT:
        return "test"
    return "validation" if percent < TEST_PERCENT + VALIDATION_PERCENT else "train"


def functions(source: str) -> Iterator[tuple[str, str, str]]:
    """Signature, first sentence of the documentation and source of each documented function of a file."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)):
            code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            summary = " ".join(doc.split("\n\n")[0].split())
            if len(code) <= MAX_ANSWER_CHARACTERS and len(summary) <= 200:
                yield f"{node.name}({ast.unparse(node.args)})", summary, code


def conversations(texts: list[tuple[str, str]], rng: random.Random) -> Iterator[str]:
    """The functions of the texts as answers to a request for them, and their documentation as explanations."""
    for path, text in texts:
        if not path.endswith(".py"):
            continue
        for signature, summary, code in functions(text):
            name = signature.partition("(")[0]
            question, answer = rng.choice(
                [
                    (f"Write a Python function `{signature}`. {summary}", code),
                    (f"Write a Python function: {summary}", code),
                    (f"Write `{name}` in Python.", code),
                    (f"What does `{signature}` do?", summary),
                ]
            )
            system = f"{SYSTEM}You write Python.{END_OF_TURN}" if rng.random() < 0.2 else ""
            yield f"{system}{USER}{question}{END_OF_TURN}{ASSISTANT}{answer}{END_OF_TURN}{END_OF_TEXT}"


def cut(text: str, mean_characters: int, rng: random.Random) -> list[str]:
    """The text in pieces whose lengths are exponentially distributed."""
    pieces: list[str] = []
    start = 0
    while start < len(text):
        stop = start + 1 + int(rng.expovariate(1 / mean_characters))
        pieces.append(text[start:stop])
        start = stop
    return pieces


def encode(tokenizer: Tokenizer, documents: list[list[str]], closed: bool = True) -> NDArray[np.uint16]:
    """One array of all documents: begin of text, the ids of each piece, end of text (unless the text has its own)."""
    begin, end = token_id(tokenizer, BEGIN), token_id(tokenizer, END_OF_TEXT)
    ids: list[int] = []
    for pieces in documents:
        ids.append(begin)
        for encoding in tokenizer.encode_batch(pieces, add_special_tokens=False):
            ids.extend(encoding.ids)
        if closed:
            ids.append(end)
    return np.asarray(ids, dtype=np.uint16)


def summary(texts: dict[str, list[tuple[str, str]]], arrays: dict[str, NDArray[np.uint16]]) -> dict[str, object]:
    """What the model card and the evaluation need to know of the text."""
    every = sorted(item for split in SPLITS for item in texts[split])
    digest = hashlib.sha256("".join(f"{path}\0{text}\0" for path, text in every).encode())
    sizes = {
        split: {
            "num_texts": len(texts[split]),
            "num_bytes": sum(len(text.encode()) for _, text in texts[split]),
            "num_tokens": len(arrays["train-clean" if split == "train" else split]),
        }
        for split in SPLITS
    }
    held_out = {split: [path for path, _ in texts[split]] for split in SPLITS[1:]}
    return {"python": sys.version.split()[0], "sha256": digest.hexdigest(), "splits": sizes, "held_out": held_out}


def main() -> None:
    parser = argparse.ArgumentParser(description="Text, tokenizer and token arrays for the embedded model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the arrays and for model/")
    parser.add_argument("--num-cuts", type=int, default=4, help="copies of the training text with random piece borders")
    parser.add_argument("--cut-characters", type=int, default=100, help="mean length of a piece in such a copy")
    arguments = parser.parse_args()

    texts: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for source in (source_files(), topics(), documentation_strings()):
        for path, text in source:
            texts[split_of(path)].append((path, text))
    tokenizer = train_tokenizer([text for _, text in texts["train"]])

    rng = random.Random(0)
    arrays = {
        "train-clean" if split == "train" else split: encode(tokenizer, [[text] for _, text in texts[split]])
        for split in SPLITS
    }
    for index in range(arguments.num_cuts):
        pieces = [cut(text, arguments.cut_characters, rng) for _, text in texts["train"]]
        arrays[f"train-cut-{index}"] = encode(tokenizer, pieces)
    chat = list(conversations(texts["train"], rng))
    arrays["train-chat"] = encode(tokenizer, [[text] for text in chat], closed=False)

    model_folder: Path = arguments.out / "model"
    model_folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(arguments.out / f"{name}.npy", array)
    write_model_files(tokenizer, model_folder)
    facts = summary(texts, arrays)
    write_json(model_folder / "corpus.json", facts)
    print(json.dumps(facts["splits"], indent=2), {name: len(array) for name, array in arrays.items()})


if __name__ == "__main__":
    main()
