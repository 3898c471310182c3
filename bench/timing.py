"""The timed run of a trial, and what its time means: bytes/s and FLOP/s of the op's cost, share of the roofline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ..ops.types import Cost, dtype_name
from .trials import Place, Trial


def prepared(trial: Trial, place: Place) -> Callable[[], None]:
    """The call on its own operands, waiting for the device. AssertionError if the kernel is not right on the twin."""
    replace(trial, full=False).check(place)
    operands = next(trial.packings(place))
    waits = place.device.type != "cpu"

    def run() -> None:
        trial.call(operands, place)
        if waits:
            torch.accelerator.synchronize()

    run()
    return run


def facts(trial: Trial, place: Place, seconds: float) -> dict[str, float | str]:
    """Figures of one call that took so long; the share is missing where the profile lacks a number."""
    cost = trial.cost
    found: dict[str, float | str] = {
        "profile": place.profile.name,
        "gb_per_s": cost.num_bytes / seconds / 1e9,
        "tflops": cost.num_operations / seconds / 1e12,
    }
    least = roofline_seconds(cost, place)
    return found if least is None else {**found, "share_of_roofline": least / seconds}


def roofline_seconds(cost: Cost, place: Place) -> float | None:
    """The least time that the profile's bandwidth and peak allow, or None where it does not know them."""
    bandwidth = place.profile.memory.bandwidth_gb_per_s.best
    peak = place.profile.dense_tflops(dtype_name(cost.dtype))
    if bandwidth is None or peak is None:
        return None
    return max(cost.num_bytes / (bandwidth * 1e9), cost.num_operations / (peak * 1e12))
