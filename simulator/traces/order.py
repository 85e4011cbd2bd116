"""Rows by time or by name, for files that are not: sorted in runs on disk, then merged."""

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import msgspec

from simulator.traces.source import Row

ROWS_IN_MEMORY = 50_000

Item = tuple[float | str, int, list[str]]
"""What a row is sorted by, its line, its cells."""


def by_time(
    rows: Iterable[Row], moment: Callable[[Row], float], *, in_memory: int = ROWS_IN_MEMORY
) -> Iterator[tuple[float, Row]]:
    """Yield (moment, row) by rising moment, equal ones in the order of the file.

    Keeps at most about `in_memory` rows in memory; more go through a temporary folder.
    """
    for at_s, row in _ordered(rows, moment, in_memory):
        assert isinstance(at_s, float)
        yield at_s, row


def by_name(rows: Iterable[Row], column: str) -> Iterator[tuple[str, Row]]:
    """Yield (name, row) by the text of a column, equal ones in the order of the file."""
    for name, row in _ordered(rows, lambda row: row.text(column), ROWS_IN_MEMORY):
        assert isinstance(name, str)
        yield name, row


def _ordered(
    rows: Iterable[Row], key: Callable[[Row], float | str], in_memory: int
) -> Iterator[tuple[float | str, Row]]:
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    source, columns = first.source, first.columns
    for found, line, cells in _sorted(_items(chain([first], rows), key), in_memory):
        yield found, Row(source, line, columns, cells)


def _items(rows: Iterable[Row], key: Callable[[Row], float | str]) -> Iterator[Item]:
    for row in rows:
        yield key(row), row.line, ["" if c is None else str(c) for c in row.cells]


def _sorted(items: Iterator[Item], in_memory: int) -> Iterator[Item]:
    run = sorted(islice(items, in_memory), key=_place)
    if len(run) < in_memory:
        yield from run
        return
    with tempfile.TemporaryDirectory(prefix="lepton-trace-") as folder:
        paths: list[Path] = []
        while run:
            path = Path(folder) / str(len(paths))
            _store(run, path)
            paths.append(path)
            run = sorted(islice(items, in_memory), key=_place)
        yield from heapq.merge(*map(_stored, paths), key=_place)


def _place(item: Item) -> tuple[float | str, int]:
    return item[0], item[1]


def _store(run: list[Item], path: Path) -> None:
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for item in run:
            file.write(encoder.encode(item) + b"\n")


def _stored(path: Path) -> Iterator[Item]:
    decoder = msgspec.json.Decoder(tuple[float | str, int, list[str]])
    with path.open("rb") as file:
        for line in file:
            yield decoder.decode(line)
