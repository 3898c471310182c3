"""A report as one HTML page that needs nothing else: no network, no script; its style and its plots lie in it.

Every text is escaped by the template's engine: a model's name is foreign input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from .charts import Chart, svg

_TEMPLATE = Path(__file__).with_suffix(".html")


@dataclass(frozen=True)
class Section:
    """A heading and what lies under it, in this order. header: of the table; columns whose cells are numbers are set to
    the right. facts: pairs of a name and its value."""

    title: str
    text: str = ""
    facts: Sequence[tuple[str, str]] = ()
    charts: Sequence[Chart] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""


def page(title: str, sections: Sequence[Section], about: str = "") -> str:
    """The page. about: a line below the title: of what, when, by which version."""
    template = _environment().from_string(_TEMPLATE.read_text("utf-8"))
    return template.render(title=title, sections=sections, about=about)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = lambda chart: Markup(svg(chart))  # charts.py escapes its texts
    environment.tests["figure"] = _is_figure
    return environment


def _is_figure(cell: str) -> bool:
    return cell in ("", "–") or cell[0] in "+-−≤≥0123456789"
