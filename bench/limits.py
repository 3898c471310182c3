"""What the machine can do at most, measured between the contenders' turns, in a process of its own.

R, bytes read a second: the best reader known (the backend's own, and those that kernel languages bring).
C, operations a second: torch's products at the model's own shapes, plain and with weights packed beforehand, the faster
of the two at each shape. A share of R or C is of what this machine gave in this very run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from statistics import median
from time import perf_counter
from typing import Any

import torch

from ..backends.choosing import best
from ..ops.discovery import languages, missing_languages, module, stems
from .contender import run, serve
from .contenders import Process

_READ_BYTES = 512 << 20
_READ_S = 0.15
_PRODUCT_S = 0.1
_PASSES = range(3, 21)


class Limits:
    """options: `place` (a device), `dtype`, `threads`, `products`: [rows, outputs, inputs, how many] of a step."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self._place = best(options["place"])
        self._device = self._place.backend.device(self._place.report)
        dtype = getattr(torch, options["dtype"])
        self._products = [dict(ways(size[:3], dtype, self._device)) for size in options["products"]]
        self._readers = list(readers()) if self._device.type == "cpu" else []
        self._buffer = torch.ones(_READ_BYTES // 4) if self._readers else torch.empty(0)

    def loaded(self) -> dict[str, Any]:
        return {"readers": [self._place.backend.name, *(name for name, _ in self._readers)]}

    def reads(self) -> dict[str, Any]:
        """10⁹ bytes a second by reader, and what sensors say."""
        rates = {self._place.backend.name: self._place.backend.read_bandwidth_gb_per_s(self._device)}
        for name, read in self._readers:
            rates[name] = _READ_BYTES / min(self._seconds(partial(read, self._buffer), _READ_S)) / 1e9
        return {"read_gb_per_s": rates, "sensors": dict(self._place.backend.telemetry(self._device))}

    def products(self) -> dict[str, Any]:
        """Seconds of each product by way, in the order of the options."""
        return {"seconds": [{name: median(self._seconds(call, _PRODUCT_S)) for name, call in ways.items()}
                            for ways in self._products]}  # fmt: skip

    def _seconds(self, call: Callable[[], object], budget_s: float) -> list[float]:
        """Of each pass: as many as the budget allows, three at least."""
        call()
        self._place.backend.synchronize(self._device)
        seconds: list[float] = []
        while len(seconds) < _PASSES.stop and (len(seconds) < _PASSES.start or sum(seconds) < budget_s):
            begun = perf_counter()
            call()
            self._place.backend.synchronize(self._device)
            seconds.append(perf_counter() - begun)
        return seconds


def readers() -> Iterator[tuple[str, Callable[[torch.Tensor], None]]]:
    """What kernel languages that can run here offer as `read(buffer)` in their `language.py`."""
    for language in set(languages()) - set(missing_languages()):
        if "language" in stems(f"kernels/{language}"):
            found = module(f"kernels/{language}", "language")
            if hasattr(found, "read"):
                yield f"kernels/{language}", found.read


def ways(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """The same product by each of torch's ways that there is on the device. sizes: rows, outputs, inputs."""
    rows, outputs, inputs = sizes
    weight = torch.randn(outputs, inputs, device=device).to(dtype)
    x = torch.randn(rows, inputs, device=device).to(dtype)
    yield "linear", lambda: torch.nn.functional.linear(x, weight)
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        except RuntimeError:  # oneDNN packs no weight of this dtype here: the plain way stands
            return
        yield "prepacked", lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


class Found:
    """What the limits answered in the course of a run."""

    def __init__(self, limits: Process) -> None:
        self._limits = limits
        self.reads: list[dict[str, Any]] = []
        self.products: list[dict[str, Any]] = []

    def read(self) -> None:
        """Now: before each case, since the bandwidth of a shared machine changes from second to second."""
        self.reads.append(self._limits.ask("reads"))

    def multiply(self) -> None:
        self.products.append(self._limits.ask("products"))

    def summary(self, products: Sequence[Sequence[int]]) -> dict[str, Any]:
        """R and C: medians over the run, of the best reader and, at each shape, of the best way by its median."""
        rates = {name: median(each["read_gb_per_s"][name] for each in self.reads)
                 for name in self.reads[0]["read_gb_per_s"]}  # fmt: skip
        reader = max(rates, key=lambda name: rates[name])
        table = [self._product(index, product) for index, product in enumerate(products)]
        seconds = sum(each["count"] * each["seconds"] for each in table)
        return {
            "read_gb_per_s": rates[reader],
            "reader": reader,
            "matrix_gflops_per_s": sum(2 * prod(product) for product in products) / seconds / 1e9,
            "products": table,
            "all": {"reads": self.reads, "products": self.products},
        }

    def _product(self, index: int, product: Sequence[int]) -> dict[str, Any]:
        *shape, count = product
        answers = [answer["seconds"][index] for answer in self.products]
        ways = {name: median(answer[name] for answer in answers) for name in answers[0]}
        way = min(ways, key=lambda name: ways[name])
        rate = 2 * prod(shape) / ways[way] / 1e9
        return {"shape": shape, "count": count, "way": way, "seconds": ways[way], "gflops_per_s": rate}


if __name__ == "__main__":
    run(lambda answers: serve(lambda: Limits(json.loads(sys.argv[1])), "limits", sys.stdin, answers))
