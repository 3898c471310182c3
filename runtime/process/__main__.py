"""`python -m ambidex.runtime.process`: an engine behind the socket on which its parent has begun to listen.

SIGTERM: once loaded, drain, then exit 0; before that, at once. Ctrl-C is the parent's to act on. Exit codes: those of
the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .connections import Connections
from .server import Loaded, Report, Server, cause, exit_code


def main(load: Callable[[dict[str, Any], Report], Loaded] | None = None) -> int:
    """load: makes an engine of the options; None: `loading.load`, which brings torch."""
    arguments = _arguments()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(fileno=arguments.listener)
    address = Path(listener.getsockname())
    server = Server(
        Connections(listener), grace_s=arguments.grace_s,
        is_orphan=lambda: os.getppid() != arguments.parent, leave=lambda: _leave(address),
    )  # fmt: skip

    def ready(report: Report) -> Loaded:
        report("importing", 0.0)
        if load is None:
            from .loading import load as load_model
        loaded = (load or load_model)(json.loads(arguments.options), report)
        signal.signal(signal.SIGTERM, lambda *_: server.drain())
        return loaded

    try:
        server.run(ready)
    except Exception as error:  # noqa: BLE001  (the last resort: clients were told, the log gets what is a fault here)
        if not hasattr(error, "exit_code"):
            traceback.print_exc()
        print(f"error: {cause(error)}", file=sys.stderr)
        return exit_code(error)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ambidex.runtime.process", description=__doc__)
    parser.add_argument("--listener", type=int, required=True, metavar="FD", help="a unix socket that listens")
    parser.add_argument("--options", required=True, metavar="JSON", help="the engine's options")
    parser.add_argument("--grace-s", type=float, required=True, help="how long requests may go on after SIGTERM")
    parser.add_argument("--parent", type=int, required=True, metavar="PID", help="when it has died, this process ends")
    return parser.parse_args()


def _leave(address: Path) -> None:
    """Ends this process at once, in whatever its other threads are, and removes what its parent has left behind."""
    with suppress(OSError):
        address.unlink()
        address.parent.rmdir()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
