"""Small line charts as SVG text, for a page that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 260, 64, 40, 28
_COLOURS = ("#1f6feb", "#d1571e", "#2c8a4b", "#8250df", "#9a6700", "#57606a")
_TICKS = 5

Points = Sequence[tuple[float, float]]


def lines(title: str, series: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """A line a series, both axes from 0, the same colours in the same order."""
    drawn = {name: points for name, points in series.items() if points}
    most_x = max((x for points in drawn.values() for x, _ in points), default=0.0) or 1.0
    most_y = 1.08 * max((y for points in drawn.values() for _, y in points), default=0.0) or 1.0
    parts = [_axes(title, x_label, y_label, most_x, most_y)]
    for index, (name, points) in enumerate(drawn.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{_x(x, most_x):.1f},{_y(y, most_y):.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>')
        parts.append(f'<text x="{_LEFT + 8}" y="{_TOP + 14 * (index + 1)}" fill="{colour}">{escape(name)}</text>')
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-size="11" font-family="sans-serif">{"".join(parts)}</svg>'


def _x(value: float, most: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - 12) * value / most


def _y(value: float, most: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / most


def _axes(title: str, x_label: str, y_label: str, most_x: float, most_y: float) -> str:
    parts = [f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(title)}</text>']
    for tick in range(_TICKS + 1):
        x, y = most_x * tick / _TICKS, most_y * tick / _TICKS
        at = _y(y, most_y)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 12}" y1="{at:.1f}" y2="{at:.1f}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.3g}</text>')
        parts.append(f'<text x="{_x(x, most_x):.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{x:.3g}</text>')
    parts.append(f'<text x="{_WIDTH - 12}" y="{_HEIGHT - 6}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text x="4" y="{_TOP - 2}" fill="#57606a">{escape(y_label)}</text>')
    return "".join(parts)
