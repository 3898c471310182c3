"""A recorded trace: CSV with the columns of the Azure LLM inference trace, `TIMESTAMP,ContextTokens,GeneratedTokens`.

Format: https://github.com/Azure/AzurePublicDataset (AzureLLMInferenceTrace: Patel et al., "Splitwise", ISCA 2024).
Other columns are passed over; order of rows does not matter.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import ConfigError
from .record import MOST_TOKENS

_YEARS = range(1700, 2250)  # that nanoseconds of 64 bits hold
_ROW = np.dtype([("moment", "datetime64[ns]"), ("inputs", np.int64), ("outputs", np.int64)])
COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class Recorded(NamedTuple):
    """By arrival: seconds since the first, tokens of the prompt, tokens of the answer."""

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]


def read_trace(path: Path) -> Recorded:
    """ConfigError: no such file, columns that are missing, or a row that is none; one line with file and line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = np.fromiter(_rows(csv.reader(file), path), _ROW)  # 24 bytes each, where a list takes 250
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}; give a CSV file") from None
    if not len(rows):
        raise ConfigError(f"{path} has no requests: give a row for each below the header {','.join(COLUMNS)}")
    rows = rows[np.argsort(rows["moment"], kind="stable")]
    seconds = (rows["moment"] - rows["moment"][0]) / np.timedelta64(1, "ns") * 1e-9
    return Recorded(seconds, rows["inputs"].copy(), rows["outputs"].copy())


def _rows(reader: Iterator[list[str]], path: Path) -> Iterator[tuple[np.datetime64, int, int]]:
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ConfigError(
            f"{path}:1: the trace has no column {' and none '.join(missing)}: its header is "
            f"{','.join(header)[:80] or 'empty'}, wanted is {','.join(COLUMNS)}"
        )
    places = [header.index(name) for name in COLUMNS]
    for line, row in enumerate(reader, start=2):
        if any(cell.strip() for cell in row):
            yield _request(row, places, f"{path}:{line}")


def _request(row: list[str], places: list[int], where: str) -> tuple[np.datetime64, int, int]:
    try:
        moment, inputs, outputs = (row[place].strip() for place in places)
        found = _moment(moment), int(inputs), int(outputs)
    except (ValueError, IndexError, OverflowError):
        raise ConfigError(f"{where}: {','.join(row)[:80]!r} is no request: {','.join(COLUMNS)} are wanted") from None
    if min(found[1:]) < 1:
        raise ConfigError(f"{where}: a request has at least one token in and one out")
    if max(found[1:]) > MOST_TOKENS:
        raise ConfigError(f"{where}: a request has at most {MOST_TOKENS:,} tokens in and as many out")
    return found


def _moment(text: str) -> np.datetime64:
    """`2023-11-16 18:15:46.6805900`; the later traces write UTC's offset behind it."""
    utc = text.removesuffix("Z").removesuffix("+00:00")
    if int(utc[:4]) not in _YEARS or "+" in utc or utc.count("-") > 2:
        raise ValueError("a time in UTC is wanted")
    return np.datetime64(utc, "ns")
