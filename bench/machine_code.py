"""Budgets of machine code: every kernel, as every binding may launch it for the ops' cases, compiled for every target.

    python -m ambidex.bench.machine_code check FOLDER [TARGET …]     what got worse than the budgets in FOLDER
    python -m ambidex.bench.machine_code write FOLDER [TARGET …]     the budgets, anew

No GPU is needed: operands are meta tensors, and launches are compiled instead of run. Launches are those of every
bucket, tuned rows included. A type changes the instructions and hardly the rest, and sizes that nothing divides are
rare: the latter are compiled in the case's own bucket, other types than bfloat16 for an op's first case. FOLDER holds
one folder a minor version of the compiler (`triton-3.9`), in it one file a device function, by target, one line an
entry of the compiler's cache.

Never allowed, whatever a budget says: more on-chip memory than the profile has for a block, and TF32 or XF32, because
the kernels ask for IEEE where they multiply float32. A budget holds the rest: matrix instructions (their kind and
types), registers, on-chip bytes, accesses of global memory narrower than 16 bytes, and spills (of registers, or bytes
of scratch memory), which are named where there are any: what spills stands in a diff, and every run counts it.
"""

from __future__ import annotations

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ..hwprofiles.reader import load
from ..hwprofiles.schema import Profile
from ..ops import discovery, tuned
from ..ops.contract import Arguments
from ..ops.launches import Launches, typical_rows
from ..ops.state import Attending
from ..ops.support import UNBOUNDED, bucket_of, refusal
from .operands import packed, rows_taken
from .trials import POLICY, Trial, trials

TARGETS = {"sm_90": "nvidia-h200-sxm", "sm_100": "nvidia-b200", "gfx942": "amd-mi300x", "gfx950": "amd-mi355x"}
"""Architecture -> a profile of it."""

_META = torch.device("meta")
_NUM_SLOWEST = 3
_COUNTED = {"registers": "registers", "shared": "bytes on chip", "narrow": "narrow accesses", "spills": "spills"}
_REDUCED = re.compile(r"tf32")  # xf32 is AMD's
_MAIN = torch.bfloat16
_ODD = "odd"
"""The case of each op whose sizes nothing divides."""

Budgets = dict[str, dict[str, dict[str, Any]]]
"""Device function -> entry -> what it was allowed."""


@dataclass(frozen=True)
class Collected:
    """What was compiled for one target: by device function and entry, and the seconds that each took."""

    found: Budgets
    broken: list[str]
    seconds: dict[str, float]


def collected(profile: Profile, pattern: str = "*") -> Collected:
    """Compiles every kernel whose name fits, or takes it from the compiler's cache."""
    languages = discovery.compiled_languages()
    with ExitStack() as stack:
        entries = [stack.enter_context(found.collecting(found.Target.of(profile))) for found in languages.values()]
        for trial in trials(pattern, full=True):
            if trial.kernel.language in languages and (trial.dtype == _MAIN or trial.case == trial.op.cases[0]):
                _launch(replace(trial, device=_META), profile)
    result = Collected({}, [], {})
    for entry in (entry for each in entries for entry in each.values()):
        name = _entry_name(entry)
        kept = result.found.setdefault(entry.name, {})
        assert name not in kept, f"two entries of {entry.name} are called {name}"
        kept[name] = _facts(entry.machine_code)
        result.seconds[f"{entry.name} {name}"] = entry.seconds
        result.broken.extend(f"{entry.name} {name}: {why}" for why in _violations(entry.machine_code, profile))
    return result


def _launch(trial: Trial, profile: Profile) -> None:
    buckets = (*POLICY.buckets, UNBOUNDED)
    own = bucket_of(trial.num_rows, POLICY)
    launches = Launches(profile, tuned.found(), buckets, single=False)
    operands = packed(trial.operands, trial.kernel.layout, trial.kernel.page_layouts[0])
    for above, bucket in pairwise((0, *buckets)):
        wanted = bucket == own or (trial.dtype == _MAIN and trial.case.name != _ODD)
        if wanted and refusal(trial.kernel, trial.site, bucket, profile, POLICY, {}) is None:
            args, params = operands if bucket == own else _with_rows(trial, operands, typical_rows(above, bucket))
            trial.kernel.run(*args, **params, **launches.pick(trial.kernel, trial.site, bucket).launch)


def _with_rows(trial: Trial, operands: Arguments, rows: int) -> Arguments:
    """The call with so many rows; one that attends keeps its own, which belong to its requests."""
    if any(isinstance(arg, Attending) for arg in operands[0]):
        return operands
    index = torch.zeros(rows, dtype=torch.int64, device=_META)
    args, params = rows_taken(operands, trial.op.row_axis, trial.num_rows, index)
    return args, params


def _entry_name(entry: Any) -> str:
    """Types of the arguments, equal neighbours counted, then constants and options."""
    runs = [(kind, len(list(group))) for kind, group in groupby(entry.types.values())]
    return " ".join(kind if count == 1 else f"{count}×{kind}" for kind, count in runs) + f" | {entry.config}"


def _facts(code: Any) -> dict[str, Any]:
    return {
        "matrix": ", ".join(code.matrix),
        "registers": code.registers,
        "shared": code.shared_bytes,
        "loads": _widths(code.loads),
        "stores": _widths(code.stores),
        "narrow": code.num_narrow,
        **({"spills": spills} if (spills := max(code.spilled, code.scratch_bytes)) else {}),
    }


def _widths(found: Mapping[int | str, int]) -> str:
    """`16×12 4×3`: bytes × instructions."""
    ordered = sorted(found.items(), key=lambda each: (isinstance(each[0], int), each[0]), reverse=True)
    return " ".join(f"{width}×{count}" for width, count in ordered)


def _violations(code: Any, profile: Profile) -> Iterator[str]:
    limit = profile.on_chip.shared_memory_per_block_kib
    if limit is not None and code.shared_bytes > limit * 1024:
        yield f"takes {code.shared_bytes:,} bytes on chip, {profile.name} has {limit * 1024:,.0f} for a block"
    yield from (f"multiplies by {found}: float32 is to be IEEE" for found in code.matrix if _REDUCED.search(found))


def worse(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What the new machine code does worse than its budget, for people."""
    found = []
    if old["matrix"] != new["matrix"]:
        found.append(f"matrix instructions {old['matrix'] or 'none'} → {new['matrix'] or 'none'}")
    for name, unit in _COUNTED.items():
        before, now = old.get(name, 0), new.get(name, 0)
        if now > before:
            detail = f" (loads {new['loads']}, stores {new['stores']})" if name == "narrow" else ""
            found.append(f"{unit} {before:,} → {now:,}{detail}")
    return found


def better(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return not worse(old, new) and any(new.get(name, 0) < old.get(name, 0) for name in _COUNTED)


def compared(folder: Path, target: str, found: Budgets) -> tuple[list[str], list[str]]:
    """Failures and hints: what is worse than the budgets in `folder` or has none; what is better, or is gone."""
    failures, hints = [], []
    for kernel, entries in sorted(found.items()):
        allowed = _read(folder / f"{kernel}.json").get(target, {})
        failures += [f"{kernel} {name}: has no budget" for name in sorted(entries.keys() - allowed.keys())]
        hints += [f"{kernel} {name}: is compiled no more" for name in sorted(allowed.keys() - entries.keys())]
        for name in sorted(entries.keys() & allowed.keys()):
            failures += [f"{kernel} {name}: {what}" for what in worse(allowed[name], entries[name])]
            hints += [f"{kernel} {name}: is better than its budget"] if better(allowed[name], entries[name]) else []
    return failures, hints


def write(folder: Path, target: str, found: Budgets) -> None:
    """The budgets of a target, anew: files of kernels that are gone lose it."""
    folder.mkdir(parents=True, exist_ok=True)
    for kernel in sorted({*found, *(path.stem for path in folder.glob("*.json"))}):
        path = folder / f"{kernel}.json"
        kept = {**_read(path), target: found.get(kernel, {})}
        lines = [_target_lines(name, kept[name]) for name in sorted(kept) if kept[name]]
        if lines:
            path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def _target_lines(target: str, entries: Mapping[str, Any]) -> str:
    lines = (f"  {_text(name)}: {_text(facts)}" for name, facts in sorted(entries.items()))
    return f" {_text(target)}: {{\n" + ",\n".join(lines) + "\n }"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def version_folder(folder: Path) -> Path:
    """Where the budgets of the compiler in this environment lie."""
    import triton

    return folder / f"triton-{'.'.join(triton.__version__.split('.')[:2])}"


def main(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m ambidex.bench.machine_code", description="Budgets of machine code.")
    parser.add_argument("mode", choices=("check", "write"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=list(TARGETS))
    parser.add_argument("--kernels", metavar="PATTERN", default="*", help="check these kernels only")
    given = parser.parse_args(arguments)
    if given.mode == "write" and given.kernels != "*":
        parser.error("budgets are written for all kernels: leave out --kernels")
    return int(sum(_proved(given, target) for target in given.targets) > 0)


def _proved(given: Namespace, target: str) -> int:
    """Checks or writes one target, and tells; the number of failures."""
    place, begun = version_folder(given.folder), perf_counter()
    made = collected(load(TARGETS[target]), given.kernels)
    failures, hints = compared(place, target, made.found) if given.mode == "check" else ([], [])
    if given.mode == "write":
        write(place, target, made.found)
    _tell(f"{place.name} {target}", made, perf_counter() - begun, [*made.broken, *failures], hints)
    return len(made.broken) + len(failures)


def _tell(what: str, made: Collected, seconds: float, failures: list[str], hints: list[str]) -> None:
    count = sum(map(len, made.found.values()))
    spilling = sum("spills" in facts for entries in made.found.values() for facts in entries.values())
    print(f"{what}: {count} entries of {len(made.found)} kernels, {spilling} of them spill, {seconds:.0f} s")
    for name in sorted(made.seconds, key=made.seconds.__getitem__, reverse=True)[:_NUM_SLOWEST]:
        print(f"  slow: {made.seconds[name]:.1f} s {name}")
    for line in failures:
        print(f"  WORSE {line}")
    for line in hints:
        print(f"  hint: {line}: make budgets")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
