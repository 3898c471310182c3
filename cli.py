"""The command `ambidex`: its sub-commands, and how each one ends. Exit codes: docs/cli.md.

Nothing heavy is imported here or when a command's options are read: `ambidex --help` answers without torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .commands.build_kernels import build_kernels
from .commands.calibrate import calibrate
from .commands.chat import chat
from .commands.devices import devices
from .commands.doctor import doctor
from .commands.explain import explain
from .commands.failures import INTERRUPTED, describe
from .commands.generate import generate
from .commands.host import host
from .commands.interference import interference
from .commands.latency import latency
from .commands.micro import micro
from .commands.ops import ops
from .commands.overload import overload
from .commands.plan import plan
from .commands.prefix import prefix
from .commands.profiles import profiles
from .commands.simulate import simulate
from .commands.step import step
from .commands.throughput import throughput
from .commands.tune import tune

# Plain help: rich's takes a third of the time that a command may take to answer.
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_ClickError: type[Exception] = typer.BadParameter.__mro__[2]
"""Base of what the parser raises for a command line that it cannot read."""


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        print(f"ambidex {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run large language models on every vendor's devices, explained and checked."""


@bench.callback()
def _bench() -> None:
    """Measure: how fast, how close to the roofline, next to whom."""


for command in (generate, chat, devices, profiles, explain, plan, simulate, calibrate, tune, doctor, build_kernels):
    app.command()(command)
for measurement in (latency, throughput, prefix, micro, ops, step, host, interference, overload):
    bench.command()(measurement)
app.add_typer(bench, name="bench")


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; the exit code. A failure is one line on standard error."""
    if os.environ.get("AMBIDEX_TRACEBACK"):
        return app(arguments, prog_name="ambidex", standalone_mode=False) or 0
    try:
        return app(arguments, prog_name="ambidex", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except _ClickError as error:
        return _refused(error)
    except Exception as error:  # noqa: BLE001  (the last resort: a user sees one line)
        line, code = describe(error)
        print(f"error: {line}", file=sys.stderr)
        return code


def _refused(error: Exception) -> int:
    """A command line that cannot be read: what is wrong with it, what was perhaps meant, where the help is."""
    context = getattr(error, "ctx", None)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(text)
        return 0
    possible = getattr(error, "possibilities", None)
    if possible:
        text = f"{getattr(error, 'message', text).rstrip('.')}; did you mean {' or '.join(sorted(possible))}?"
    help_at = f"{context.command_path if context else 'ambidex'} --help"
    print(f"error: {' '.join(text.split())} ({help_at} lists what there is)", file=sys.stderr)
    return 2


def main() -> None:
    code = run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone; what is left must not be written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
