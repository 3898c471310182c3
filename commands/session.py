"""Between the options of a command and an engine: a loaded model, its sampling defaults, and the facts of a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..runtime.errors import RequestError
from ..runtime.request import RequestOutput, SamplingParams

if TYPE_CHECKING:
    from ..runtime.llm import LLM

_SAMPLED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Session:
    """A loaded model; `defaults` are the sampling parameters that its generation_config.json names."""

    llm: LLM
    name: str
    defaults: Mapping[str, Any]
    seconds_to_load: float

    def params(self, asked: Mapping[str, Any]) -> SamplingParams:
        return SamplingParams(**{**self.defaults, **asked})


def load(model: str | None, engine: Mapping[str, Any], *, verbose: bool = False) -> Session:
    """Loads a model for one command. What was decided is said in a line where standard error is a terminal, and in
    full if wanted. engine: the arguments of `LLM`, whose errors
    these are."""
    from time import perf_counter

    from ..runtime.llm import LLM
    from ..runtime.start import resolve_model

    begun = perf_counter()
    folder = resolve_model(model)
    defaults = sampling_defaults(folder / "generation_config.json")
    with _log_shown(logging.INFO if verbose or _is_looked_at() else logging.WARNING):
        llm = LLM(str(folder), **engine)
    session = Session(llm, model or "embedded", defaults, perf_counter() - begun)
    if verbose:
        print("\n".join(decisions(session)), file=sys.stderr)
    return session


def _is_looked_at() -> bool:
    return sys.stderr.isatty()


@contextmanager
def _log_shown(level: int) -> Iterator[None]:
    """What the package logs meanwhile, on standard error."""
    log, handler = logging.getLogger("ambidex"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    before = log.level
    log.setLevel(level)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class _Plain(logging.Formatter):
    """The message alone; what is more than news says so."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def sampling_defaults(path: Any) -> dict[str, Any]:
    """Sampling parameters that a generation_config.json names and that are in their range; {} where there is none."""
    from ..runtime.fields import read_json

    if not path.is_file():
        return {}
    values = read_json(path)
    named = {name: values[name] for name in _SAMPLED if values.get(name) is not None}
    return {name: value for name, value in named.items() if _serves(name, value)}


def _serves(name: str, value: object) -> bool:
    try:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    except RequestError:
        return False
    return True


@dataclass(frozen=True)
class Facts:
    """Where and how fast a request ran. Rates are None where it had a single token."""

    device: str
    profile: str
    fingerprint: str
    decode_tokens_per_s: float | None
    read_bandwidth_gb_per_s: float
    bytes_per_step: int
    share_of_roofline: float | None

    def line(self) -> str:
        """The one line that ends a run."""
        speed = "one token, no decode speed"
        if self.decode_tokens_per_s is not None and self.share_of_roofline is not None:
            speed = f"{self.decode_tokens_per_s:,.1f} tok/s · {self.share_of_roofline:.0%} of the roofline"
        return f"{self.device} · {self.profile} · {self.fingerprint} · {speed}"


def facts(session: Session, output: RequestOutput) -> Facts:
    """The facts of a finished request; the bandwidth under its roofline is measured now, on the same device."""
    from ..ops.step_cost import decode_bytes
    from ..runtime.describe import device_name

    decided = session.llm.decided
    lengths = [len(each.token_ids) for each in output.outputs]
    sites = [bound.site for bound in decided.binding.sites]
    context = len(output.prompt_token_ids) + sum(lengths) / (2 * len(lengths))
    num_bytes = decode_bytes(sites, len(lengths), context)
    bandwidth = decided.backend.read_bandwidth_gb_per_s(decided.device)
    decode_s, num_steps = timings(output)["decode_s"], max(lengths) - 1
    seconds = decode_s / num_steps if decode_s and num_steps else None
    return Facts(
        device=f"{device_name(decided)} ({decided.report.name or decided.profile.title})",
        profile=decided.profile.name,
        fingerprint=session.llm.fingerprint,
        decode_tokens_per_s=(sum(lengths) - len(lengths)) / decode_s if decode_s and num_steps else None,
        read_bandwidth_gb_per_s=round(bandwidth, 2),
        bytes_per_step=num_bytes,
        share_of_roofline=num_bytes / (bandwidth * 1e9) / seconds if seconds else None,
    )


def timings(output: RequestOutput) -> dict[str, float | None]:
    """Seconds: waiting, to the first token (from arrival), of decode (behind the first token), in all."""
    metrics = output.metrics
    scheduled, first, end = metrics.first_scheduled_time, metrics.first_token_time, metrics.finished_time
    arrival = metrics.arrival_time
    return {
        "queued_s": scheduled - arrival if scheduled is not None else None,
        "first_token_s": first - arrival if first is not None else None,
        "decode_s": end - first if first is not None and end is not None else None,
        "total_s": end - arrival if end is not None else None,
    }


def as_json(session: Session, output: RequestOutput) -> dict[str, Any]:
    """A finished request as one object: the first completion's fields at the top, all of them in `outputs`."""
    first = output.outputs[0]
    return {
        "model": session.name,
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "text": first.text,
        "token_ids": first.token_ids,
        "finish_reason": first.finish_reason,
        "outputs": [asdict(each) for each in output.outputs],
        "timings": {"load_s": session.seconds_to_load, **timings(output)},
        "facts": asdict(facts(session, output)),
    }


def decisions(session: Session) -> list[str]:
    """What was decided on the way to this engine, and on what grounds: one line each."""
    from ..runtime.describe import describe
    from ..runtime.phases import lines

    return [
        f"checkpoint {session.name}: loaded in {session.seconds_to_load:.2f} s",
        *describe(session.llm.decided),
        *lines(session.llm.engine.phase_seconds),
        f"sampling   {dict(session.defaults) or 'no defaults'} (generation_config.json)",
    ]
