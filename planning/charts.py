"""Line and point charts as SVG text: nothing to install, nothing to load, the same bytes for the same values.

A chart is a value; `svg` draws it. Every text in it is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

Point = tuple[float, float]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5195", "#b58900", "#56b4e9", "#444444")
"""Told apart by most eyes, after Okabe and Ito (2008); beyond them dashes."""
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 14, 46
_LEGEND_ROW, _FONT = 17, 12
_TEXT_WIDTH = 6.8
"""Of a character, in pixels, on average."""
_LEAST_RANGE = 1e-100


@dataclass(frozen=True)
class Axis:
    """least, most: the range; None: that of the values."""

    label: str
    is_log: bool = False
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Series:
    """labels: beside the points, as many as there are points, or none; an empty one is not drawn. colour: of
    `_COLOURS`; None: the next."""

    name: str
    points: Sequence[Point]
    has_line: bool = True
    has_marks: bool = True
    labels: Sequence[str] = ()
    colour: int | None = None


@dataclass(frozen=True)
class Chart:
    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    width: int = 760
    height: int = 380


@dataclass(frozen=True)
class _Scale:
    """Values to pixels, from `start` to `end`."""

    axis: Axis
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        low, high, here = (self._flat(each) for each in (self.low, self.high, value))
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def _flat(self, value: float) -> float:
        return math.log10(value) if self.axis.is_log else value

    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.axis.is_log else _ticks(self.low, self.high)


def svg(chart: Chart) -> str:
    """The chart as one `<svg>` element. Points that have no place (not finite, or not above 0 on a log axis) are left
    out; without any point the chart says so."""
    series = [_drawable(each, index, chart) for index, each in enumerate(chart.series)]
    points = [point for each in series for point in each.points]
    if not points:
        return f'<p class="empty">{escape(chart.title)}: nothing to draw</p>'
    legend = [each for each in series if each.name]
    rows, columns = _legend_shape(legend, chart.width)
    height = chart.height + rows * _LEGEND_ROW
    x = _scale(chart.x, [at for at, _ in points], _LEFT, chart.width - _RIGHT)
    y = _scale(chart.y, [at for _, at in points], chart.height - _BOTTOM, _TOP)
    parts = [*_frame(chart, x, y), *_lines(series, x, y), *_labels(series, x, y, chart.width - _RIGHT),
             *_legend(legend, columns, chart)]  # fmt: skip
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {chart.width} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="{_FONT}"><title>{escape(chart.title)}</title>'
    )
    return "\n".join([head, *parts, "</svg>"])


def _drawable(series: Series, index: int, chart: Chart) -> Series:
    """The series with its colour, without the points that have no place."""

    def has_place(point: Point) -> bool:
        pairs = zip(point, (chart.x, chart.y), strict=True)
        return all(math.isfinite(value) and (value > 0 or not axis.is_log) for value, axis in pairs)

    kept = [index for index, point in enumerate(series.points) if has_place(point)]
    labels = [series.labels[index] for index in kept] if series.labels else ()
    colour = index if series.colour is None else series.colour
    return replace(series, points=[series.points[index] for index in kept], labels=labels, colour=colour)


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> _Scale:
    low = min(values) if axis.least is None else axis.least
    high = max(values) if axis.most is None else axis.most
    if axis.is_log:
        low, high = (low / 1.25, high * 1.25) if axis.least is None else (low, high)
        high = max(high, low * 2)
    else:
        low = min(low, 0.0) if axis.least is None else low
        high = max(high, 0.0) if axis.most is None else high
        high = high if high - low > _LEAST_RANGE else low + 1.0
        high += 0.04 * (high - low) if axis.most is None else 0.0
    return _Scale(axis, low, high, start, end)


def _ticks(low: float, high: float) -> list[float]:
    """From four to eight round numbers."""
    raw = (high - low) / 8
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= raw)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; between few of them also their double and their five-fold."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    return [at for each in decades for factor in factors if low <= (at := factor * 10.0**each) <= high]


def short(value: float) -> str:
    """A tick's number: 0.02, 5, 20k, 3M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.3g}"


def _frame(chart: Chart, x: _Scale, y: _Scale) -> Iterator[str]:
    for at in x.ticks():
        place = f"{x.at(at):.1f}"
        yield f'<line x1="{place}" x2="{place}" y1="{y.end}" y2="{y.start}" stroke="#e4e4e4"/>'
        yield f'<text x="{place}" y="{y.start + 16}" text-anchor="middle" fill="#444">{short(at)}</text>'
    for at in y.ticks():
        height = y.at(at)
        yield f'<line x1="{x.start}" x2="{x.end}" y1="{height:.1f}" y2="{height:.1f}" stroke="#e4e4e4"/>'
        yield f'<text x="{x.start - 6}" y="{height + 4:.1f}" text-anchor="end" fill="#444">{short(at)}</text>'
    yield f'<path d="M{x.start} {y.end}V{y.start}H{x.end}" fill="none" stroke="#888"/>'
    middle = (x.start + x.end) / 2
    yield f'<text x="{middle}" y="{y.start + 36}" text-anchor="middle" fill="#222">{escape(chart.x.label)}</text>'
    across = (y.start + y.end) / 2
    turned = f'transform="translate(14 {across}) rotate(-90)"'
    yield f'<text {turned} text-anchor="middle" fill="#222">{escape(chart.y.label)}</text>'


def _style(series: Series) -> tuple[str, str]:
    """Colour and dashes."""
    number = series.colour or 0
    return _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]


def _lines(series: Sequence[Series], x: _Scale, y: _Scale) -> Iterator[str]:
    for each in series:
        colour, dashes = _style(each)
        places = [f"{x.at(a):.1f} {y.at(b):.1f}" for a, b in each.points]
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        if each.has_line and len(places) > 1:
            path = "M" + "L".join(places)
            yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashed}/>'
        if each.has_marks:
            for place, point in zip(places, each.points, strict=True):
                cx, cy = place.split()
                hint = escape(f"{each.name} {short(point[0])}, {short(point[1])}".strip())
                yield f'<circle cx="{cx}" cy="{cy}" r="3.2" fill="{colour}"><title>{hint}</title></circle>'


def _labels(series: Sequence[Series], x: _Scale, y: _Scale, right: float) -> Iterator[str]:
    """Each beside its point, moved down past those that lie there already."""
    taken: list[tuple[float, float, float]] = []
    for each in series:
        for text, (a, b) in zip(each.labels, each.points, strict=False):
            if not text:
                continue
            wide = _TEXT_WIDTH * len(text)
            left = x.at(a) + 7 if x.at(a) + 7 + wide <= right else x.at(a) - 7 - wide
            place = y.at(b) + 4
            while any(abs(place - used) < _FONT and left < to and at < left + wide for used, at, to in taken):
                place += _FONT / 2
            taken.append((place, left, left + wide))
            colour = _style(each)[0]
            yield f'<text x="{left:.1f}" y="{place:.1f}" font-size="11" fill="{colour}">{escape(text)}</text>'


def _legend_shape(series: Sequence[Series], width: int) -> tuple[int, int]:
    """Rows and columns of the legend below the chart."""
    if not series:
        return 0, 1
    widest = 34 + _TEXT_WIDTH * max(len(each.name) for each in series)
    columns = max(1, min(len(series), int((width - _LEFT) // widest)))
    return -(-len(series) // columns), columns


def _legend(series: Sequence[Series], columns: int, chart: Chart) -> Iterator[str]:
    wide = (chart.width - _LEFT) / columns
    for index, each in enumerate(series):
        left, top = _LEFT + index % columns * wide, chart.height + 6 + index // columns * _LEGEND_ROW
        colour, dashes = _style(each)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        ends = f'x1="{left:.1f}" x2="{left + 22:.1f}" y1="{top}" y2="{top}"'
        if each.has_line:
            yield f'<line {ends} stroke="{colour}" stroke-width="2.4"{dashed}/>'
        if each.has_marks:
            yield f'<circle cx="{left + 11:.1f}" cy="{top}" r="3.2" fill="{colour}"/>'
        yield f'<text x="{left + 28:.1f}" y="{top + 4}" fill="#222">{escape(each.name)}</text>'
