"""The support matrix, op × kernel × target × dtype, from the predicates that a binding asks; no kernel runs.

python -m ambidex.bench.support FILE            writes the page
python -m ambidex.bench.support FILE --check    ends with 1 where the page is not what would be written
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch

from ..hwprofiles.reader import load
from ..ops.types import dtype_name
from .trials import Place, Trial, trials

TARGETS = {
    "sm_90": "nvidia-h200-sxm",
    "sm_100": "nvidia-b200",
    "gfx942": "amd-mi300x",
    "gfx950": "amd-mi355x",
    "avx2": "cpu-avx2",
    "avx512": "cpu-avx512",
    "amx": "cpu-amx",
}
"""Column -> the profile whose numbers the predicates read."""

_SHORT = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64"}
_HEAD = """# Support matrix

Which kernel serves which op on which target, in which dtypes: written by `make support` from the kernels' own
predicates, on the ops' cases. `*` behind a dtype: some cases only (shapes, windows, page sizes); `ambidex explain
--profile NAME` says which kernel refuses what, and why. A word in brackets is the code of the reason where a kernel
serves nothing, `–` that its language does not run there. Every op also has a reference, or parts, which serve
everywhere.
"""


def page() -> str:
    places = {name: Place(load(profile), torch.device("cpu"), {}) for name, profile in TARGETS.items()}
    lines = ["| op | kernel | " + " | ".join(places) + " |", "|---|---|" + "---|" * len(places)]
    found = [trial for trial in trials() if not trial.is_reference]
    for (op, kernel), group in groupby(found, key=lambda trial: (trial.op.name, trial.kernel.name)):
        tried = list(group)
        lines.append(f"| {op} | {kernel} | " + " | ".join(_cell(tried, place) for place in places.values()) + " |")
    return f"{_HEAD}\n" + "\n".join(lines) + "\n"


def _cell(tried: Sequence[Trial], place: Place) -> str:
    reasons = [(trial.dtype, trial.refusal(place)) for trial in tried]
    served = list(_served(reasons))
    codes = sorted({reason.code for _, reason in reasons if reason is not None})
    return " ".join(served) or ("–" if codes == ["language_missing"] else f"({', '.join(codes)})")


def _served(reasons: Sequence[tuple[torch.dtype, object]]) -> Iterator[str]:
    for dtype in dict.fromkeys(dtype for dtype, _ in reasons):
        own = [reason for each, reason in reasons if each == dtype]
        if None in own:
            name = dtype_name(dtype)
            yield _SHORT.get(name, name) + ("" if all(reason is None for reason in own) else "*")


def main(path: Path, *flags: str) -> int:
    text = page()
    if "--check" not in flags:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path} is not what the predicates say: make support")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
