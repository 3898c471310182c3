"""Builds the library of CPU kernels from the C sources beside this file.

Only the standard library: the hatch build hook and developers without an environment run it. Any C11 compiler with
GNU vector extensions does (gcc >= 10, clang >= 12, `python -m ziglang cc`). Nothing is tuned to the building machine:
each function carries its own target, so one library serves every x86-64, and on other processors the generic path alone
is built. Run as a program, it builds into the folder named by its argument.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

LIBRARY_NAME = "libambidex_cpu.so"
SOURCES = (
    "machine.c", "pool.c", "calls.c", "pack.c", "rows.c", "linear.c", "attention.c", "sample.c", "draw.c", "amx.c",
    "avx512.c", "avx2.c", "generic.c",
)  # fmt: skip
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fPIC",
    "-pthread",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
)


class CompilerMissing(RuntimeError):
    """No C compiler was found; the message names the cure."""


class BuildFailed(RuntimeError):
    """The compiler refused; the message carries its last lines."""


def find_compiler() -> list[str]:
    """The command of a C compiler: $CC, then cc, gcc, clang, then zig from the `ziglang` package."""
    if named := shlex.split(os.environ.get("CC", "")):
        return named
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise CompilerMissing("no C compiler found: install gcc or clang, set CC, or `pip install ziglang`")


def compiler_flags(command: list[str]) -> list[str]:
    """FLAGS, and for zig a baseline target: it would otherwise tune to the building machine and its C library."""
    if "ziglang" not in command and Path(command[0]).name != "zig":
        return list(FLAGS)
    machine = platform.machine()
    baseline = "x86_64" if machine == "x86_64" else "baseline"
    return [*FLAGS, "-target", f"{machine}-linux-gnu.2.28", f"-mcpu={baseline}", "-fno-sanitize=undefined"]


def build(out_dir: str | Path, compiler: str | None = None, defines: tuple[str, ...] = ()) -> Path:
    """Compiles the library into `out_dir` and returns its path.

    `compiler` is a command line such as "clang" or "zig cc"; `defines` are macros such as "AMBIDEX_EMULATE_AMX".
    Raises CompilerMissing or BuildFailed. An existing library is replaced in one step: a running process
    keeps its own.
    """
    command = shlex.split(compiler) if compiler else find_compiler()
    folder = Path(__file__).resolve().parent
    target = Path(out_dir) / LIBRARY_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    sources = [str(folder / name) for name in SOURCES]
    macros = [f"-D{name}" for name in defines]
    line = [*command, *compiler_flags(command), *macros, "-o", str(partial), *sources, "-lm"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompilerMissing(f"cannot run the C compiler {command[0]!r}: {error.strerror}") from error
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        raise BuildFailed(f"{command[0]} failed with {done.returncode}: " + "\n".join(done.stderr.splitlines()[-20:]))
    partial.replace(target)
    return target


if __name__ == "__main__":
    print(build(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent))
