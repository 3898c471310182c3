"""What the parts of a scenario have in common: read strictly, and frozen."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_LEAST, _MOST = 1e-9, 1e15  # of what may be reckoned with: beyond them a clock in seconds stands still


def _reckonable(value: float) -> float:
    if value < _LEAST:
        raise ValueError(f"Input should be {_LEAST:g} or more")
    return value


Positive = Annotated[float, Field(gt=0.0, le=_MOST, allow_inf_nan=False), AfterValidator(_reckonable)]
NotNegative = Annotated[float, Field(ge=0.0, le=_MOST, allow_inf_nan=False)]
MOST_TOKENS = 1 << 24  # longer than any context
Count = Annotated[int, Field(ge=1, le=10**8)]  # of requests, devices, workers
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
