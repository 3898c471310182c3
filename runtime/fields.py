"""Reading a JSON object that anybody may have written: each value's type and range are checked before it is used.

`null` counts as absent. A field without a default must be there. Errors: ConfigError with file, field, what was found
and what would do, on one line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import AmbidexError, ConfigError

MAX_JSON_BYTES = 64 << 20


def shown(value: object) -> str:
    """A foreign value on one short line: control characters escaped, the long cut. Python prints no integer of
    thousands of digits."""
    is_huge = isinstance(value, int) and abs(value) > 1 << 256
    text = "a number of more than 77 digits" if is_huge else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_json(path: Path, error: type[AmbidexError] = ConfigError) -> dict[str, Any]:
    """The JSON object in a file. Raises `error` for what is unreadable, too long, too deep or no object."""
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_JSON_BYTES:
            raise error(f"{path} is {num_bytes:,} bytes long, more than any {path.name}: at most {MAX_JSON_BYTES:,}")
        return json_object(path.read_bytes(), str(path), error)
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}") from None


def json_object(text: bytes, where: str, error: type[AmbidexError]) -> dict[str, Any]:
    """A JSON object without repeated keys, of UTF-8 text."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise error(f"{where} is nested too deep") from None
    except ValueError as failure:
        raise error(f"{where} is not JSON: {failure}") from None
    if not isinstance(value, dict):
        raise error(f"{where} holds a {type(value).__name__}, it must be a JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return found


class Fields:
    """The fields of one JSON object, read with bounds. `where` names the file in messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def error(self, name: str, wanted: str) -> ConfigError:
        if self.values.get(name) is None:
            return ConfigError(f"{self.where}: {name} is missing, it must be {wanted}")
        return ConfigError(f"{self.where}: {name} is {shown(self.values[name])}, it must be {wanted}")

    def integer(self, name: str, least: int, most: int, default: int | None = None) -> int:
        value = self._value(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self.error(name, f"an integer from {least:,} to {most:,}")
        return value

    def number(self, name: str, least: float, most: float, default: float | None = None) -> float:
        value = self._value(name, default)
        if type(value) not in (int, float) or not least <= value <= most:  # NaN lies in no range
            raise self.error(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if type(value) is not str:
            raise self.error(name, "a string")
        return value

    def part(self, name: str) -> Fields:
        """The object under `name`, empty where there is none."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return Fields(value, f"{self.where}: {name}")

    def names(self, name: str, length: int, allowed: tuple[str, ...]) -> tuple[str, ...]:
        """A list of `length` strings out of `allowed`; empty where there is none."""
        value = self._value(name, [])
        fits = isinstance(value, list) and all(isinstance(item, str) and item in allowed for item in value)
        if not fits or len(value) not in (length if name in self else 0, length):
            raise self.error(name, f"a list of {length} out of {', '.join(allowed)}")
        return tuple(value)

    def ids(self, name: str, most: int) -> tuple[int, ...]:
        """One token id or a list of them; empty where there is none."""
        value = self._value(name, [])
        ids = value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item <= most for item in ids):
            raise self.error(name, f"token ids from 0 to {most:,}")
        return tuple(ids)

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value
