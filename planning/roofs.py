"""A deployment's sites on its device's roofline: of each the bytes, the operations and the time that a step gives it.

The times are those that `step_time` adds up (a test holds the two together), without launches, links and the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ops.types import Site
from .charts import Axis, Chart, Series
from .deployment import Deployment
from .efficiency import Kind, ceilings
from .step_time import Integers, attention_load, kinds, product_seconds, wide_rate, window_of
from .work import has_layer_weight, planned_coefficients

_LABELLED_SHARE = 0.02
_MARGIN = 4.0
_GREYS = (7, 15)
"""Colours of roofs: whole and dashed."""


@dataclass(frozen=True)
class SitePoint:
    """One site in a step, over all its layers, on one device."""

    name: str
    num_bytes: float
    operations: float
    seconds: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.num_bytes

    @property
    def tflops(self) -> float:
        return self.operations / self.seconds / 1e12


def site_points(deployment: Deployment, first: Integers, count: Integers, num_logits: int) -> list[SitePoint]:
    """The sites of one step whose spans all decode (a token each) or all read prompts."""
    return [_point(deployment, site, first, count, num_logits) for site in deployment.part.sites]


def _point(deployment: Deployment, site: Site, first: Integers, count: Integers, num_logits: int) -> SitePoint:
    efficiency, kind = deployment.efficiency, _kind(site, count)
    rows, num_logits = deployment.step_time.prompt_graph(count) or (int(count.sum()), num_logits)
    moved, done, keys_a_row = _work(deployment, site, first, count, rows, num_logits)
    bytes_per_s, operations_per_s = ceilings(deployment.profile, _rate(deployment, site))
    moving, multiplying = moved / bytes_per_s, done / operations_per_s
    if kind == "product":
        seconds = float(product_seconds(efficiency, np.array(moving), np.array(multiplying), rows))
    else:
        seconds = max(moving, multiplying) / efficiency.curves[kind].at(rows if kind == "other" else keys_a_row)
    if kind == "decode_attention":
        seconds += efficiency.beside_reading * multiplying
    return SitePoint(_short(site), moved, done, seconds)


def _kind(site: Site, count: Integers) -> Kind:
    found = kinds((site,))[site.name]
    return "prompt_attention" if found == "decode_attention" and (count > 1).any() else found


def _rate(deployment: Deployment, site: Site) -> str:
    precision = deployment.precision
    return precision.rate if has_layer_weight(site) else wide_rate(deployment.profile, precision)


def _work(
    deployment: Deployment, site: Site, first: Integers, count: Integers, rows: int, num_logits: int
) -> tuple[float, float, float]:
    """Bytes, operations, and keys that a row sees. rows: with those of the padding, which attention passes over."""
    num_bytes, operations = (each[0] for each in planned_coefficients([site], deployment.precision))
    load, keys_a_row = attention_load(first, count, window_of(site))
    if "attention" not in kinds((site,))[site.name]:
        load = (1, rows, len(count), 0, 0, num_logits)
    return float(num_bytes @ load), float(operations @ load), keys_a_row


def _short(site: Site) -> str:
    """qkv, mlp, attention: the place in a layer where it tells, else the op."""
    role = site.weights[0].role if site.weights else site.op
    return role.removeprefix("layers.*.")


def roofline_chart(deployment: Deployment, batch: int, context: int, prompt_tokens: int) -> Chart:
    """Bandwidth and rates as lines, the sites of a decode step and of a step that reads a prompt as points."""
    ones = np.ones(batch, dtype=np.int64)
    decode = site_points(deployment, np.full(batch, context - 1), ones, batch)
    reading = site_points(deployment, np.zeros(1, dtype=np.int64), np.array([prompt_tokens]), 1)
    places = [each.intensity for each in (*decode, *reading) if each.operations]
    ends = min(places) / _MARGIN, max(places) * _MARGIN
    roofs = [_roof(deployment, rate, ends, colour) for rate, colour in zip(_rates(deployment), _GREYS, strict=False)]
    points = [
        _sites(f"decode, {batch:,} requests at {context:,} tokens", decode, 1),
        _sites(f"prompt, {prompt_tokens:,} tokens", reading, 2),
    ]
    title = f"Roofline of {deployment.name}, each device"
    return Chart(title, Axis("operations a byte", is_log=True), Axis("TFLOP/s", is_log=True), [*roofs, *points],
                 height=440)  # fmt: skip


def _rates(deployment: Deployment) -> list[str]:
    return list(dict.fromkeys((deployment.precision.rate, wide_rate(deployment.profile, deployment.precision))))


def _roof(deployment: Deployment, rate: str, ends: tuple[float, float], colour: int) -> Series:
    bytes_per_s, operations_per_s = ceilings(deployment.profile, rate)
    corners = sorted({*ends, operations_per_s / bytes_per_s})
    name = f"{bytes_per_s / 1e12:.3g} TB/s, {rate} {operations_per_s / 1e12:,.0f} TFLOP/s"
    heights = [(at, min(at * bytes_per_s, operations_per_s) / 1e12) for at in corners]
    return Series(name, heights, has_marks=False, colour=colour)


def _sites(name: str, points: list[SitePoint], colour: int) -> Series:
    whole = sum(each.seconds for each in points)
    drawn = [each for each in points if each.operations]
    labels = [each.name if each.seconds >= _LABELLED_SHARE * whole else "" for each in drawn]
    return Series(name, [(each.intensity, each.tflops) for each in drawn], has_line=False, labels=labels, colour=colour)
