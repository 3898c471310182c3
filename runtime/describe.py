"""What was decided on the way to an engine, and on what grounds, in lines for people."""

from __future__ import annotations

from ..ops.manifest import fingerprint, references
from .start import Decisions


def device_name(decided: Decisions) -> str:
    return f"{decided.backend.name}:{decided.report.index}"


def summary(decided: Decisions) -> str:
    """Device and memory in a line: what an engine says when it starts."""
    return f"{device_name(decided)} ({decided.report.name or decided.profile.title}): {decided.ledger.summary()}"


def describe(decided: Decisions) -> list[str]:
    config, match = decided.config, decided.backend.profile(decided.report)
    return [
        f"model      {config.model_type}, {config.num_layers} layers of {config.hidden_size}, "
        f"{config.num_heads}/{config.num_kv_heads} heads of {config.head_size}, vocabulary {config.vocabulary_size:,}",
        f"device     {device_name(decided)}: {decided.report.name}",
        f"profile    {decided.profile.name} ({match.kind}: {match.reason})",
        f"dtype      {str(decided.dtype).removeprefix('torch.')}",
        *decided.ledger.lines(),
        f"binding    {len(decided.binding.sites)} sites, determinism {decided.binding.policy.determinism}; "
        f"by the reference: {', '.join(references(decided.binding)) or 'none'} ({fingerprint(decided.binding)})",
    ]
