"""Measures the overlay of the present device's profile (`planning/calibration.py`): what its own kernels reach.

ceilings   R, bytes read a second, and C, the rate of products, read again before and after each case: a share is of the
           ceilings of its own moment, since a shared machine changes its speed in the course of a run.
shares     the bound kernels on the sites of a few layers of a model (`noted.py`): a kind's ideal seconds over what its
           calls took. Of a case that was measured more than once, as by two shapes, the mean counts.
costs      of a call and of a step, on a model so small that nothing else takes time (`call_costs.py`): calls of a kind
           in a row, then whole steps of the engine.

No prompt is longer than the ladder, and no batch larger: beyond its ends a curve stays what it is there.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from statistics import fmean, median

import numpy as np
import torch

from ..hwprofiles.records import RATE_OF_DTYPE, RateName
from ..ops.types import dtype_name
from ..planning.calibration import Calibration, Curves, Micros4, Points, with_ceilings
from ..planning.efficiency import DEFAULT, KINDS, Curve, Kind
from ..planning.precision import Precision
from ..planning.step_time import Ideal, StepTime
from ..runtime.options import Options
from ..runtime.start import place
from ..runtime.step import Integers
from .call_costs import SmallModel, decided_shape
from .ceilings import Ceilings, Gauge
from .noted import Calls, Noted
from .shapes import SHAPES, Shape
from .steady import Steady, built_at_random
from .stopwatch import Stopwatch

_UNIT = replace(
    DEFAULT, curves={kind: Curve((1.0,), (1.0,), "ideal") for kind in KINDS}, launch_us=dict.fromkeys(KINDS, 0.0)
)
_LEAST_SHARE_OF_TIME = 0.1
"""What stays of a measured time, at least, when the cost of its calls is taken off."""
_LEAST_LEFT = 0.1
"""Of a product's time, what its multiplying is taken to be at least: as one side of two, 0.5 % of it."""
_HOT_CALLS = 16


@dataclass(frozen=True)
class Sizes:
    """What is measured. shapes: whose sites, so many layers of each that their weights are `rotated_bytes` or more;
    decodes: (requests, context); prompts: tokens of one. hot: a decode whose keys a cache holds. rounds: over all cases
    of each shape."""

    shapes: tuple[Shape, ...]
    rotated_bytes: int = 192 << 20
    decodes: tuple[tuple[int, int], ...] = (
        (1, 512), (2, 512), (4, 512), (8, 128), (16, 128), (32, 128), (32, 1024), (64, 256), (8, 1024), (8, 4096),
    )  # fmt: skip
    prompts: tuple[int, ...] = (128, 256, 512, 1024)
    hot: tuple[int, int] = (4, 256)
    rounds: int = 1
    budget_s: float = 0.12

    @property
    def num_cases(self) -> int:
        return len(self.shapes) * self.rounds * (len(self.decodes) + len(self.prompts))

    def shallow(self, shape: Shape) -> Shape:
        """The shape with as many layers as are measured."""
        layer_bytes = sum(2 * prod(size) for size in shape.layer_shapes(0).values())
        return replace(shape, num_layers=max(2, -(-self.rotated_bytes // layer_bytes)))

    def options(self, folder: str, device: str | None, dtype: str) -> Options:
        longest = max(*self.prompts, *(context for _, context in self.decodes)) + 1
        tokens = 2 * max(batch * (context + 256) for batch, context in self.decodes)
        return Options(
            model=folder, device=device, dtype=dtype, max_model_len=longest, kv_cache_tokens=max(tokens, longest),
            max_num_seqs=max(batch for batch, _ in self.decodes), max_num_batched_tokens=max(self.prompts),
            graphs=False, progress=False,
        )  # fmt: skip


def default_sizes(device: str | None) -> Sizes:
    """Layers of what a device is used for: on a host of the 1B and 0.5B shapes, on one that works by itself of the 8B
    shape, and there longer ones."""
    backend, _, _ = place(device)
    if not backend.is_asynchronous:
        return Sizes((_narrow("1b"), _narrow("0.5b")))
    own = Sizes((_narrow("8b"),), rotated_bytes=1 << 30, rounds=2)
    return replace(own, decodes=(*own.decodes, (64, 1024), (128, 512), (8, 16_384), (1, 16_384)),
                   prompts=(*own.prompts, 2048, 4096))  # fmt: skip


def _narrow(name: str) -> Shape:
    """With a head no larger than a layer's products: beside a few layers it would count for too much."""
    return replace(SHAPES[name], vocabulary_size=32_768)


def measure(sizes: Sizes, device: str | None = None, tick: Callable[[], None] = lambda: None) -> Calibration:
    """The overlay of the present device. Errors: those of `runtime.start.decide`."""
    dtype = _dtype(device)
    small = SmallModel(device, dtype)
    launch_us = {kind: small.launch_us(kind) for kind in KINDS}
    found = _Found()
    for shape in sizes.shapes:
        bench = _Bench(sizes, shape, device, dtype)
        bench.add_hot(found)
        for case in bench.cases():
            bench.add(case, launch_us, found)
            tick()
    return _calibration(bench, found, small, launch_us)


def _dtype(device: str | None) -> str:
    _, _, profile = place(device)
    return "bfloat16" if "bfloat16" in profile.dtypes else "float16"


@dataclass(frozen=True)
class _Case:
    """Of one kind: what it takes at the moment's ceilings, and the seconds that its work took."""

    ideal: Ideal
    work_s: float


class _Found:
    """What was measured, by kind, by what was asked for and by shape; and the ceilings meanwhile."""

    def __init__(self) -> None:
        self.seen: list[Ceilings] = []
        self.hot: list[float] = []
        self._cases: dict[tuple[Kind, int], dict[Shape, list[_Case]]] = {}

    def add(self, kind: Kind, asked: int, shape: Shape, case: _Case) -> None:
        self._cases.setdefault((kind, asked), {}).setdefault(shape, []).append(case)

    @property
    def beside_reading(self) -> float:
        """Of decode attention: what it takes on keys that the caches hold, but never more than half of any case."""
        decoding = [case.work_s / case.ideal.operations_s for case in self._of("decode_attention")]
        return min(fmean(self.hot), min(decoding) / 2)

    @property
    def read_share(self) -> float:
        """At which the weights of products of the fewest rows are read."""
        cases = self._of("product")
        fewest = min(case.ideal.axis for case in cases)
        return fmean(case.ideal.bytes_s / case.work_s for case in cases if case.ideal.axis == fewest)

    def points(self, kind: Kind) -> Points:
        """Of each place the mean over shapes; within a shape what takes long counts for more, as it does in a step."""
        places = sorted((fmean(case.ideal.axis for cases in shapes.values() for case in cases),
                         fmean(self._share(kind, cases) for cases in shapes.values()))
                        for (each, _), shapes in self._cases.items() if each == kind)  # fmt: skip
        return Points(axis=tuple(_short(at) for at, _ in places), shares=tuple(_short(share) for _, share in places))

    def _of(self, kind: Kind) -> list[_Case]:
        return [case for (each, _), shapes in self._cases.items() if each == kind
                for cases in shapes.values() for case in cases]  # fmt: skip

    def _share(self, kind: Kind, cases: Sequence[_Case]) -> float:
        """Of products that of the rate, so that reading and multiplying together take what was measured; where reading
        explains it all, as at few rows, that at which multiplying adds little."""
        if kind == "product":
            left = [max(case.work_s**2 - (case.ideal.bytes_s / self.read_share) ** 2, (_LEAST_LEFT * case.work_s) ** 2)
                    for case in cases]  # fmt: skip
            return sum(case.ideal.operations_s for case in cases) / sum(map(sqrt, left))
        beside = self.beside_reading if kind == "decode_attention" else 0.0
        work_s = sum(case.work_s - beside * case.ideal.operations_s for case in cases)
        return sum(case.ideal.seconds for case in cases) / work_s


class _Bench:
    """One shape's layers, ready to be measured."""

    def __init__(self, sizes: Sizes, shape: Shape, device: str | None, dtype: str) -> None:
        self._sizes, self._shape = sizes, shape
        self.decided = decided_shape(sizes.shallow(shape), lambda folder: sizes.options(folder, device, dtype))
        self._calls = Calls(self.decided, Steady(built_at_random(self.decided)).worker)
        watch = Stopwatch(self.decided.backend, self.decided.device, 2 * sizes.budget_s)
        self.dtype, self.gauge = dtype, Gauge(watch, [getattr(torch, dtype), torch.float32])

    def cases(self) -> Iterator[tuple[Integers, Integers]]:
        """First positions and counts of the spans of a step."""
        for _ in range(self._sizes.rounds):
            for batch, context in self._sizes.decodes:
                yield np.full(batch, context - 1), np.ones(batch, dtype=np.int64)
            for length in self._sizes.prompts:
                yield np.zeros(1, dtype=np.int64), np.array([length])

    def add(self, case: tuple[Integers, Integers], launch_us: dict[Kind, float], found: _Found) -> None:
        noted = self._calls.noted(*case)
        took, around, _ = self.gauge.steady(self.dtype, lambda: self._took(noted))
        for kind, ideal in self._step_time(*around).ideals(*case, len(case[0])).items():
            seconds = took[kind] * ideal.calls / len(noted[kind])
            work_s = max(seconds - 1e-6 * launch_us[kind] * ideal.calls, _LEAST_SHARE_OF_TIME * seconds)
            found.add(kind, round(ideal.axis), self._shape, _Case(ideal, work_s))
        found.seen += around

    def add_hot(self, found: _Found) -> None:
        """Decode attention on keys that the caches hold: what it computes."""
        batch, context = self._sizes.hot
        case = np.full(batch, context - 1), np.ones(batch, dtype=np.int64)
        first = self._calls.noted(*case)["decode_attention"][0]
        seconds, around, _ = self.gauge.steady(
            self.dtype, lambda: self._calls.seconds([first] * _HOT_CALLS, self._sizes.budget_s) / _HOT_CALLS
        )
        ideal = self._step_time(*around).ideals(*case, batch)["decode_attention"]
        found.hot.append(seconds / (ideal.operations_s / ideal.calls))

    def _took(self, noted: Noted) -> dict[Kind, float]:
        return {kind: self._calls.seconds(calls, self._sizes.budget_s) for kind, calls in noted.items()}

    def _step_time(self, *around: Ceilings) -> StepTime:
        """At the ceilings before and after a case."""
        rate = RATE_OF_DTYPE[self.dtype]
        rates: dict[RateName, float] = {rate: fmean(each.matrix_tflops[self.dtype] for each in around)}
        profile = with_ceilings(self.decided.profile, fmean(each.read_gb_per_s for each in around), rates, "now")
        return StepTime(self._calls.sites, profile, Precision(rate, 16.0, rate, 16), _UNIT)


def _calibration(bench: _Bench, found: _Found, small: SmallModel, launch_us: dict[Kind, float]) -> Calibration:
    decided, rate = bench.decided, RATE_OF_DTYPE[bench.dtype]
    host_us, per_request_us, eager_us = small.host_us()
    tflops: dict[RateName, float] = {
        rate: median(each.matrix_tflops[bench.dtype] for each in found.seen),
        "fp32": bench.gauge.ceilings.matrix_tflops[dtype_name(torch.float32)],
    }
    return Calibration(
        profile=decided.profile.name,
        device=decided.report.name or decided.profile.title,
        date=datetime.datetime.now(datetime.UTC).date(),
        usable_gib=decided.profile.memory.usable_gib or decided.backend.memory(decided.device).total_bytes / 2**30,
        bandwidth_gb_per_s=_short(median(each.read_gb_per_s for each in found.seen)),
        matrix_tflops={name: _short(value) for name, value in tflops.items()},  # type: ignore[arg-type]
        launch_us=Micros4(**{kind: _short(value) for kind, value in launch_us.items()}),
        step_us=_short(small.step_us()),
        host_us=_short(host_us),
        host_us_per_request=_short(per_request_us),
        eager_us=_short(eager_us),
        beside_reading=_short(found.beside_reading),
        read_share=_short(found.read_share),
        curves=Curves(**{kind: found.points(kind) for kind in KINDS}),
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")
