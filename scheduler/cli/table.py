"""Tables as kubectl and squeue print them: columns of text, no lines drawn.

A pipe gets every cell whole; a terminal gets lines of its width, by shortening columns, the
widest first, and by leaving out some that say the same in every row.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.cli.terminal import styled

GAP = "  "
NARROWEST = 8
COMFORTABLE = 24
"""Before flexible columns get narrower than this, columns that say nothing new go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    is_number: bool = False  # to the right
    is_flexible: bool = False  # may be shortened on a terminal
    is_wide: bool = False  # only with -o wide
    may_go: bool = False  # on a narrow terminal, if it says the same in every row


@dataclass(frozen=True, slots=True)
class Cell:
    """A text with a style for terminals."""

    text: str
    style: str = ""


Row = Sequence[Cell | str]


def table_lines(
    columns: Sequence[Column], rows: Iterable[Row], *, width: int | None, is_wide: bool = False
) -> list[str]:
    """Return the header and a line for each row; rows have a cell for every column."""
    shown = [i for i, column in enumerate(columns) if is_wide or not column.is_wide]
    cells = [[_cell(cell) for cell in row] for row in rows]
    widths = _natural_widths(columns, shown, cells)
    if width is not None and not is_wide:
        shown = _fitting(columns, shown, cells, widths=widths, width=width)
        _shorten(columns, shown, widths, width=width)
    picked = [columns[i] for i in shown]
    header = [Cell(column.title, "bold") for column in picked]
    body = [[row[i] for i in shown] for row in cells]
    return [_line(picked, row, [widths[i] for i in shown]) for row in [header, *body]]


def folded_lines(
    columns: Sequence[Column], rows: Iterable[Row], *, width: int | None
) -> list[str]:
    """Return a table of figures; on a narrow terminal as several below each other.

    Each begins with the first column, whole as far as that leaves room for the others.
    """
    whole = list(rows)
    lines: list[str] = []
    for fold in _folds(columns, whole, width):
        if lines:
            lines.append("")
        picked: list[Row] = [[row[i] for i in fold] for row in whole]
        lines += table_lines([columns[i] for i in fold], picked, width=width)
    return lines


def _folds(
    columns: Sequence[Column], rows: Sequence[Row], width: int | None
) -> list[list[int]]:
    """Return the columns of each table, by number."""
    if width is None:
        return [list(range(len(columns)))]
    cells = [[_cell(cell) for cell in row] for row in rows]
    widths = _natural_widths(columns, range(len(columns)), cells)
    widths[0] = min(widths[0], width // 2)
    folds = [[0]]
    for i in range(1, len(columns)):
        if len(folds[-1]) > 1 and _total([*folds[-1], i], widths) > width:
            folds.append([0])
        folds[-1].append(i)
    return folds


def _natural_widths(
    columns: Sequence[Column], shown: Iterable[int], cells: Sequence[Sequence[Cell]]
) -> dict[int, int]:
    """Return how wide each column shown would be if there was room, by number."""
    return {
        i: max([len(columns[i].title), *(_width(row[i].text) for row in cells)]) for i in shown
    }


def _fitting(
    columns: Sequence[Column],
    shown: Sequence[int],
    cells: Sequence[Sequence[Cell]],
    *,
    widths: Mapping[int, int],
    width: int,
) -> list[int]:
    """Return the columns without those that may go, as far as there are too many."""
    kept = list(shown)
    widths = {
        i: min(widths[i], COMFORTABLE) if columns[i].is_flexible else widths[i] for i in shown
    }
    for i in shown:
        is_same = len({row[i].text for row in cells}) <= 1
        if columns[i].may_go and is_same and _total(kept, widths) > width:
            kept.remove(i)
    return kept


def _total(shown: Sequence[int], widths: Mapping[int, int]) -> int:
    return sum(widths[i] for i in shown) + len(GAP) * (len(shown) - 1)


def _cell(value: Cell | str) -> Cell:
    cell = value if isinstance(value, Cell) else Cell(value)
    text = cell.text or "-"
    return Cell("".join(c if c.isprintable() else " " for c in text), cell.style)


def _line(columns: Sequence[Column], row: Sequence[Cell], widths: Sequence[int]) -> str:
    parts: list[str] = []
    for i, (column, cell, width) in enumerate(zip(columns, row, widths, strict=True)):
        text = _shortened(cell.text, width)
        padding = " " * (width - _width(text))
        if column.is_number:
            parts.append(padding + styled(text, cell.style))
        elif i == len(columns) - 1:
            parts.append(styled(text, cell.style))
        else:
            parts.append(styled(text, cell.style) + padding)
    return GAP.join(parts).rstrip()


def _shorten(
    columns: Sequence[Column], shown: Sequence[int], widths: dict[int, int], *, width: int
) -> None:
    """Take what is too much from the widest flexible column, then from the next."""
    excess = _total(shown, widths) - width
    flexible = [i for i in shown if columns[i].is_flexible]
    while excess > 0:
        widest = max(flexible, key=lambda i: widths[i], default=None)
        if widest is None or widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
        excess -= 1


def _shortened(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    kept = ""
    for character in text:
        if _width(kept + character) >= width:
            break
        kept += character
    return kept + "…"


def _width(text: str) -> int:
    """Return the columns a text takes: two for wide characters of East Asian scripts."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
