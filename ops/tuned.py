"""Tuned rows: what `ambidex tune` measured, one file an op and tuning family: `kernels/tuned/<family>/<op>.json`.

A file names the device, the profile, the date, the software and the ceilings of its run (R: bytes read a second, C: the
best matrix product); a row one kernel at one site and number of rows: its launch, its time, what share of the run's
roofline that is, and its error against the op's reference in float64. The rows are data: a key that is not known, a
file in a wrong folder or two rows for one thing are refused with the place.

Another package adds rows by the entry point `ambidex.tuned`, which names a folder that is laid out alike.
A row does not know: what else a row count costs (an attention's contexts are those of the case that was measured), and
how warm or how shared the device was.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec

from ..hwprofiles.schema import Profile
from .discovery import plugins
from .types import Scalar, Site, dtype_name

FOLDER = Path(__file__).resolve().parent.parent / "kernels" / "tuned"
MAX_RATIO, MAX_ROWS_RATIO = 8.0, 2.0
"""A row whose sizes, or whose number of rows, are further away than this factor says nothing about a site."""

_VALUES_ONLY = frozenset({"eps", "scale", "scaling"})
"""Sizes that change what is computed and never how long it takes."""

_ROUNDING = 1e-9
_Word = Annotated[str, msgspec.Meta(min_length=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(gt=0)]


class TunedError(ValueError):
    """A file of tuned rows that cannot be used; one line with the file and the place."""

    exit_code = 10


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kernel, measured. dims: the site's sizes that a time can depend on; rows: of its first operand.

    roofline_share: least time that R and C of the run allow over time_us (a cache may lift it over 1).
    error: largest difference to the reference in float64, relative to the largest value.
    """

    kernel: _Word
    dims: dict[str, bool | int | float | str | None]
    dtypes: dict[str, _Word]
    formats: list[_Word] = []
    rows: _Count
    launch: dict[str, bool | int | float | str]
    time_us: _Positive
    roofline_share: _Positive
    error: Annotated[float, msgspec.Meta(ge=0)]

    @property
    def key(self) -> tuple[str, str]:
        """Equal for rows of one thing, and what puts rows in an order that no file's order changes."""
        what = [sorted(self.dims.items()), sorted(self.dtypes.items()), self.formats, self.rows]
        return self.kernel, json.dumps(what)


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The rows of an op in a family, and the run that measured them. matrix_tflops: C by dtype."""

    op: _Word
    family: _Word
    vendor: _Word
    arch: _Word
    units: _Count | None
    profile: _Word
    device: _Word
    date: datetime.date
    torch: _Word
    triton: _Word | None
    read_gb_per_s: _Positive
    matrix_tflops: dict[str, _Positive]
    rows: list[Row]


def read(path: Path) -> Table:
    """One file, checked. TunedError: what is wrong with it, and where."""
    try:
        table = msgspec.json.decode(path.read_bytes(), type=Table)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TunedError(f"tuned rows in {path} cannot be read: {error}") from None
    if (table.family, f"{table.op}.json") != (path.parent.name, path.name):
        raise TunedError(f"tuned rows in {path} are of {table.op} and family {table.family}: they belong in "
                         f"{table.family}/{table.op}.json")  # fmt: skip
    keys = [row.key for row in table.rows]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise TunedError(f"tuned rows in {path} hold two of {twice[0]} for {twice[1]}: leave the right one")
    return table


def written(table: Table) -> str:
    """The text of a file: the run's facts, then a row a line in the rows' own order."""
    record = msgspec.to_builtins(table)
    rows = [json.dumps(msgspec.to_builtins(row)) for row in sorted(table.rows, key=lambda row: row.key)]
    facts = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items() if name != "rows")
    return f'{{\n{facts},\n  "rows": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"


def timed_dims(site: Site) -> dict[str, Scalar]:
    """The sizes of a site that a time can depend on."""
    return {name: value for name, value in site.dims.items() if name not in _VALUES_ONLY}


def dtype_names(site: Site) -> dict[str, str]:
    return {name: dtype_name(dtype) for name, dtype in site.dtypes.items()}


def formats(site: Site) -> list[str]:
    return sorted({weight.format for weight in site.weights})


class Tuned:
    """All rows that there are, by kernel."""

    def __init__(self, tables: Iterable[Table] = ()) -> None:
        self._rows: dict[tuple[str, str], list[tuple[Table, Row]]] = {}
        for table in tables:
            for row in table.rows:
                self._rows.setdefault((table.op, row.kernel), []).append((table, row))

    def exact(self, kernel: str, site: Site, family: str, bucket: tuple[int, int], rows: int) -> list[Row]:
        """Rows of the family for this very site, measured in the bucket (above, upper], the nearest to `rows` first."""
        dims, (above, upper) = timed_dims(site), bucket
        found = [row for table, row in self._alike(kernel, site)
                 if table.family == family and row.dims == dims and above < row.rows <= upper]  # fmt: skip
        return sorted(found, key=lambda row: (_gap(row.rows, rows), row.time_us, _name(row)))

    def near(self, kernel: str, site: Site, profile: Profile, rows: int) -> list[Row]:
        """Rows of the kernel, the nearest first: by family, then by distance, then by name (so never by chance)."""
        ranked: list[tuple[tuple[object, ...], Row]] = []
        for table, row in self._alike(kernel, site):
            rank, far = _rank(table, profile), distance(row, timed_dims(site), rows)
            if rank is not None and far is not None:
                ranked.append(((rank, far, table.family, _name(row)), row))
        return [row for _, row in sorted(ranked, key=lambda entry: entry[0])]

    def _alike(self, kernel: str, site: Site) -> Iterator[tuple[Table, Row]]:
        """Rows of the kernel for the site's dtypes and formats."""
        dtypes, kinds = dtype_names(site), formats(site)
        for table, row in self._rows.get((site.op, kernel), ()):
            if row.dtypes == dtypes and row.formats == kinds:
                yield table, row


def _name(row: Row) -> tuple[str, ...]:
    """What settles a tie: the row's key and its launch, as text."""
    return (*row.key, json.dumps(sorted(row.launch.items())))


def _rank(table: Table, profile: Profile) -> tuple[int, float] | None:
    """How near a family is: the profile's own, one of its architecture, one of its vendor; None: another vendor's."""
    if table.family == profile.tuning_family:
        return 0, 0.0
    if table.vendor != profile.vendor:
        return None
    return (1 if table.arch == profile.arch else 2), _gap(table.units or 1, profile.compute.units or 1)


def distance(row: Row, dims: Mapping[str, Scalar], rows: int) -> float | None:
    """Sum of |log ratio| over the sizes and the number of rows; None where one of them is too far or not comparable."""
    if row.dims.keys() != dims.keys():
        return None
    of_rows, of_dims = _gap(row.rows, rows), [_gap(value, dims[name]) for name, value in row.dims.items()]
    if of_rows > math.log(MAX_ROWS_RATIO) + _ROUNDING or max(of_dims, default=0.0) > math.log(MAX_RATIO) + _ROUNDING:
        return None
    return round(of_rows + sum(of_dims), 9)


def _gap(one: Scalar, other: Scalar) -> float:
    """|log ratio| of two sizes above 0; flags, words and 0 are the same or a world apart."""
    if one == other:
        return 0.0
    if not (_is_size(one) and _is_size(other)):
        return math.inf
    low, high = sorted((float(one), float(other)))  # type: ignore[arg-type]
    return math.log(high / low)


def _is_size(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def load(folder: Path) -> list[Table]:
    """Every file of a folder laid out as `<family>/<op>.json`."""
    return [read(path) for path in sorted(folder.glob("*/*.json"))]


def tables() -> tuple[Table, ...]:
    """Every table of this package and those that other packages bring."""
    folders = [FOLDER, *(Path(each) for each in plugins("tuned").values())]
    return tuple(table for folder in folders for table in load(folder))


@cache
def found() -> Tuned:
    """All their rows."""
    return Tuned(tables())
