"""Files of a trace as lines and rows, and errors that say where.

Plain, gzip, a gzipped tar of one file, or parquet, told apart by their first bytes. Everything
streams: what is read is not kept. What a row means is left to the readers.
"""

import csv
import gzip
import io
import json
import math
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import msgspec

from scheduler.core.errors import SchedulerError
from scheduler.quantities import MOST

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_HEAD_LINES = 50
_HEAD_CHARACTERS = 65_536
_MAX_LINE = 64 * 1024 * 1024
_ROWS_AT_ONCE = 8_192
_OBJECTS_AT_ONCE = 1024 * 1024
_SEPARATORS = re.compile(r"[\s,\[\]]*")  # between the values of a list, or of many values

Cell = object
"""What stands in a row: text of CSV, a typed value of parquet."""


class TraceError(SchedulerError):
    """A trace does not say what its format asks for; names the file, the line, the column."""

    def __init__(self, message: str, *, path: Path, line: int = 0, column: str = "") -> None:
        where = f"{path}:{line}" if line else str(path)
        super().__init__(": ".join(part for part in (where, column, message) if part))
        self.path = path
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a trace. `skipped` counts, by reason, what a reader leaves out of it."""

    path: Path
    skipped: Counter[str] = field(default_factory=Counter, compare=False)

    def error(self, message: str, *, line: int = 0, column: str = "") -> TraceError:
        """Return the error to raise for something wrong at a place."""
        return TraceError(message, path=self.path, line=line, column=column)

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the lines of a text file with their numbers, without line ends."""
        number = 0
        with self.opened() as text:
            while line := text.readline(_MAX_LINE):
                number += 1
                if len(line) == _MAX_LINE:
                    raise self.error("the line has no end", line=number)
                yield number, line.rstrip("\r\n")

    def text(self) -> str:
        """Return the whole file, for formats that are one document."""
        with self.opened() as text:
            return text.read()

    def objects(self) -> Iterator[tuple[int, Any]]:
        """Yield the values of a JSON list, or of JSON values in a row, with their first lines.

        Reads on until a value is whole, so that a list of gigabytes streams.
        """
        decoder = json.JSONDecoder()
        rest, line, is_over = "", 1, False
        with self.opened() as text:
            while not is_over:
                more = text.read(max(_OBJECTS_AT_ONCE, len(rest)))
                is_over = not more
                rest += more
                place = 0
                while place < len(rest):
                    skipped = _SEPARATORS.match(rest, place)
                    begin = skipped.end() if skipped else place
                    line += rest.count("\n", place, begin)
                    place = begin
                    try:
                        value, end = decoder.raw_decode(rest, begin)
                    except json.JSONDecodeError as error:
                        if (is_over and begin < len(rest)) or len(rest) > _MAX_LINE:
                            raise self._not_json(error, rest, begin, line) from error
                        break
                    if end == len(rest) and not is_over:
                        break  # a number could go on
                    yield line, value
                    line += rest.count("\n", begin, end)
                    place = end
                rest = rest[place:]

    def _not_json(
        self, error: json.JSONDecodeError, text: str, begin: int, line: int
    ) -> TraceError:
        wrong_line = line + text.count("\n", begin, error.pos)
        column = error.pos - text.rfind("\n", 0, error.pos)
        return self.error(error.msg, line=wrong_line, column=f"character {column}")

    def rows(self, header: Sequence[str] = ()) -> Iterator["Row"]:
        """Yield the rows of CSV or parquet; `header` names the columns of a file without."""
        return self._parquet_rows() if is_parquet(self.path) else self._csv_rows(header)

    def _csv_rows(self, header: Sequence[str]) -> Iterator["Row"]:
        with self.opened() as text:
            reader = csv.reader(text)
            first = list(header) or next(reader, [])
            columns = {name.strip(): number for number, name in enumerate(first)}
            if len(columns) < len(first):
                raise self.error("two columns have one name", line=reader.line_num)
            for cells in reader:
                if len(cells) == len(columns):
                    yield Row(self, reader.line_num, columns, cells)
                elif cells:
                    raise self.error(
                        f"{len(cells)} fields where there should be {len(columns)}",
                        line=reader.line_num,
                    )

    def _parquet_rows(self) -> Iterator["Row"]:
        parquet = _parquet_module(self)
        number = 0
        try:
            table = parquet.ParquetFile(self.path)
            names = table.schema_arrow.names
            columns = {name: place for place, name in enumerate(names)}
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                lists = [column.to_pylist() for column in batch.columns]
                for cells in zip(*lists, strict=True):
                    number += 1
                    yield Row(self, number, columns, cells)
        except (OSError, ValueError) as error:  # what pyarrow raises for damage
            raise self.error(f"not readable parquet: {error}", line=number) from error

    @contextmanager
    def opened(self) -> Iterator[TextIO]:
        """Open the file as text; what is wrong with it becomes a `TraceError`."""
        try:
            with open_text(self.path) as text:
                yield text
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 text: {error.reason}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise self.error(f"the compressed file is damaged: {error}") from error
        except csv.Error as error:
            raise self.error(f"not CSV: {error}") from error
        except OSError as error:
            raise self.error(error.strerror or str(error)) from error


@dataclass(slots=True)
class Row:
    """One row with its names. Every reading of a cell checks it and says where it is wrong."""

    source: Source
    line: int
    columns: Mapping[str, int]
    cells: Sequence[Cell]

    def has(self, column: str) -> bool:
        """Return whether the column exists and this row says something there."""
        place = self.columns.get(column)
        return place is not None and self.cells[place] not in ("", None)

    def text(self, column: str, default: str | None = None) -> str:
        """Return the cell as text; without a default it must say something."""
        value = self._cell(column, default)
        return value if isinstance(value, str) else str(value)

    def number(self, column: str, default: float | None = None) -> float:
        """Return the cell as a finite number; without a default it must say something."""
        value = self._cell(column, default)
        try:
            number = float(value)  # type: ignore[arg-type]  # what is no number is caught
        except (TypeError, ValueError):
            raise self.error(f"{value!r} is not a number", column) from None
        if not math.isfinite(number):
            raise self.error(f"{value!r} is not a finite number", column)
        return number

    def amount(self, column: str, default: float | None = None) -> float:
        """Return the cell as a number that is not negative."""
        number = self.number(column, default)
        if number < 0:
            raise self.error(f"{number:g} is negative", column)
        return number

    def whole(self, column: str, default: int | None = None) -> int:
        """Return the cell as a whole number that is not negative."""
        number = self.amount(column, default)
        if number != int(number):
            raise self.error(f"{number:g} is not a whole number", column)
        if number > MOST:
            raise self.error(f"{number:g} is too large", column)
        return int(number)

    def moment(self, column: str) -> float:
        """Return the cell, a number or a date and time (UTC unless it says), as seconds."""
        value = self._cell(column, None)
        if isinstance(value, datetime):
            return _epoch_s(value)
        text = str(value).strip()
        try:
            float(text)  # first: eight digits would be a date, too
        except ValueError:
            pass
        else:
            return self.number(column)
        try:
            return _epoch_s(datetime.fromisoformat(text))
        except ValueError:
            raise self.error(f"{value!r} is not a moment", column) from None

    def error(self, message: str, column: str = "") -> TraceError:
        """Return the error to raise for something wrong in this row."""
        return self.source.error(message, line=self.line, column=column)

    def _cell(self, column: str, default: object) -> Cell:
        place = self.columns.get(column)
        if place is None:
            if default is None:
                raise self.source.error("the column is missing", line=1, column=column)
            return default
        value = self.cells[place]
        if value is None or value == "":
            if default is None:
                raise self.error("empty", column)
            return default
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a file shows first; formats are recognised by it."""

    name: str  # of the file, in lower case, without .gz
    head: tuple[str, ...]  # first lines; none of parquet
    columns: tuple[str, ...]  # of the first line as CSV, or of the parquet schema

    def has_columns(self, *names: str) -> bool:
        """Return whether the header names all of these columns."""
        return set(names) <= set(self.columns)

    def first_object(self) -> dict[str, Any]:
        """Return the first line, or the first element of a list, as a JSON object, or {}."""
        for line in self.head[:1]:
            try:
                value = msgspec.json.decode(line)
            except msgspec.DecodeError:
                return {}
            value = value[0] if isinstance(value, list) and value else value
            return value if isinstance(value, dict) else {}
        return {}

    def begins_with(self, text: str) -> bool:
        """Return whether the file begins so, but for white space."""
        return "".join(self.head[:5]).lstrip().startswith(text)

    def mentions(self, *words: str) -> bool:
        """Return whether all of these words stand in the first lines."""
        text = "\n".join(self.head)
        return all(word in text for word in words)


def opening(path: Path) -> Opening:
    """Look at how a file begins."""
    source = Source(path)
    name = path.name.lower().removesuffix(".gz").removesuffix(".tgz")
    if is_parquet(path):
        parquet = _parquet_module(source)
        try:
            schema = parquet.read_schema(path)
        except (OSError, ValueError) as error:  # what pyarrow raises for damage
            raise source.error(f"not readable parquet: {error}") from error
        return Opening(name=name, head=(), columns=tuple(schema.names))
    with source.opened() as text:
        beginning = text.read(_HEAD_CHARACTERS)
        head = tuple(islice(io.StringIO(beginning, newline=""), _HEAD_LINES))
        lines = tuple(line.rstrip("\r\n") for line in head)
        columns = next(csv.reader(lines[:1]), []) if lines else []
    return Opening(name=name, head=lines, columns=tuple(column.strip() for column in columns))


def is_parquet(path: Path) -> bool:
    """Return whether the file is parquet, by its first bytes."""
    return _first_bytes(path).startswith(_PARQUET)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a file for reading as UTF-8 text, unpacking gzip and a gzipped tar of one file."""
    if not _first_bytes(path).startswith(_GZIP):
        with path.open(encoding="utf-8-sig", newline="") as text:
            yield text
    elif path.name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(path, "r:gz") as archive:
            files = (archive.extractfile(member) for member in archive if member.isfile())
            packed = next((file for file in files if file is not None), None)
            if packed is None:
                raise tarfile.ReadError("there is no file in it")
            yield io.TextIOWrapper(packed, encoding="utf-8-sig", newline="")
    else:
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as text:
            yield text


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise TraceError(error.strerror or str(error), path=path) from error


def _parquet_module(source: Source) -> Any:  # noqa: ANN401  # pyarrow has no types
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise source.error(
            "reading parquet needs pyarrow: pip install 'lepton-scheduler[traces]'"
        ) from error
    return parquet


def _epoch_s(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
