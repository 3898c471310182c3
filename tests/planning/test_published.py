"""Published figures: read strictly, predicted with the defaults alone, within what the project asks of itself."""

from pathlib import Path

import pytest
from ambidex.planning.published import FILE, compare, mean_ratio, read_figures
from ambidex.runtime.errors import ConfigError


def test_the_mean_and_every_row() -> None:
    found = compare(read_figures().rows)
    assert len(found) == 65
    assert 0.85 <= mean_ratio(found) <= 1.15
    for each in found:
        assert (each.figure.explanation is not None) == each.is_far, each
    assert [(each.figure.params, each.figure.devices) for each in found if each.is_far] == [("405B", 4), ("70B", 2)]
    vendors = {each.figure.profile.partition("-")[0] for each in found}
    assert vendors == {"nvidia", "amd"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("devices: 2,", "devices: two,", r"rows\.\d+\.devices"),
        ("devices: 2,", "", r"rows\.\d+\.devices: Field required"),
        ("devices: 2,", "devices: 2, watts: 3,", r"rows\.\d+\.watts: Extra inputs"),
        ("tokens_per_s: 2000", "tokens_per_s: -2000", r"tokens_per_s: Input should be greater than 0"),
        ("{source: article,", "{source: rumour,", "no source is called rumour"),
        ("sources:", "sources: [", "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_in_a_line(old: str, new: str, words: str, tmp_path: Path) -> None:
    text = FILE.read_text("utf-8")
    assert old in text
    path = tmp_path / "published.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        read_figures(path)
    assert "\n" not in str(caught.value)
