"""Where the embedded model lies: inside the package, so that every installation has one."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder of the embedded checkpoint, in Hugging Face layout."""
    return Path(__file__).resolve().parent
