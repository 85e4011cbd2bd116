"""Tables as kubectl and squeue print them: columns of text, no lines drawn.

A pipe gets every cell whole; a terminal gets lines of its width, by shortening the columns
that may be shortened, the widest first. Cells are `Cell`s or plain strings.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.cli.terminal import styled

GAP = "  "
NARROWEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    is_number: bool = False  # to the right
    is_flexible: bool = False  # may be shortened on a terminal
    is_wide: bool = False  # only with -o wide


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
    picked = [columns[i] for i in shown]
    cells = [[_cell(row[i]) for i in shown] for row in rows]
    widths = [
        max([len(column.title), *(_width(row[i].text) for row in cells)])
        for i, column in enumerate(picked)
    ]
    if width is not None:
        widths = _fitted(picked, widths, width)
    header = [Cell(column.title, "bold") for column in picked]
    return [_line(picked, row, widths) for row in [header, *cells]]


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


def _fitted(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """Take what is too much from the widest flexible column, then from the next."""
    fitted = list(widths)
    excess = sum(fitted) + len(GAP) * (len(fitted) - 1) - width
    flexible = [i for i, column in enumerate(columns) if column.is_flexible]
    while excess > 0:
        widest = max(flexible, key=lambda i: fitted[i], default=None)
        if widest is None or fitted[widest] <= NARROWEST:
            break
        fitted[widest] -= 1
        excess -= 1
    return fitted


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
