"""The wheel: what it carries, and that it generates text in a clean environment elsewhere.

An editable install finds everything that lies in the tree, so only this shows what a user gets.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HAS_COMPILER = bool(os.environ.get("CC")) or any(shutil.which(name) for name in ("cc", "gcc", "clang"))


def run(*command: str | Path, cwd: Path) -> str:
    """stdout of a command; on failure the test shows both streams."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments: str | Path, cwd: Path) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def content(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a clean environment with the wheel in it; its dependencies are this environment's packages."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A line of a .pth file is a path; .pth files found there (the editable install's) are not read.
    (own / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return python


def test_it_carries_what_runs(content: set[str]) -> None:
    profiles = {f"ambidex/hwprofiles/{path.name}" for path in (ROOT / "hwprofiles").glob("*.yaml")}
    assert profiles
    assert profiles <= content
    assert {"ambidex/__init__.py", "ambidex/cli.py", "ambidex/py.typed", "ambidex/bench/conformance.py"} <= content
    modules = {
        path.relative_to(ROOT) for part in ("ops", "backends", "kernels") for path in (ROOT / part).rglob("*.py")
    }
    assert {f"ambidex/{path}" for path in modules} <= content


def test_it_carries_the_embedded_model(content: set[str]) -> None:
    names = {Path(name).name for name in content if name.startswith("ambidex/runtime/embedded/")}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here: the wheel is pure Python")
def test_it_carries_the_library_and_the_platforms_tag(wheel: Path, content: set[str]) -> None:
    assert [name for name in content if name.startswith("ambidex/kernels/cpu/") and name.endswith(".so")]
    assert wheel.stem.endswith("py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_"))


def test_it_leaves_the_rest_at_home(content: set[str]) -> None:
    tops = {name.split("/")[1] for name in content if name.startswith("ambidex/")}
    assert not tops & {"tests", "docs", "examples", "containers", "hatch_build.py", "Makefile", ".ci", ".dev"}
    endings = (".npy", ".npz", ".pt", ".bin", ".pyc", ".o")
    assert [name for name in content if name.endswith(endings)] == []
    assert "ambidex/runtime/embedded/train.py" not in content


def test_it_declares_its_command_and_its_pytest_plugin(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        declared = archive.read(name).decode()
    assert "ambidex = ambidex.cli:main" in declared
    assert "ambidex_conformance = ambidex.bench.conformance" in declared


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here: the wheel is pure Python")
def test_its_library_loads_elsewhere(elsewhere: Path, tmp_path: Path) -> None:
    code = "from ambidex.kernels.cpu.library import load; print(load().path)"
    assert Path(run(elsewhere, "-c", code, cwd=tmp_path).strip()).is_relative_to(elsewhere.parents[1])


def test_it_generates_elsewhere(elsewhere: Path, tmp_path: Path) -> None:
    home = run(elsewhere, "-c", "import ambidex; print(ambidex.__file__)", cwd=tmp_path).strip()
    assert Path(home).is_relative_to(elsewhere.parents[1])
    command = (elsewhere.parent / "ambidex", "generate", "--prompt", "def ", "--max-tokens", "8", "--json")
    answer = json.loads(run(*command, cwd=tmp_path))
    assert 1 <= len(answer["token_ids"]) <= 8
    assert answer["text"]
