"""How long a step takes on a profile: the sites' own costs over what is reached of the device's ceilings.

Of each site max(bytes / bandwidth, operations / rate) over its kind's share (`efficiency.py`), and a launch for each
call; then the collectives of a sharded model, and the host. Sites are rows of coefficients (`ops.step_cost`), repeated
layers are one row times their number, so a step costs some twenty microseconds of host time whatever the model.

A step's spans compute count[i] tokens behind first[i] stored ones. A span of one token is decoding; the others are
prompts, which attention treats apart. What a graph computes in vain counts, but in attention: there it is masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import mul

import numpy as np
from numpy.typing import NDArray

from ..hwprofiles.schema import Profile
from ..ops.step_cost import load_coefficients
from ..ops.types import Site
from ..runtime.execute.prompts import PromptSizes
from .efficiency import KINDS, Efficiency, Kind, ceilings
from .links import Collectives
from .precision import Precision
from .work import has_layer_weight, planned_coefficients

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]

_KEPT_SIZES = 1 << 14


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a step by what sets them; `bandwidth` and `compute` over the sites that they bound."""

    bandwidth: float
    compute: float
    launch: float
    link: float
    host: float
    is_host_hidden: bool

    @property
    def device_s(self) -> float:
        return self.bandwidth + self.compute + self.launch + self.link

    @property
    def seconds(self) -> float:
        return max(self.device_s, self.host) if self.is_host_hidden else self.device_s + self.host

    @property
    def limit(self) -> str:
        """What takes most of it."""
        if self.is_host_hidden and self.host > self.device_s:
            return "host"
        return max(("bandwidth", "compute", "launch", "link"), key=lambda name: getattr(self, name))


@dataclass(frozen=True)
class Ideal:
    """What a kind of work takes at the ceilings. axis: its place on the kind's curve (of products the rows). calls: how
    many make it up. bytes_s, operations_s: what its bytes, and its operations, take alone."""

    seconds: float
    axis: float
    calls: int
    bytes_s: float = 0.0
    operations_s: float = 0.0


@dataclass(frozen=True)
class _Sites:
    """Sites of one kind: seconds at the ceilings, [sites, 6] by factor of `Load.vector`."""

    moving: Reals
    multiplying: Reals

    def at(self, load: Reals) -> tuple[Reals, Reals]:
        return self.moving @ load, self.multiplying @ load


class _Linear:
    """Seconds that are linear in the load: the sites of one kind taken together, in plain numbers."""

    def __init__(self, coefficients: Reals) -> None:
        self._coefficients = tuple(coefficients.sum(axis=0).tolist())

    def __call__(self, load: Sequence[float]) -> float:
        return sum(map(mul, self._coefficients, load))


@dataclass(frozen=True)
class _Attention:
    moving: _Linear
    multiplying: _Linear


class StepTime:
    """sites: of one rank. Their weights lie in 16 bits, those of the layers in `precision`'s bits. prompt_sizes: of the
    graphs that steps with prompts are padded to; other such steps are called, which takes the host longer."""

    def __init__(
        self,
        sites: tuple[Site, ...],
        profile: Profile,
        precision: Precision,
        efficiency: Efficiency,
        collectives: Collectives | None = None,
        prompt_sizes: PromptSizes | None = None,
    ) -> None:
        self._efficiency, self._collectives = efficiency, collectives
        self._prompt_sizes = prompt_sizes or PromptSizes()
        self._beside_attention = lru_cache(maxsize=_KEPT_SIZES)(self._beside)
        self._is_host_hidden = profile.memory.kind != "dram"
        bytes_per_s, operations_per_s = ceilings(profile, precision.rate)
        _, operations_per_s_16 = ceilings(profile, wide_rate(profile, precision))
        num_bytes, operations = planned_coefficients(sites, precision)
        is_layer = np.array([has_layer_weight(site) for site in sites])
        found = np.array([_kind(site, each) for site, each in zip(sites, operations, strict=True)])
        has_weights, is_attention = found == "product", found == "decode_attention"
        rates = np.where(is_layer, operations_per_s, operations_per_s_16)[:, None]
        moving, multiplying = num_bytes / bytes_per_s, operations / rates

        def of(chosen: NDArray[np.bool_]) -> _Sites:
            return _Sites(moving[chosen], multiplying[chosen])

        self._products, self._others = of(has_weights), of(~has_weights & ~is_attention)
        windows = sorted({window_of(site) for site, attends in zip(sites, is_attention, strict=True) if attends})
        of_window = np.array([window_of(site) for site in sites])
        self._attention = {
            window: _Attention(_Linear(moving[chosen]), _Linear(multiplying[chosen]))
            for window in windows
            if len(chosen := np.flatnonzero(is_attention & (of_window == window)))
        }
        layers = np.array([site.num_layers for site in sites])
        by_kind = (has_weights, is_attention, is_attention, ~has_weights & ~is_attention)
        self._calls = {kind: int(layers[each].sum()) for kind, each in zip(KINDS, by_kind, strict=True)}
        self._launch_s = {kind: 1e-6 * self._calls[kind] * efficiency.launch_us[kind] for kind in KINDS}
        self._eager_s = 1e-6 * efficiency.eager_us * float(layers.sum())

    def seconds(self, first: Integers, count: Integers, num_logits: int) -> float:
        """Of one step; arrays of one length, a span each."""
        return self.breakdown(first, count, num_logits).seconds

    def prompt_graph(self, count: Integers) -> tuple[int, int] | None:
        """Of the graph that replays a step with a prompt: tokens, and rows of logits. None: no prompt, or no graph."""
        return None if (count == 1).all() else self._prompt_sizes.serving(int(count.sum()), len(count))

    def _beside(self, rows: int, spans: int, num_logits: int) -> tuple[float, float, float]:
        """Seconds bound by bandwidth, by compute and by links, without attention: what depends on three sizes only."""
        curves = self._efficiency.curves
        load = np.array([1, rows, spans, 0, 0, num_logits], dtype=np.float64)
        moving, multiplying = self._products.at(load)
        took = product_seconds(self._efficiency, moving, multiplying, rows)
        is_compute = multiplying > moving
        bandwidth, compute = float(took[~is_compute].sum()), float(took[is_compute].sum())
        bandwidth += float(np.maximum(*self._others.at(load)).sum()) / curves["other"].at(rows)
        return bandwidth, compute, self._collectives.seconds(rows, num_logits) if self._collectives else 0.0

    def breakdown(self, first: Integers, count: Integers, num_logits: int) -> Breakdown:
        curves, spans = self._efficiency.curves, len(count)
        is_decode = count == 1
        num_decodes, graph = int(np.count_nonzero(is_decode)), self.prompt_graph(count)
        rows, num_logits = graph or (int(count.sum()), num_logits)
        bandwidth, compute, link = self._beside_attention(rows, spans, num_logits)
        for window, sites in self._attention.items():
            for chosen, kind in _parts(is_decode, num_decodes):
                load, keys_a_row = attention_load(first[chosen], count[chosen], window)
                moving, multiplying = sites.moving(load), sites.multiplying(load)
                took = max(moving, multiplying) / curves[kind].at(keys_a_row)
                if kind == "decode_attention":
                    took += self._efficiency.beside_reading * multiplying
                bandwidth, compute = (
                    (bandwidth, compute + took) if multiplying > moving else (bandwidth + took, compute)
                )
        launch = 1e-6 * self._efficiency.step_us + self._launch_s["product"] + self._launch_s["other"]
        launch += self._launch_s["decode_attention"] * (num_decodes > 0)
        launch += self._launch_s["prompt_attention"] * (num_decodes < spans)
        host = 1e-6 * (self._efficiency.host_us + self._efficiency.host_us_per_request * spans)
        host += self._eager_s * (num_decodes < spans and graph is None)
        return Breakdown(bandwidth, compute, launch, link, host, self._is_host_hidden)

    def ideals(self, first: Integers, count: Integers, num_logits: int) -> dict[Kind, Ideal]:
        """Of one step whose spans all decode or all read prompts: what a measurement's shares are of."""
        rows = int(count.sum())
        load = np.array([1, rows, len(count), 0, 0, num_logits], dtype=np.float64)
        moving, multiplying = self._products.at(load)
        least = np.maximum(moving, multiplying)
        kind: Kind = "decode_attention" if (count == 1).all() else "prompt_attention"
        attending = [(sites, *attention_load(first, count, window)) for window, sites in self._attention.items()]
        attention_s = [max(sites.moving(keys), sites.multiplying(keys)) for sites, keys, _ in attending]
        operations_s = sum(sites.multiplying(keys) for sites, keys, _ in attending)
        axis = float(np.average([keys_a_row for _, _, keys_a_row in attending], weights=attention_s))
        return {
            "product": Ideal(
                float(least.sum()), rows, self._calls["product"], float(moving.sum()), float(multiplying.sum())
            ),
            kind: Ideal(sum(attention_s), axis, self._calls[kind], operations_s=operations_s),
            "other": Ideal(float(np.maximum(*self._others.at(load)).sum()), rows, self._calls["other"]),
        }


def product_seconds(reached: Efficiency, moving: Reals, multiplying: Reals, rows: int) -> Reals:
    """What products take whose bytes, and whose operations, take so long at the ceilings, in a step of so many rows."""
    curve = reached.curves["product"]
    if reached.read_share is None:
        return np.maximum(moving, multiplying) / curve.at_all(multiplying / moving)
    return np.hypot(moving / reached.read_share, multiplying / curve.at(rows))


def kinds(sites: tuple[Site, ...]) -> dict[str, Kind]:
    """By a site's name the kind of its work; attention that decodes stands for both of its kinds."""
    _, operations = load_coefficients(sites)
    return {site.name: _kind(site, each) for site, each in zip(sites, operations, strict=True)}


def _kind(site: Site, operations: Reals) -> Kind:
    if operations[4] > 0:
        return "decode_attention"
    return "product" if site.weight_bytes and operations[[1, 5]].sum() > 0 else "other"


def wide_rate(profile: Profile, precision: Precision) -> str:
    """The rate of what stays in 16 bits."""
    if precision.rate in ("bf16", "fp16", "fp32"):
        return precision.rate
    return "bf16" if profile.dense_tflops("bf16") else "fp16"


def window_of(site: Site) -> int:
    """Keys that a query of the site sees; 0: all."""
    return site.group.window if site.group else 0


def _parts(is_decode: NDArray[np.bool_], num_decodes: int) -> Iterator[tuple[NDArray[np.bool_] | slice, Kind]]:
    """The spans that decode, and the prompts, each with its kind; what has no span is left out."""
    everything = slice(None)
    if num_decodes:
        yield (everything if num_decodes == len(is_decode) else is_decode), "decode_attention"
    if num_decodes < len(is_decode):
        yield (~is_decode if num_decodes else everything), "prompt_attention"


def attention_load(first: Integers, count: Integers, window: int) -> tuple[tuple[float, ...], float]:
    """The load's vector, and the keys that a row sees on average. A window hides keys further back than it reaches."""
    if window:
        growing = np.clip(window - first, 0, count)
        pairs = growing * first + growing * (growing + 1) // 2 + (count - growing) * window
        keys = np.minimum(first, window - 1) + count
    else:
        pairs, keys = count * first + count * (count + 1) // 2, first + count
    rows, pair_sum = int(count.sum()), int(pairs.sum())
    return (1, rows, len(count), int(keys.sum()), pair_sum, 0), pair_sum / max(rows, 1)
