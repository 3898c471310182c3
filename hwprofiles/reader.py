"""Reads profiles: `names()`, `load(name)`, `load_file(path)`.

A file that is not a profile, or that contradicts itself (`check`), is refused with a `ProfileError`: one line with
file, line, field, cause and cure. Only YAML's safe subset is read, and a key that is given twice is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .check import check
from .finding import Finding
from .schema import Profile

__all__ = ["Finding", "Profile", "ProfileError", "check", "load", "load_file", "names"]

PROFILES_FOLDER = Path(__file__).parent
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
FieldPath = tuple[str, ...]


class ProfileError(ValueError):
    """A profile that cannot be used. The text is one line: `file:line: field: cause; cure`."""

    exit_code = 10

    def __init__(self, cause: str, cure: str, *, file: str = "", line: int | None = None, field: str = "") -> None:
        self.cause, self.cure, self.file, self.line, self.field = cause, cure, file, line, field
        place = f"{file}:{line}" if line is not None else file
        super().__init__(": ".join(part for part in (place, field, f"{cause}; {cure}") if part).replace("\n", " "))


def names() -> list[str]:
    """The names of the profiles that are shipped, sorted."""
    return sorted(path.stem for path in PROFILES_FOLDER.glob("*.yaml"))


@cache
def load(name: str) -> Profile:
    """The shipped profile of this name, or the file, where a path that ends in .yaml is given."""
    if name.endswith((".yaml", ".yml")):
        return load_file(name)
    if name not in names():
        raise _unknown(name)
    profile = load_file(PROFILES_FOLDER / f"{name}.yaml")
    if profile.name != name:
        raise ProfileError(f"the file is called {name}", "give both the same name", file=f"{name}.yaml", field="name")
    return profile


def load_file(path: str | Path) -> Profile:
    """The profile in a file. Raises `ProfileError` for what is missing, misspelt, of a wrong type or contradictory."""
    file = str(path)
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not UTF-8 text"
        raise ProfileError(f"cannot read the profile: {reason}", "give a readable YAML file", file=file) from None
    data, lines = _parse(text, file)
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        raise _invalid(error, file, lines) from None
    errors = [finding for finding in check(profile) if finding.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        first = errors[0]
        line = _line_of(tuple(first.field.split(".")), lines)
        raise ProfileError(first.cause, first.cure + more, file=file, line=line, field=first.field)
    return profile


def _unknown(name: str) -> ProfileError:
    known = names()
    near = [word for word in known if name.lower() in word]
    near = near or difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    cure = f"{guess}known: {', '.join(known)} (or give a path to a .yaml file)"
    return ProfileError(f"unknown profile {name!r}", cure)


def _parse(text: str, file: str) -> tuple[dict[str, Any], dict[FieldPath, int]]:
    loader = _Loader(text)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)):
            # Aliases of aliases: a few lines stand for billions.
            raise ProfileError("uses an alias (*name)", "write the value out", file=file)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ProfileError("is not a mapping of fields", "write `name: …` and the other fields", file=file, line=1)
        lines = dict(_lines(node, file))
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else None
        cause = f"is not valid YAML: {getattr(error, 'problem', None) or error}"
        raise ProfileError(cause, "correct the syntax", file=file, line=line) from None
    except RecursionError:
        raise ProfileError("is nested too deep", "write plain fields", file=file) from None
    except ValueError as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(f"has a value that cannot be read: {error}", "correct it", file=file) from None
    finally:
        loader.dispose()


def _lines(node: yaml.Node, file: str, path: FieldPath = ()) -> Iterator[tuple[FieldPath, int]]:
    """(path, line) of each field below a node; refuses a key that is given twice."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, str(index)), item.start_mark.line + 1
            yield from _lines(item, file, (*path, str(index)))
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        word, line = str(key.value), key.start_mark.line + 1
        if word in seen:
            cause = f"is given twice (first in line {seen[word]})"
            raise ProfileError(cause, "keep one", file=file, line=line, field=".".join((*path, word)))
        seen[word] = line
        yield (*path, word), line
        yield from _lines(value, file, (*path, word))


def _line_of(path: FieldPath, lines: dict[FieldPath, int]) -> int:
    """The line of a field, or of the nearest field above it that the file has."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _invalid(error: ValidationError, file: str, lines: dict[FieldPath, int]) -> ProfileError:
    # A misspelt field shows up twice, as unknown and as missing: the unknown one tells more.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    first = details[0]
    path = tuple(str(part) for part in first["loc"])
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    cause, cure = _explain(first, path)
    return ProfileError(cause, cure + more, file=file, line=_line_of(path, lines), field=".".join(path))


def _explain(detail: ErrorDetails, path: FieldPath) -> tuple[str, str]:
    if detail["type"] == "missing":
        return "is missing", "add it"
    if detail["type"] == "extra_forbidden":
        known = _fields_at(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        return "is not a field", f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{detail['input']!r} does not fit", message[:1].lower() + message[1:]


def _fields_at(path: FieldPath) -> list[str]:
    model: type[BaseModel] = Profile
    for word in path:
        field = model.model_fields.get(word)
        inner = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
