"""`ambidex tune`: times the launches of kernels on this device and writes what is best as tuned rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .ops import Pattern, ceilings, float_dtype, here, shown_limits
from .progress import ticking
from .table import table

if TYPE_CHECKING:
    from ..bench.ops import Selection
    from ..bench.trials import Trial
    from ..bench.tune_steps import Search
    from ..hwprofiles.schema import Profile


def tune(
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    ops: Pattern = "*",
    cases: Pattern = "*",
    kernels: Pattern = "*",
    steps: Annotated[
        str | None,
        typer.Option(metavar="B×C,…", help="Try launches within whole steps of B requests with C tokens of context."),
    ] = None,
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

    A launch that is not right is not written. What is in the files already is not measured again, but for steps.
    """
    from ..bench.ops import Bench, Selection
    from ..bench.results import conditions
    from ..bench.tune import Files, Tuning, facts
    from ..ops.tuned import FOLDER, Tuned

    begun = monotonic()
    where = _device_of(profile) if profile else device
    place, watch, device_name = here(where, 0.3)
    named = options.one_model(model, model_option)
    selection = Selection(ops, cases, kernels, float_dtype("bfloat16" if dtype == "auto" else dtype))
    whole = _steps(steps, named)
    if whole and fresh:
        raise typer.BadParameter("steps make the rows of their buckets anew: the others stay", param_hint="--fresh")
    bases = [] if whole else _of_model(selection, named, dtype, place.profile) if named else selection.trials()
    searches = _searches(named, where, dtype, whole, selection) if named and whole else []
    if not bases and not any(each.sites for each in searches):
        raise typer.BadParameter(f"nothing fits {ops!r} with a case {cases!r}", param_hint="--ops")
    bench = Bench(place, watch, ceilings(watch, selection.dtype), Tuned())
    deadline = float("inf") if max_seconds is None else begun + max_seconds
    tuning = Tuning(bench, Files(out or FOLDER, facts(bench, device_name), fresh), deadline)
    runs = [each.run(replace(tuning, clock=each.seconds)) for each in searches]
    num_cases = len(bases) + sum(len(each.sites) for each in searches)
    notes, left = _run(chain(tuning.run(bases, lambda base: selection.of(base.op)), *runs), num_cases)
    within = [(each.case, each.before_s, each.after_s) for each in searches if each.before_s and each.after_s]
    about = {**conditions(), "device": device_name, "profile": place.profile.name, "limits": bench.ceilings.plain()}
    if as_object:
        print(json.dumps({**about, "folder": str(tuning.files.folder), "cases_left": left, "measurements": notes,
                          "steps": [{"batch": batch, "context": context, "before_ms": 1e3 * before, "ms": 1e3 * after}
                                    for (batch, context), before, after in within]}))  # fmt: skip
        return
    print(f"{_shown(notes)}\n\n{shown_limits(about)}\nrows      in {tuning.files.folder / place.profile.tuning_family}")
    for (batch, context), before, after in within:
        searched = f"{1e3 * after:.3f} with the fastest at each site"
        print(f"step      {batch} × {context:,}: {1e3 * before:.3f} ms as bound, {searched}")
    if left:
        cure = "name fewer steps or --ops, or give it longer" if whole else "run it again to go on"
        print(f"stopped   after {max_seconds:g} s with {left} of {num_cases} cases left: {cure}")


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


def _steps(given: str | None, model: str | None) -> list[tuple[int, int]]:
    """`8x1024,128x512` as requests and tokens of context."""
    from ..ops.contract import Policy
    from ..ops.support import bucket_of

    if given is None:
        return []
    if model is None:
        raise typer.BadParameter(
            "steps are a model's: name its folder, whose weights are not read", param_hint="--steps"
        )
    found = [re.fullmatch(r"([1-9]\d{0,5})[x×]([1-9]\d{0,7})", each.strip()) for each in given.split(",")]
    cases = [(int(each[1]), int(each[2])) for each in found if each]
    if len(cases) < len(found):
        raise typer.BadParameter("requests and tokens of context, as in 8x1024 or 8x1024,128x512", param_hint="--steps")
    buckets = [bucket_of(batch, Policy()) for batch, _ in cases]
    if len(set(buckets)) < len(buckets):
        raise typer.BadParameter("two of these steps have rows of one bucket: name one of them", param_hint="--steps")
    return cases


def _searches(
    model: str, device: str | None, dtype: str, cases: list[tuple[int, int]], selection: Selection
) -> list[Search]:
    from ..bench.tune_steps import Search, bench_of

    bench = bench_of(model, device, dtype, cases)
    return [Search(bench, case, selection) for case in cases]


def _run(found: Iterator[dict[str, Any] | None], num_cases: int) -> tuple[list[dict[str, Any]], int]:
    """The notes, and how many cases were left when the time was over."""
    from ..bench.tune import OutOfTime

    notes: list[dict[str, Any]] = []
    done = 0
    with ticking("cases", num_cases) as tick:
        try:
            for note in found:
                if note is None:
                    done += 1
                    tick()
                else:
                    notes.append(note)
        except OutOfTime:
            return notes, num_cases - done
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
