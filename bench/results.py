"""What every result carries besides its figures, and the few statistics that they share."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median, quantiles, stdev
from typing import Any

_PACKAGES = ("torch", "triton", "transformers", "tokenizers", "numpy")


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": median(values), "min": min(values), "max": max(values), "all": list(values)}


def deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def vllm_latencies(seconds: Sequence[float]) -> dict[str, Any]:
    """The keys of vLLM's `bench latency`."""
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    return {
        "avg_latency": fmean(seconds),
        "latencies": list(seconds),
        "percentiles": {str(each): cuts[each - 1] for each in (10, 25, 50, 75, 90, 99)},
    }


def conditions() -> dict[str, Any]:
    """When, by which command, on what: taken before the first measurement."""
    version = importlib.metadata.version
    names = {each.metadata["Name"] for each in importlib.metadata.distributions()}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["ambidex", *sys.argv[1:]]),
        "machine": {
            "ambidex": version("ambidex"),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "packages": {name: version(name) if name in names else None for name in _PACKAGES},
            "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "clocks_mhz": _clocks_mhz(Path("/proc/cpuinfo")),
            "load_average": os.getloadavg()[0],
        },
    }


def _clocks_mhz(cpuinfo: Path) -> list[float]:
    """Of each processor now, where Linux says it."""
    if not cpuinfo.is_file():
        return []
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    return [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
