"""Build hook: compiles the C kernels of the CPU and gives the wheel the platform's tag.

A machine without a compiler still installs: `ziglang` from PyPI stands in as one, and where compiling fails altogether
the reason is printed, the wheel is pure Python, and the binding takes torch's kernels (`ambidex explain` says so).
Set AMBIDEX_REQUIRE_NATIVE=1 to make that failure an error.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("kernels/cpu")
"""Where the C sources lie, and where the library is looked for, in the tree as in the wheel."""


def load_builder(root: Path) -> ModuleType:
    """kernels/cpu/build.py, loaded by its path: the package itself needs torch, which a build does not have."""
    path = root / SOURCES / "build.py"
    spec = importlib.util.spec_from_file_location("ambidex_cpu_build", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def platform_tag() -> str:
    """The interface is plain C, called through ctypes: any Python 3, this platform."""
    return "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


class NativeBuildHook(BuildHookInterface[Any]):
    """An editable install finds its library beside the sources; a wheel carries one compiled for it."""

    _scratch: tempfile.TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        builder = load_builder(Path(self.root))
        try:
            builder.find_compiler()
        except builder.CompilerMissing:
            return ["ziglang>=0.13"]
        return []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        library = self._compile(editable=version == "editable")
        if library is None or version == "editable":
            return
        build_data["force_include"][str(library)] = (SOURCES / library.name).as_posix()
        build_data["pure_python"] = False
        build_data["tag"] = platform_tag()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()

    def _compile(self, *, editable: bool) -> Path | None:
        root = Path(self.root)
        try:
            library: Path = load_builder(root).build(root / SOURCES if editable else self._scratch_folder())
        except (OSError, RuntimeError) as error:
            if os.environ.get("AMBIDEX_REQUIRE_NATIVE") == "1":
                raise
            print(f"ambidex: no C kernels in this build, torch's serve instead: {error}", file=sys.stderr)
            return None
        return library

    def _scratch_folder(self) -> Path:
        self._scratch = tempfile.TemporaryDirectory(prefix="ambidex-native-")
        return Path(self._scratch.name)
