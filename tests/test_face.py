"""The face: what `ambidex` exports, frozen here, and how little it costs to import."""

import ast
import subprocess
import sys
from pathlib import Path

import ambidex
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPORTED = ["LLM", "AsyncLLM", "CompletionOutput", "RequestOutput", "SamplingParams", "__version__"]


def fresh(code: str) -> str:
    """What a new interpreter prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return done.stdout.strip()


def typed_names() -> dict[str, str]:
    """The names that a type checker sees, with their modules."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {a.name: str(i.module) for i in block.body if isinstance(i, ast.ImportFrom) for a in i.names}


def test_the_face_is_frozen() -> None:
    assert ambidex.__all__ == EXPORTED
    assert dir(ambidex) == sorted(EXPORTED)


def test_every_name_is_there_and_is_what_the_type_checker_sees() -> None:
    assert sorted([*typed_names(), "__version__"]) == sorted(EXPORTED)
    for name, module in typed_names().items():
        assert getattr(ambidex, name).__module__ == module
        assert getattr(ambidex, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    name = "Llama"
    with pytest.raises(AttributeError, match="no attribute 'Llama'"):
        getattr(ambidex, name)


def test_the_face_does_not_import_relatively() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "pydantic", "typer", "tokenizers"]
    assert fresh(f"import sys, ambidex; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_importing_it_takes_little() -> None:
    code = "import time; start = time.process_time(); import ambidex; print(time.process_time() - start)"
    assert min(float(fresh(code)) for _ in range(3)) < 0.05
