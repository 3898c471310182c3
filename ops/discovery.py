"""Finding ops, kernels, formats, backends and models: by folder listing here, by entry point elsewhere.

No list names them, so adding one touches one file. `pkgutil` does not see folders without `__init__.py`; files are
listed instead.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from .contract import Kernel, Op
from .types import Format

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGE = __name__.rsplit(".", 2)[0]


def stems(folder: str) -> list[str]:
    """Names of the Python files of a folder of the package ("kernels/cpu"), private ones left out."""
    return sorted(path.stem for path in (_ROOT / folder).glob("*.py") if not path.stem.startswith("_"))


def module(folder: str, stem: str) -> ModuleType:
    return import_module(".".join([_PACKAGE, *folder.split("/"), stem]))


def plugins(group: str) -> dict[str, Any]:
    """Objects that installed packages offer under `ambidex.<group>`, by entry point name."""
    return {entry.name: entry.load() for entry in entry_points(group=f"ambidex.{group}")}


def _exported(folder: str, names: list[str], attribute: str) -> list[Any]:
    modules = [module(folder, stem) for stem in names]
    return [getattr(found, attribute) for found in modules if hasattr(found, attribute)]


@cache
def ops() -> dict[str, Op]:
    """Every op by name: each file of `ops/` that defines `OP`, and the entry points `ambidex.ops`."""
    found: list[Op] = [*_exported("ops", stems("ops"), "OP"), *plugins("ops").values()]
    return _by_name(found)


@cache
def languages() -> tuple[str, ...]:
    """The kernel languages: the folders of `kernels/`."""
    return tuple(sorted(path.name for path in (_ROOT / "kernels").iterdir() if any(path.glob("*.py"))))


@cache
def kernels() -> dict[str, Kernel]:
    """Every kernel by name: `kernels/<language>/<op>.py` files that define `KERNELS`, and entry points."""
    found: list[Kernel] = []
    for language in languages():
        folder = f"kernels/{language}"
        names = [stem for stem in stems(folder) if stem in ops()]
        found += [kernel for exported in _exported(folder, names, "KERNELS") for kernel in exported]
    found += [kernel for exported in plugins("kernels").values() for kernel in exported]
    return _by_name(found)


@cache
def formats() -> dict[str, Format]:
    """Every weight format by name: each file of `quant/` that defines `FORMAT`, and the entry points."""
    return _by_name([*_exported("quant", stems("quant"), "FORMAT"), *plugins("formats").values()])


@cache
def missing_languages() -> dict[str, str]:
    """Languages whose kernels cannot run in this environment, each with the sentence that says why."""
    reasons: dict[str, str] = {}
    for language in languages():
        if "language" in stems(f"kernels/{language}"):
            why: str | None = module(f"kernels/{language}", "language").missing()
            if why:
                reasons[language] = why
    return reasons


@cache
def compiled_languages() -> dict[str, ModuleType]:
    """Languages that compile a kernel for the device when it is first launched, each with the module that does so ahead
    of time: `kernels/<language>/ahead.py`, with `Target.of(profile)` and `collecting(target)`. Beside it `language.py`
    has `forbid_compiling()`."""
    folders = [(language, f"kernels/{language}") for language in languages()]
    return {language: module(folder, "ahead") for language, folder in folders if "ahead" in stems(folder)}


def forbid_compiling() -> None:
    """From here on no language compiles a kernel in this process: what is not built already is an error."""
    for language in compiled_languages():
        module(f"kernels/{language}", "language").forbid_compiling()


def describe_language(language: str) -> str:
    """What a language that can run here says of itself: its file's `describe()`, else "ready"."""
    if "language" not in stems(f"kernels/{language}"):
        return "ready"
    found = module(f"kernels/{language}", "language")
    return found.describe() if hasattr(found, "describe") else "ready"


def _by_name(found: list[Any]) -> dict[str, Any]:
    names = [item.name for item in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two definitions of {', '.join(twice)}: a name belongs to one file or plugin")
    return {item.name: item for item in found}
