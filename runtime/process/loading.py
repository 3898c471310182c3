"""From options to an engine that can be served."""

from __future__ import annotations

import sys
from typing import Any

from ...ops.manifest import fingerprint
from ..build import build
from ..describe import describe, device_name, summary
from ..errors import ConfigError
from ..options import Options
from ..start import decide
from .server import Loaded, Report
from .wire import Facts


def load(given: dict[str, Any], report: Report) -> Loaded:
    """given: the fields of Options. Errors: those of `LLM`; ConfigError: an option that is none."""
    unknown = sorted(set(given) - set(Options.__dataclass_fields__))
    if unknown:
        known = ", ".join(sorted(Options.__dataclass_fields__))
        raise ConfigError(f"there is no option {', '.join(unknown)}: there are {known}")
    report("deciding", 0.0)
    decided = decide(Options(**given))
    for line in decided.binding.warnings:
        print(f"warning: {line}", file=sys.stderr)
    report("weights", 0.0)
    engine = build(decided, lambda share: report("weights", share))
    facts = Facts(
        folder=str(decided.folder),
        fingerprint=fingerprint(decided.binding),
        device=device_name(decided),
        profile=decided.profile.name,
        dtype=str(decided.dtype).removeprefix("torch."),
    )
    return Loaded(engine, facts, (summary(decided), *describe(decided)))
