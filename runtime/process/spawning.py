"""A process of its own for an engine, and the socket on which it is reached, in a folder that only this user enters."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError

# -P: what lies in the current folder is not imported in place of what is installed.
COMMAND = (sys.executable, "-P", "-m", "ambidex.runtime.process")


@dataclass(frozen=True)
class Spawned:
    process: subprocess.Popen[bytes]
    address: Path


def spawn(command: Sequence[str], options: Mapping[str, Any], grace_s: float) -> Spawned:
    """Starts the process behind a socket that listens already: to connect needs no waiting and no retrying.

    ConfigError: options that are no plain values, or a temporary folder whose name is too long for a socket.
    """
    try:
        text = json.dumps(dict(options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the engine's options are plain values: {error}") from None
    folder = Path(tempfile.mkdtemp(prefix="ambidex-"))
    try:
        with _listener(folder / "engine") as listener:
            arguments = ["--listener", str(listener.fileno()), "--options", text]
            arguments += ["--grace-s", str(grace_s), "--parent", str(os.getpid())]
            process = subprocess.Popen(
                [*command, *arguments],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
            )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Spawned(process, folder / "engine")


def _listener(address: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(address))
    except OSError as error:
        listener.close()
        raise ConfigError(f"{address} cannot be a socket ({error}): set TMPDIR to a folder with a short name") from None
    address.chmod(0o600)
    listener.listen(64)
    return listener
