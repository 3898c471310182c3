"""The scripted engine, for tests in this process and as a command for those of another."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_PATH = Path(__file__).with_name("scripted.py")


@pytest.fixture(scope="session")
def scripted() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scripted_engine", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["scripted_engine"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def scripted_command() -> list[str]:
    return [sys.executable, str(_PATH)]
