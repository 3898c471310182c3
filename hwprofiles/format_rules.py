"""Do the low-precision formats fit the architecture: FP8 dialect, its maximum, its tensor dtypes, kinds of FP4?"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Finding, architecture, error
from .schema import Profile

FP8_MAX = {"e4m3fn": 448, "e4m3fnuz": 240}


def fp8_dialect(profile: Profile) -> Iterator[Finding]:
    arch, fp8 = architecture(profile), profile.fp8
    expected = arch.fp8_dialect if arch else None
    if arch is not None and fp8 is not None and fp8.dialect != expected:
        cause = f"{profile.arch} computes {expected or 'no FP8'}, not {fp8.dialect}"
        yield error("fp8.dialect", cause, f"write {expected}" if expected else "remove fp8")
    if fp8 is not None and fp8.max_value != FP8_MAX[fp8.dialect]:
        cause = f"{fp8.max_value:g} is not the largest {fp8.dialect}"
        yield error("fp8.max_value", cause, f"write {FP8_MAX[fp8.dialect]}")
    for dtype in profile.dtypes:
        if dtype.startswith(("float8_e4", "float8_e5")) and (
            fp8 is None or dtype.endswith("fnuz") != (fp8.dialect == "e4m3fnuz")
        ):
            native = f"the dialect is {fp8.dialect}" if fp8 else "there is no fp8"
            yield error("dtypes", f"{dtype} is not native where {native}", f"remove {dtype}")


def fp4_kinds(profile: Profile) -> Iterator[Finding]:
    arch = architecture(profile)
    for kind in profile.fp4:
        if arch is not None and kind not in arch.fp4:
            has = ", ".join(sorted(arch.fp4)) or "no FP4"
            yield error("fp4", f"{profile.arch} computes {has}, not {kind}", f"remove {kind}")
    if bool(profile.fp4) != (profile.peak.dense_tflops.fp4 is not None):
        yield error("fp4", "the kinds and peak.dense_tflops.fp4 must be given together", "give or remove both")
