"""The floors of the house: a part imports only from floors below, and what is found is never imported by name."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "hwprofiles": 1,
    "ops": 2,
    "kernels": 3,
    "quant": 3,
    "backends": 3,
    "runtime": 4,
    "serving": 5,
    "planning": 5,
    "bench": 6,
    "commands": 7,
    "cli": 8,
    "__main__": 9,
}
FOUND = ("kernels/*/*.py", "runtime/models/*.py")
"""Files that are found by listing; in `backends` and `quant`, those that define what discovery collects."""
TORCHLESS = ("__init__.py", "__main__.py", "cli.py", "commands", "hwprofiles")


def package_files(root: Path) -> list[Path]:
    found = (path for part in FLOORS for path in [root / f"{part}.py", *(root / part).rglob("*.py")])
    return sorted(path for path in found if path.is_file())


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of each import of this package in a file, as a path below the root: "ops/types/Weight"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].relative_to(root).parts
            module = [*base, *(node.module or "").split(".")] if node.module else list(base)
            yield from ((node.lineno, "/".join([*module, alias.name])) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ambidex":
            module = (node.module or "").split(".")[1:]
            yield from ((node.lineno, "/".join([*module, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from ((node.lineno, "/".join(name[1:])) for name in names if name[0] == "ambidex")


def floor_breaches(root: Path) -> list[str]:
    breaches = []
    for path in package_files(root):
        home = path.relative_to(root).parts[0].removesuffix(".py")
        for line, target in imports(path, root):
            part = target.partition("/")[0]
            if part != home and FLOORS.get(part, 0) >= FLOORS[home]:
                breaches.append(f"{path.relative_to(root)}:{line}: {home} (floor {FLOORS[home]}) imports {target}")
    return breaches


def is_found(module: Path) -> bool:
    """Whether the file defines what discovery collects: a constant BACKEND or FORMAT."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    assigned = (node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign))
    targets = (t for node in assigned for t in (node.targets if isinstance(node, ast.Assign) else [node.target]))
    return any(isinstance(target, ast.Name) and target.id in {"BACKEND", "FORMAT"} for target in targets)


def concrete_modules(root: Path) -> set[str]:
    """Modules that nobody outside their folder may name."""
    listed = {path for pattern in FOUND for path in root.glob(pattern)}
    peers = {path for folder in ("backends", "quant") for path in (root / folder).glob("*.py") if is_found(path)}
    return {path.relative_to(root).with_suffix("").as_posix() for path in listed | peers}


def name_breaches(root: Path) -> list[str]:
    concrete = concrete_modules(root)
    breaches = []
    for path in package_files(root):
        home = path.relative_to(root).parent.as_posix()
        for line, target in imports(path, root):
            named = {module for module in concrete if f"{target}/".startswith(f"{module}/")}
            outside = {module for module in named if not f"{home}/".startswith(f"{module.rpartition('/')[0]}/")}
            breaches += [f"{path.relative_to(root)}:{line} names {module}" for module in outside]
    return breaches


def absolute_imports(root: Path) -> list[str]:
    files = [path for path in package_files(root) if path.name != "__main__.py"]
    nodes = ((path, node) for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    absolute = (
        f"{path.relative_to(root)}:{node.lineno}"
        for path, node in nodes
        if (isinstance(node, ast.ImportFrom) and not node.level and f"{node.module}.".startswith("ambidex."))
        or (isinstance(node, ast.Import) and any(f"{alias.name}.".startswith("ambidex.") for alias in node.names))
    )
    return list(absolute)


def module_level_torch(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
    return any(f"{name}.".startswith(("torch.", "triton.", "transformers.")) for name in imported)


def torchless_files(root: Path) -> list[Path]:
    found = [[root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py")) for name in TORCHLESS]
    return [path for paths in found for path in paths if path.is_file()]


def test_a_part_imports_only_from_floors_below() -> None:
    assert floor_breaches(ROOT) == []


def test_what_is_found_is_not_imported_by_name() -> None:
    assert name_breaches(ROOT) == []


def test_inside_the_package_imports_are_relative() -> None:
    assert absolute_imports(ROOT) == []


def test_there_is_one_init() -> None:
    parts = [ROOT / part for part in (*FLOORS, "tests", "docs", "examples", "containers")]
    assert [path for part in parts for path in part.rglob("__init__.py")] == []
    assert (ROOT / "__init__.py").is_file()


def test_light_modules_do_not_load_torch() -> None:
    assert [path for path in torchless_files(ROOT) if module_level_torch(path)] == []


def test_every_part_is_shipped_and_type_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    parts = {name for name in FLOORS if (ROOT / name).is_dir()}
    assert parts <= set(project["hatch"]["build"]["targets"]["wheel"]["only-include"])
    assert {f".dev/ambidex/{part}" for part in parts} <= set(project["mypy"]["files"])
    others = {"tests", "examples", "containers", "docs", "out", "dist", "build"}
    assert {path.parent.name for path in ROOT.glob("*/*.py")} - others <= set(FLOORS)


@pytest.mark.parametrize(
    ("where", "source", "check"),
    [
        ("ops/linear.py", "from ..runtime import engine", floor_breaches),
        ("ops/linear.py", "def f():\n    from ..kernels.contract import Kernel", floor_breaches),
        ("quant/int8.py", "from ..backends.contract import Backend", floor_breaches),
        ("backends/cpu.py", "import ambidex.quant.int8", floor_breaches),
        ("planning/plan.py", "from ..serving import app", floor_breaches),
        ("runtime/engine.py", "from .. import bench", floor_breaches),
        ("runtime/engine.py", "from ..kernels.cpu.linear import linear_cpu", name_breaches),
        ("runtime/engine.py", "from ..kernels.cpu import linear", name_breaches),
        ("bench/latency.py", "from ..backends import cpu", name_breaches),
        ("runtime/loader.py", "from .models.llama import Llama", name_breaches),
        ("runtime/engine.py", "from ambidex.ops.types import Weight", absolute_imports),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, where: str, source: str, check: object) -> None:
    written = {
        "kernels/cpu/linear.py": "KERNELS = []",
        "backends/cpu.py": "BACKEND = 1",
        "runtime/models/llama.py": "",
        where: source,
    }
    for name, text in written.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert callable(check)
    assert len(check(tmp_path)) == 1


@pytest.mark.parametrize("source", ["import torch", "import torch.nn as nn", "from torch import Tensor"])
def test_a_heavy_import_is_seen(tmp_path: Path, source: str) -> None:
    path = tmp_path / "cli.py"
    path.write_text(source, encoding="utf-8")
    assert module_level_torch(path)
