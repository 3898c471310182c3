"""`ambidex build-kernels`: compiles what a model's engine launches, on any machine, for a device that is elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from . import options
from .table import table

CACHE_VARIABLE = "TRITON_CACHE_DIR"
"""Where Triton's JIT keeps and looks for what it compiled."""


@options.with_engine
def build_kernels(
    engine: dict[str, Any],
    profile: Annotated[str, typer.Option(metavar="NAME", help="The device's profile, or a YAML file.")],
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help=f"The cache to fill; {CACHE_VARIABLE}, or Triton's own.")
    ] = None,
    as_object: options.AsJson = False,
) -> None:
    """Compile the kernels that a model needs on a device that need not be here.

    They go where Triton's JIT looks for them: start the engine with the same options, TRITON_CACHE_DIR=DIR and
    --jit forbid. DIR must keep its path, and the host the version of Triton.
    """
    from ..hwprofiles.reader import load
    from ..runtime.ahead import compiled
    from ..runtime.options import Options
    from ..runtime.start import decide_for

    if out is not None:
        os.environ[CACHE_VARIABLE] = str(out.resolve())  # Triton reads it when it compiles
    begun = perf_counter()
    decided = decide_for(Options(model=options.one_model(model, model_option), **engine), load(profile))
    rows = [_plain(entry) for entry in compiled(decided)]
    total = {
        "profile": decided.profile.name,
        "kernels": rows,
        "compiled": sum(not row["was_cached"] for row in rows),
        "seconds": round(perf_counter() - begun, 2),
        "cache": os.environ.get(CACHE_VARIABLE),
    }
    print(json.dumps(total) if as_object else "\n".join(_shown(total)))


def _plain(entry: Any) -> dict[str, Any]:
    code = entry.machine_code
    return {
        "kernel": entry.name,
        "key": entry.key,
        "config": entry.config,
        "types": dict(entry.types),
        "registers": code.registers,
        "shared_bytes": code.shared_bytes,
        "spilled": code.spilled,
        "scratch_bytes": code.scratch_bytes,
        "matrix": list(code.matrix),
        "seconds": round(entry.seconds, 3),
        "was_cached": entry.was_cached,
    }


def _shown(total: dict[str, Any]) -> Iterator[str]:
    rows = sorted(total["kernels"], key=lambda row: (row["kernel"], row["config"]))
    if rows:
        header = ["kernel", "registers", "shared", "spills", "s", "config"]
        yield table([header, *map(_cells, rows)], numbers=(1, 2, 3, 4))
        yield ""
    found = len(rows) - total["compiled"]
    where = f" in {total['cache']}" if total["cache"] else ""
    yield (
        f"{total['profile']}: {total['compiled']} kernels compiled, {found} found{where}; {total['seconds']:.1f} s"
        if rows
        else f"{total['profile']}: no kernel that this model is bound to is compiled"
    )


def _cells(row: dict[str, Any]) -> Sequence[str]:
    took = "found" if row["was_cached"] else f"{row['seconds']:.2f}"
    spills = f"{max(row['spilled'], row['scratch_bytes']):,}"
    return [row["kernel"], str(row["registers"]), f"{row['shared_bytes']:,}", spills, took, row["config"]]
