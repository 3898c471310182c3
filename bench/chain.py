"""The four products of a decoder layer, chained: what decoding a batch costs without attention.

norm_linear (q, k, v), linear_add (out), gated_linear, linear_add (down), over layers whose weights together exceed
every cache, captured in one graph where the device captures. Each product reads what the one before it wrote: the
output's x are the first columns of q, k, v. (In a step of few rows the first product turns and stores, too: the op
norm_qkv_rope_store, with the same launches.) The time is a layer's; its share of R counts the bytes of the ops' costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..ops import discovery
from ..ops.binding import Binding, bind
from ..ops.bound import BoundSite
from ..ops.contract import Policy
from ..ops.layouts import ROW_MAJOR, dense
from ..ops.reference import ReferenceOps
from ..ops.support import bucket_of
from ..ops.tracing import Recorder
from ..ops.types import Layout, Site, Weight, Work, dtype_name
from .ceilings import Ceilings
from .operands import widened
from .ops import LIBRARY
from .stopwatch import Stopwatch
from .trials import Place, relative_error

_EPS = 1e-5
_TOLERANCE = 2.5e-2
"""Of a whole layer in 16 bits against float64: four roundings on top of one another."""


@dataclass(frozen=True)
class Shape:
    """A decoder layer on one device: hidden size, rows of q, k and v, of them q's, and the feed-forward width."""

    hidden: int
    qkv: int
    q: int
    intermediate: int

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        return {
            "norm": (self.hidden,), "qkv": (self.qkv, self.hidden), "out": (self.hidden, self.q),
            "gate_up": (2 * self.intermediate, self.hidden), "down": (self.hidden, self.intermediate),
        }  # fmt: skip


SHAPES = {
    "llama-3.1-8b": Shape(4096, 6144, 4096, 14336),
    "llama-3.1-70b-tp4": Shape(8192, 2560, 2048, 7168),
}
ROWS = (1, 8, 32)
Layer = Mapping[str, Weight]


def layer(ops: Any, x: torch.Tensor, weights: Layer, shape: Shape) -> torch.Tensor:
    """x [T, hidden] -> [T, hidden]."""
    qkv = ops.norm_linear(x, weights["norm"], weights["qkv"], eps=_EPS)
    x = ops.linear_add(qkv[:, : shape.q], weights["out"], x)
    inner = ops.gated_linear(x, weights["gate_up"], weights["norm"], eps=_EPS)
    return ops.linear_add(inner, weights["down"], x)


def sites(shape: Shape, dtype: torch.dtype) -> tuple[Site, ...]:
    recorder = Recorder(discovery.ops(), num_logits=-1)
    meta = {role: dense(role, torch.empty(size, dtype=dtype, device="meta")) for role, size in shape.weights.items()}
    layer(recorder, torch.empty((5, shape.hidden), dtype=dtype, device="meta"), meta, shape)
    return recorder.sites


class Chain:
    """One shape on one device."""

    def __init__(self, shape: Shape, dtype: torch.dtype, place: Place, watch: Stopwatch) -> None:
        self._shape, self._dtype, self._place, self._watch = shape, dtype, place, watch
        self._sites = sites(shape, dtype)
        self._drawn: tuple[Mapping[str, Layout], list[Layer]] | None = None

    def measure(self, num_rows: int, ceilings: Ceilings, choices: Mapping[str, str]) -> dict[str, Any]:
        """A layer's time with the kernels that a binding takes (or `choices`, as in a policy), and with a library's."""
        ours = self._bound(choices, discovery.kernels())
        libraries = {name: each for name, each in discovery.kernels().items() if each.language == LIBRARY}
        library = self._bound({}, libraries)
        cost_bytes = sum(self._cost(site, num_rows).num_bytes for site in self._sites)
        least = sum(ceilings.least_s(self._cost(site, num_rows)) for site in self._sites)
        found = self._timed(ours, num_rows)
        other = self._timed(library, num_rows)
        return {
            "rows": num_rows,
            "dtype": dtype_name(self._dtype),
            "kernels": dict(_served(ours.sites, num_rows)),
            **found,
            "gb_per_s": cost_bytes / found["time_us"] / 1e3,
            "read_share": cost_bytes / found["time_us"] / 1e3 / ceilings.read_gb_per_s,
            "roofline_share": least * 1e6 / found["time_us"],
            "library": dict(_served(library.sites, num_rows)),
            "library_us": other["time_us"],
            "times_library": other["time_us"] / found["time_us"],
        }

    def forget(self) -> None:
        """Gives the weights' memory back."""
        self._drawn = None

    def _bound(self, choices: Mapping[str, str], kernels: Mapping[str, Any]) -> Binding:
        policy = Policy(choices=choices)
        return bind(self._sites, self._place.profile, policy, missing=self._place.missing, kernels=kernels)

    def _cost(self, site: Site, num_rows: int) -> Any:
        return discovery.ops()[site.op].cost(site, Work(num_rows))

    def _timed(self, binding: Binding, num_rows: int) -> dict[str, Any]:
        """Median time of a layer, behind a check of one layer against the reference in float64."""
        layers = self._layers(binding.weight_layouts)
        generator = torch.Generator().manual_seed(num_rows)
        x = torch.randn((num_rows, self._shape.hidden), generator=generator).to(self._place.device, self._dtype)
        error = self._error(binding, x, layers[0])
        timed = self._watch.time([partial(self._run, binding.ops, x, layers)])
        samples = [seconds / len(layers) * 1e6 for seconds in timed.samples_s]
        return {"time_us": timed.median_s / len(layers) * 1e6, "min_us": min(samples), "num_layers": len(layers),
                "eager": timed.eager, "error": error}  # fmt: skip

    def _run(self, ops: Any, x: torch.Tensor, layers: list[Layer]) -> torch.Tensor:
        for weights in layers:
            x = layer(ops, x, weights, self._shape)
        return x

    def _error(self, binding: Binding, x: torch.Tensor, weights: Layer) -> float:
        wide = {role: widened(weight) for role, weight in weights.items()}
        wanted = layer(ReferenceOps(discovery.ops()), x.double(), wide, self._shape)
        error = relative_error(layer(binding.ops, x, weights, self._shape), wanted)
        if error > _TOLERANCE:
            raise AssertionError(f"a layer's error is {error:.2e} of the largest, {_TOLERANCE:.1e} is allowed")
        return error

    def _layers(self, layouts: Mapping[str, Layout]) -> list[Layer]:
        """Random weights, drawn on the device: as many layers as exceed the stopwatch's bytes. The last are kept."""
        if self._drawn is None or self._drawn[0] != layouts:
            self._drawn = None  # before others are drawn
            self._drawn = (layouts, self._draw(layouts))
        return self._drawn[1]

    def _draw(self, layouts: Mapping[str, Layout]) -> list[Layer]:
        num_bytes = sum(size[0] * (size[1] if len(size) > 1 else 1) for size in self._shape.weights.values())
        num_layers = self._watch.num_sets(num_bytes * self._dtype.itemsize, num_bytes * self._dtype.itemsize)
        generator = torch.Generator(self._place.device).manual_seed(0)
        draw: Callable[..., torch.Tensor] = partial(torch.randn, generator=generator, device=self._place.device)
        return [
            {role: self._weight(role, draw(size), layouts) for role, size in self._shape.weights.items()}
            for _ in range(num_layers)
        ]

    def _weight(self, role: str, values: torch.Tensor, layouts: Mapping[str, Layout]) -> Weight:
        scaled = 1.0 + 0.1 * values if values.ndim == 1 else values * values.shape[-1] ** -0.5
        return dense(role, scaled.to(self._dtype), layouts.get(role, ROW_MAJOR))


def _served(bound: tuple[BoundSite, ...], num_rows: int) -> list[tuple[str, str]]:
    """Who serves each site at so many rows; parts by their sites' names."""
    found: list[tuple[str, str]] = []
    for each in bound:
        bucket = bucket_of(num_rows, Policy())
        choice = next(choice for choice in each.choices if choice.bucket == bucket)
        found.append((each.site.name, choice.chosen))
        found += _served(each.parts, num_rows) if choice.chosen == "parts" else []
    return found
