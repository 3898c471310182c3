"""A measured overlay of a profile: what `ambidex calibrate` found on one device of it, as a YAML file.

Ceilings first: bytes a second that the best reader reads, operations a second of the best product, by rate. The curves
(`efficiency.py`) are shares of these, measured in the same run. So a profile under its overlay has the overlay's
ceilings in place of the specified ones; rates that were not measured keep their proportion to those that were. A
class of hosts knows no bandwidth and no rate but through its overlay.

Files lie in `$XDG_CONFIG_HOME/ambidex/calibrated/<profile>.yaml` (else `~/.config`); `AMBIDEX_CALIBRATION` names
another.
What an overlay does not know: what other programs take of the device, and how its clocks change after a minute.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from ..hwprofiles.records import RateName, Rates, Record, Word
from ..hwprofiles.schema import Profile
from ..runtime.errors import ConfigError
from .efficiency import DEFAULT, KINDS, Curve, Efficiency, Kind

VARIABLE = "AMBIDEX_CALIBRATION"
_MAX_BYTES = 64 * 1024
_CURE = "correct it, or run `ambidex calibrate` again"

Above0 = Annotated[float, Field(gt=0, lt=1e9)]
Micros = Annotated[float, Field(ge=0, lt=1e7)]


class Points(Record):
    """Of a curve: shares of the overlay's ceilings over an axis that rises."""

    axis: Annotated[tuple[Above0, ...], Field(strict=False, min_length=1, max_length=64)]
    shares: Annotated[tuple[Above0, ...], Field(strict=False, min_length=1, max_length=64)]

    @model_validator(mode="after")
    def _paired(self) -> Points:
        if len(self.axis) != len(self.shares):
            raise ValueError(f"{len(self.axis)} points of the axis and {len(self.shares)} shares: give as many")
        if any(low >= high for low, high in zip(self.axis, self.axis[1:], strict=False)):
            raise ValueError("the axis has to rise from point to point")
        return self


class Curves(Record):
    product: Points
    decode_attention: Points
    prompt_attention: Points
    other: Points


class Micros4(Record):
    """Of one call of each kind of work beside its work."""

    product: Micros
    decode_attention: Micros
    prompt_attention: Micros
    other: Micros


class Calibration(Record):
    """What was measured. `_us` fields, beside_reading and read_share as in `efficiency.Efficiency`: the products' curve
    is over rows. usable_gib: as reported."""

    profile: Word
    device: Word
    date: datetime.date
    usable_gib: Above0
    bandwidth_gb_per_s: Above0
    matrix_tflops: Rates
    launch_us: Micros4
    step_us: Micros
    host_us: Micros
    host_us_per_request: Micros
    eager_us: Micros
    beside_reading: Annotated[float, Field(ge=0, lt=1e6)]
    read_share: Above0
    curves: Curves

    @model_validator(mode="after")
    def _multiplies(self) -> Calibration:
        if not self.matrix_tflops.known():
            raise ValueError("matrix_tflops names no rate: give at least one, as bf16")
        return self

    @property
    def source(self) -> str:
        return f"calibrated ({self.device}, {self.date.isoformat()})"

    def on(self, profile: Profile) -> Profile:
        """The profile with the measured ceilings. ConfigError: the overlay is of another profile."""
        if profile.name != self.profile:
            raise ConfigError(f"the calibration is of {self.profile}, not of {profile.name}: calibrate that one")
        sized = profile if profile.memory.usable_gib else profile.on_device(usable_gib=self.usable_gib)
        return with_ceilings(sized, self.bandwidth_gb_per_s, dict(self.matrix_tflops.items()), self.source)

    def efficiency(self) -> Efficiency:
        """What to expect of the profile under this overlay. Links between devices keep the default."""
        points: Mapping[Kind, Points] = {kind: getattr(self.curves, kind) for kind in KINDS}
        return Efficiency(
            curves={kind: Curve(each.axis, each.shares, self.source) for kind, each in points.items()},
            launch_us={kind: getattr(self.launch_us, kind) for kind in KINDS},
            host_us=self.host_us,
            host_us_per_request=self.host_us_per_request,
            link_share=DEFAULT.link_share,
            link_us=DEFAULT.link_us,
            step_us=self.step_us,
            eager_us=self.eager_us,
            beside_reading=self.beside_reading,
            read_share=self.read_share,
        )

    def write(self, path: Path) -> None:
        """ConfigError: it cannot be written there."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot write the calibration: {error.strerror}; name another file") from None


def with_ceilings(profile: Profile, gb_per_s: float, tflops: Mapping[RateName, float], source: str) -> Profile:
    """The profile with measured ceilings; the rates that were not measured keep their proportion to those that were, of
    these to matrix units' where there are any: vectors, which may do fp32 and fp64, say nothing of fp8."""
    specified = dict(profile.peak.dense_tflops.items())
    known = [rate for rate in tflops if rate in specified]
    told = [rate for rate in known if rate not in ("fp32", "fp64")] or known
    shares = [tflops[rate] / specified[rate] for rate in told]
    others = {rate: peak * min(shares) for rate, peak in specified.items()} if shares else {}
    data = profile.model_dump()
    data["memory"]["bandwidth_gb_per_s"] = {"spec": None, "measured": gb_per_s}
    data["peak"] = {"dense_tflops": others | dict(tflops)}
    data["sources"] |= dict.fromkeys(("memory.bandwidth_gb_per_s.measured", "peak.dense_tflops"), source)
    return Profile.model_validate(data)


def default_path(profile: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Where the overlay of a profile lies unless somebody says otherwise."""
    if named := environment.get(VARIABLE):
        return Path(named).expanduser()
    base = environment.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "ambidex" / "calibrated" / f"{profile}.yaml"


def find(profile: Profile, named: Path | None = None) -> Calibration | None:
    """The overlay of this profile, or None where there is none. named: a file that must be there; like one that the
    environment names it may be of another profile, which is none for this one. ConfigError: one that cannot be used."""
    path = named or default_path(profile.name)
    if named is None and VARIABLE not in os.environ and not path.is_file():
        return None
    found = read(path)
    return found if found.profile == profile.name else None


def read(path: Path) -> Calibration:
    """The overlay in a file. ConfigError: one line with file, field, cause and cure."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: has more than {_MAX_BYTES // 1024} KiB: it is no calibration; {_CURE}")
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the calibration: {reason}; {_CURE}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        cause = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}: is not valid YAML: {cause}; {_CURE}") from None
    return _validated(data, path)


def _validated(data: object, path: Path) -> Calibration:
    if isinstance(data, dict) and isinstance(data.get("date"), str):
        data = {**data, "date": _date(data["date"])}
    try:
        return Calibration.model_validate(data)
    except ValidationError as error:
        details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
        first, more = details[0], f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        what = {"extra_forbidden": "is not a field", "missing": "is missing"}.get(first["type"], _lowered(message))
        place = f"{path}: {field}" if field else str(path)
        raise ConfigError(f"{place}: {what}; {_CURE}{more}") from None


def _date(text: str) -> object:
    """As YAML reads it unquoted; what is none stays text, which is refused with its field."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return text


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
