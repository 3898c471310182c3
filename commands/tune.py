"""`ambidex tune`: times the launches of kernels on this device and writes what is best as tuned rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .ops import Pattern, ceilings, float_dtype, here, shown_limits
from .progress import ticking
from .table import table

if TYPE_CHECKING:
    from ..bench.trials import Trial
    from ..bench.tune import Tuning
    from ..hwprofiles.schema import Profile


def tune(
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    ops: Pattern = "*",
    cases: Pattern = "*",
    kernels: Pattern = "*",
    dtype: Annotated[
        str, typer.Option(metavar="D", help="float32, bfloat16, float16, or auto: the model's; bfloat16 without one.")
    ] = "auto",
    device: options.Device = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="The device here whose profile this is, or fail.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where FAMILY/OP.json go; where bindings look, if not given.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the rows of earlier runs.")] = False,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, metavar="S", help="Stop after so long; the next run goes on.")
    ] = None,
    as_object: options.AsJson = False,
) -> None:
    """Time every kernel's launches here, for a model's sites or the ops' own cases, and write the best.

    A launch that is not right is not written. What is in the files already is not measured again.
    """
    from ..bench.ops import Bench, Selection
    from ..bench.results import conditions
    from ..bench.tune import Files, Tuning, facts
    from ..ops.tuned import FOLDER, Tuned

    begun = monotonic()
    place, watch, device_name = here(_device_of(profile) if profile else device, 0.3)
    named = options.one_model(model, model_option)
    selection = Selection(ops, cases, kernels, float_dtype("bfloat16" if dtype == "auto" else dtype))
    bases = _of_model(selection, named, dtype, place.profile) if named else selection.trials()
    if not bases:
        raise typer.BadParameter(f"nothing fits {ops!r} with a case {cases!r}", param_hint="--ops")
    bench = Bench(place, watch, ceilings(watch, selection.dtype), Tuned())
    files = Files(out or FOLDER, facts(bench, device_name), fresh)
    deadline = float("inf") if max_seconds is None else begun + max_seconds
    notes, left = _run(Tuning(bench, files, deadline), bases, lambda base: selection.of(base.op))
    about = {**conditions(), "device": device_name, "profile": place.profile.name, "limits": bench.ceilings.plain()}
    if as_object:
        print(json.dumps({**about, "folder": str(files.folder), "cases_left": left, "measurements": notes}))
        return
    print(f"{_shown(notes)}\n\n{shown_limits(about)}\nrows      in {files.folder / place.profile.tuning_family}")
    if left:
        print(f"stopped   after {max_seconds:g} s with {left} of {len(bases)} cases left: run it again to go on")


def _device_of(profile: str) -> str:
    from ..backends.choosing import places
    from ..backends.contract import BackendError

    for place in places():
        if place.match.profile is not None and place.match.profile.name == profile:
            return place.name
    raise BackendError(f"no device here is {profile}: tuning runs on the device itself (`ambidex devices` lists them)")


def _of_model(selection: Any, model: str, dtype: str, profile: Profile) -> list[Trial]:
    from fnmatch import fnmatch

    from ..bench.tune import of_sites
    from ..runtime.start import model_sites

    found = of_sites(model_sites(model, dtype, profile))
    return [
        base for base in found
        if fnmatch(base.op.name, selection.ops) and fnmatch(base.case.name, selection.cases)
    ]  # fmt: skip


def _run(
    tuning: Tuning, bases: Sequence[Trial], kernels: Callable[[Trial], list[Any]]
) -> tuple[list[dict[str, Any]], int]:
    """The notes, and how many cases were left when the time was over."""
    from ..bench.tune import OutOfTime

    notes: list[dict[str, Any]] = []
    done = 0
    with ticking("cases", len(bases)) as tick:
        steps: Iterator[dict[str, Any] | None] = tuning.run(bases, kernels)
        try:
            for note in steps:
                if note is None:
                    done += 1
                    tick()
                else:
                    notes.append(note)
        except OutOfTime:
            return notes, len(bases) - done
    return notes, 0


def _shown(notes: Sequence[dict[str, Any]]) -> str:
    header = ["op", "case", "rows", "kernel", "µs", "roofline", "error", "launch"]
    rows = [
        [note["op"], note["case"], str(note["rows"]), note["kernel"], f"{note['time_us']:,.2f}",
         f"{note['roofline_share']:.1%}", f"{note['error']:.1e}",
         " ".join(f"{name}={value}" for name, value in note["launch"].items())]
        for note in notes if "time_us" in note
    ]  # fmt: skip
    failed = [f"{note['op']} {note['case']}: {note['kernel']}: {note['failed']}" for note in notes if "failed" in note]
    parts = [table([header, *rows], numbers=(2, 4, 5, 6))] if rows else ["nothing was left to measure"]
    return "\n\n".join([*parts, "\n".join(failed)]).strip()
