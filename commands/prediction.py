"""What was predicted of a run beside what was measured: the lines that `generate --verbose` ends with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..runtime.request import RequestOutput
from .session import Session, timings

if TYPE_CHECKING:
    from ..planning.deployment import Deployment


def beside(session: Session, output: RequestOutput) -> list[str]:
    """A line for the time to the first token, the time of each further one, and the memory; or why there is none.

    The first request of a process is slower than any other: it records graphs and touches memory for the first time.
    """
    from ..planning.calibration import find
    from ..planning.present import present
    from ..runtime.errors import ConfigError

    decided = session.llm.decided
    try:
        planned = present(decided, find(decided.profile))
    except ConfigError as reason:
        return [f"plan       none: {reason}"]
    return [f"plan       {planned.efficiency.source}", *_times(planned, output), _memory(planned, session)]


def _times(planned: Deployment, output: RequestOutput) -> Iterator[str]:
    from ..planning.point import decode_step, prompt_s

    taken, lengths = timings(output), [len(each.token_ids) for each in output.outputs]
    cached = output.num_cached_tokens or 0
    if taken["first_token_s"] is not None and taken["queued_s"] is not None:
        seconds, _ = prompt_s(planned, len(output.prompt_token_ids) - cached, 0, 0.0)
        yield _line("first", seconds, taken["first_token_s"] - taken["queued_s"])
    if taken["decode_s"] and max(lengths) > 1:
        context = len(output.prompt_token_ids) + sum(lengths) / (2 * len(lengths))
        step_s = decode_step(planned, len(lengths), context).seconds
        yield _line("per token", step_s, taken["decode_s"] / (max(lengths) - 1))


def _line(name: str, predicted_s: float, measured_s: float) -> str:
    error = predicted_s / measured_s - 1
    return f"{name:<10} {1e3 * predicted_s:,.2f} ms predicted, {1e3 * measured_s:,.2f} ms measured ({error:+.0%})"


def _memory(planned: Deployment, session: Session) -> str:
    """Of the parts that are there whole: pages that no request has touched take none yet, and the workspace's peak is
    not told from what Python and its libraries load with the first request."""
    from ..runtime.budget import shown_bytes

    measured_parts = session.llm.holdings.measured()
    known = {name: found.num_bytes for name in ("weights", "requests")
             if (found := measured_parts[name]).num_bytes is not None}  # fmt: skip
    predicted, measured = sum(planned.ledger.predicted[name] for name in known), sum(filter(None, known.values()))
    return f"memory     {shown_bytes(predicted)} predicted, {shown_bytes(measured)} measured ({', '.join(known)})"
