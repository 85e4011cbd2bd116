"""Rows in order of time, for files that are not: sorted in runs on disk, then merged."""

import heapq
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from simulator.traces.source import Row

ROWS_IN_MEMORY = 50_000

_Item = tuple[float, int, list[str]]


def by_time(
    rows: Iterator[Row], moment: Callable[[Row], float], *, in_memory: int = ROWS_IN_MEMORY
) -> Iterator[tuple[float, Row]]:
    """Yield (moment, row) by rising moment, equal ones in the order of the file.

    Keeps at most about `in_memory` rows in memory; more go through a temporary folder.
    """
    first = next(rows, None)
    if first is None:
        return
    source, columns = first.source, first.columns
    items = _keyed(_chain(first, rows), moment)
    run = sorted(islice(items, in_memory))
    if len(run) < in_memory:
        merged: Iterator[_Item] = iter(run)
        yield from ((at_s, Row(source, line, columns, cells)) for at_s, line, cells in merged)
        return
    with tempfile.TemporaryDirectory(prefix="lepton-trace-") as folder:
        paths: list[Path] = []
        while run:
            path = Path(folder) / str(len(paths))
            _store(run, path)
            paths.append(path)
            run = sorted(islice(items, in_memory))
        for at_s, line, cells in heapq.merge(*map(_stored, paths)):
            yield at_s, Row(source, line, columns, cells)


def _chain(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _keyed(rows: Iterator[Row], moment: Callable[[Row], float]) -> Iterator[_Item]:
    for row in rows:
        yield moment(row), row.line, ["" if c is None else str(c) for c in row.cells]


def _store(run: list[_Item], path: Path) -> None:
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for item in run:
            file.write(encoder.encode(item) + b"\n")


def _stored(path: Path) -> Iterator[_Item]:
    decoder = msgspec.json.Decoder(tuple[float, int, list[str]])
    with path.open("rb") as file:
        for line in file:
            yield decoder.decode(line)
