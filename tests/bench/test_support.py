"""The support matrix in the docs is what the predicates say."""

from pathlib import Path

import pytest
from ambidex.bench.support import main, page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make support"


def test_the_check_sees_another_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "support.md"
    assert main(path, "--check") == 1
    assert "make support" in capsys.readouterr().out
    main(path)
    assert main(path, "--check") == 0
    path.write_text(path.read_text(encoding="utf-8").replace("bf16", "f8", 1), encoding="utf-8")
    assert main(path, "--check") == 1
