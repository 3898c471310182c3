"""What a failure looks like at the command line: one line on standard error and an exit code.

Errors that are the user's to mend carry their cause and cure; what is not there to import is named with its cure;
anything else is a fault of Ambidex and says so. Python's traceback is shown where AMBIDEX_TRACEBACK is set.
"""

from __future__ import annotations

EXIT_CODES = {
    "UsageError": 2,
    "ModelNotFound": 3,
    "CheckpointRefused": 4,
    "CheckpointCorrupt": 5,
    "ConfigError": 6,
    "OutOfMemory": 7,
    "RequestError": 8,
    "BindingError": 9,
    "ProfileError": 10,
    "DeviceError": 11,
    "BackendError": 11,
    "MissingPackage": 12,
    "QueueFull": 14,
    "CompilationForbidden": 15,
    "NotCompiled": 16,
    "EngineDied": 13,
}
"""By the name of the class: to import the classes would load torch. `docs/cli.md` explains the codes."""

INTERRUPTED = 130
_EXTRA = "pip install 'ambidex[cpu]' (or [cuda], [rocm]: README.md says which torch)"
_CURES = {
    "torch": _EXTRA,
    "triton": "pip install triton",
    "matplotlib": "pip install 'ambidex[plot]', or leave out --plot",
}


class MissingPackage(RuntimeError):
    """A package that a command needs is not installed."""


def missing_package(name: str) -> MissingPackage:
    return MissingPackage(f"{name} is not installed; {_CURES.get(name, f'pip install {name}')}")


def describe(error: BaseException) -> tuple[str, int]:
    """The line (without "error: ") and the exit code of a failure."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("ambidex"):
        error = missing_package(error.name.partition(".")[0])
    for kind in type(error).__mro__:
        code = getattr(error, "exit_code", None) or EXIT_CODES.get(kind.__name__)
        if code:
            return _one_line(error), code
    about = f"{type(error).__name__}: {_one_line(error)}"
    return f"{about}; a fault of ambidex: set AMBIDEX_TRACEBACK=1 to see where, and report it", 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
