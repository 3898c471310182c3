"""Reports: well-formed, self-contained, harmless whatever a model is called; plots that show every point once."""

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from ambidex.planning.charts import Axis, Chart, Series, short, svg
from ambidex.planning.report import Section, page
from hypothesis import given
from hypothesis import strategies as st

EVIL = "<script>alert('1')</script>&\"'"
VOID = {"meta"}
SVG = "{http://www.w3.org/2000/svg}"
numbers = st.floats(-1e90, 1e90).filter(lambda value: not 0 < abs(value) < 1e-90) | st.sampled_from(
    [float("nan"), float("inf"), -float("inf")]
)


class Elements(HTMLParser):
    """Which elements and attributes there are; every one that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Elements:
    elements = Elements()
    elements.feed(text)
    elements.close()
    assert elements.open == []
    return elements


def chart(*series: Series, is_log: bool = False) -> Chart:
    return Chart("t", Axis("x", is_log=is_log), Axis("y", is_log=is_log), series)


def test_what_a_model_is_called_is_text() -> None:
    plot = Chart(EVIL, Axis(EVIL), Axis(EVIL), [Series(EVIL, [(1, 2)], labels=[EVIL])])
    section = Section(EVIL, EVIL, [(EVIL, EVIL)], [plot], [EVIL, "n"], [[EVIL, "1"]], EVIL)
    text = page(EVIL, [section], EVIL)
    elements = read(text)
    assert "script" not in elements.seen
    assert not any(name.startswith("on") for name, _ in elements.attributes)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 12


def test_nothing_is_loaded_from_elsewhere() -> None:
    elements = read(page("t", [Section("s", charts=[chart(Series("a", [(1, 2), (2, 3)]))])]))
    assert not {"script", "link", "img", "iframe", "object"} & set(elements.seen)
    assert not any(name in ("src", "href", "xlink:href", "action") for name, _ in elements.attributes)
    policies = [value for name, value in elements.attributes if name == "content" and "default-src" in (value or "")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_a_table_has_its_rows_and_numbers_stand_to_the_right() -> None:
    text = page("t", [Section("s", header=("name", "n"), rows=[("a", "1,000"), ("b", "–")])])
    assert text.count("<tr>") == 3
    assert text.count('<td class="number">') == 2
    assert text.count('<th class="number">') == 1


def test_a_chart_draws_every_point_in_its_frame() -> None:
    points = [(float(x), float(x * x)) for x in range(1, 20)]
    root = ElementTree.fromstring(svg(chart(Series("a", points), Series("b", points[:3], has_line=False))))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    circles = root.findall(f"{SVG}circle")
    assert len(circles) == 19 + 3 + 2, "points and the marks of the legend"
    assert all(0 <= float(each.attrib["cx"]) <= width and 0 <= float(each.attrib["cy"]) <= height for each in circles)
    xs = [float(each.attrib["cx"]) for each in circles[:19]]
    ys = [float(each.attrib["cy"]) for each in circles[:19]]
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True), "upward is less"


def test_decades_are_equally_far_apart() -> None:
    root = ElementTree.fromstring(svg(chart(Series("", [(1, 1), (10, 10), (100, 100)]), is_log=True)))
    xs = [float(each.attrib["cx"]) for each in root.findall(f"{SVG}circle")]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)


@given(st.lists(st.tuples(numbers, numbers), max_size=20), st.booleans())
def test_any_numbers_give_a_well_formed_chart(points: list[tuple[float, float]], is_log: bool) -> None:
    text = svg(chart(Series("a", points), is_log=is_log))
    assert "nan" not in text
    assert "inf" not in text
    read(text)


def test_labels_do_not_lie_on_one_another() -> None:
    series = Series("a", [(1, 1), (1.001, 1), (1.002, 1)], labels=["first", "second", "third"])
    root = ElementTree.fromstring(svg(chart(series, Series("b", [(2, 5)]))))
    places = [float(each.attrib["y"]) for each in root.findall(f"{SVG}text") if each.text in series.labels]
    assert len(places) == 3
    assert min(abs(a - b) for a in places for b in places if a != b) >= 11
    assert len(set(places)) == 3


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.02, "0.02"), (5, "5"), (1500, "1.5k"), (2e6, "2M"), (3e9, "3G"), (4e12, "4T")]
)
def test_a_tick_is_short(value: float, text: str) -> None:
    assert short(value) == text


def test_the_same_values_give_the_same_page() -> None:
    section = Section("s", charts=[chart(Series("a", [(1, 2), (3, 1)]))])
    assert page("t", [section]) == page("t", [section])
