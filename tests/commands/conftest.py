"""A small checkpoint, and commands that are asked for JSON, or to fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ambidex.bench.shapes import SHAPES, write_checkpoint
from ambidex.cli import run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(SHAPES["tiny"], folder)
    return folder


@pytest.fixture
def spoilt(model: Path, tmp_path: Path) -> Path:
    """A copy of the model to take apart."""
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The JSON that a command prints."""

    def asked(*arguments: str | Path) -> Any:
        assert run([str(each) for each in arguments] + ["--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return asked


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Exit code and message of a command that fails: one line, nothing on standard output."""

    def failed(*arguments: str | Path) -> tuple[int, str]:
        code = run([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return code, err

    return failed
