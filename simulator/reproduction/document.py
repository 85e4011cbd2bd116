"""The published results beside ours, as Markdown and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby

import msgspec

from simulator.reproduction.comparison import Comparison, Table

Results = Mapping[int, Sequence[Comparison]]
"""Comparisons by number of their table."""

_HEAD = """\
# Published results, computed again

Written by `make reproduce` (`python -m simulator.reproduction`), from the data in {data}.
Do not edit: run it again. The same figures are in [reproduction.json](reproduction.json).

{verdict}
"""

_MARKS = {True: "yes", False: "**no**", None: ""}


def markdown(
    results: Results, tables: Sequence[Table], *, data: str, missing: Sequence[str] = ()
) -> str:
    """Return the document; `missing` are the parts that were not computed."""
    parts = [_HEAD.format(data=data, verdict=verdict(results))]
    if missing:
        parts.append(f"Not computed in this run: {'; '.join(missing)}.\n")
    known = [table for table in tables if table.number in results]
    parts += [_section(table, results[table.number]) for table in known]
    return "\n".join(parts)


def verdict(results: Results) -> str:
    """Say how many figures are as they should be, and which are not."""
    claims = [row for rows in results.values() for row in rows if row.holds is not None]
    n_held = sum(bool(row.holds) for row in claims)
    line = (
        f"{n_held} of {len(claims)} figures are as published, or better where they are to be."
    )
    missed = [f"{row.case}, {row.figure}" for row in claims if not row.holds]
    return f"{line} Not so: {'; '.join(missed)}." if missed else line


def _section(table: Table, rows: Sequence[Comparison]) -> str:
    lines = [f"## {table.number}. {table.title}", "", f"Published: {table.source}"]
    if table.remarks:
        lines += ["", table.remarks.strip()]
    has_notes = any(row.note for row in rows)
    head = ["case", "figure", "published", "ours", "difference", "allowed", "holds"]
    head += ["remark"] if has_notes else []
    lines += ["", _line(head), _line(["---"] * 2 + ["---:"] * 4 + ["---"] * (len(head) - 6))]
    for case, group in groupby(rows, key=lambda row: row.case):
        for number, row in enumerate(group):
            cells = [case if number == 0 else "", *_cells(row)]
            lines.append(_line(cells + ([row.note] if has_notes else [])))
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Comparison) -> list[str]:
    figure = f"{row.figure}, {row.unit}" if row.unit else row.figure
    return [
        figure,
        "" if row.published is None else number(row.published),
        number(row.ours),
        _difference(row),
        _allowed(row),
        _MARKS[row.holds],
    ]


def _difference(row: Comparison) -> str:
    if row.difference is None:
        return ""
    return f"{row.difference:+.2f}" if row.is_absolute else f"{100 * row.difference:+.2f} %"


def _allowed(row: Comparison) -> str:
    parts = []
    if row.tolerance is not None and row.published is not None:
        bound = f"{row.tolerance:g}" if row.is_absolute else f"{100 * row.tolerance:g} %"
        parts.append(f"± {bound}")
    if row.at_least is not None:
        parts.append(f"≥ {number(row.at_least)}")
    if row.at_most is not None:
        parts.append(f"≤ {number(row.at_most)}")
    return ", ".join(parts)


def number(value: float) -> str:
    """Return a figure with as many digits as matter."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def as_json(
    results: Results, tables: Sequence[Table], *, data: str, missing: Sequence[str] = ()
) -> str:
    """Return the results for programs."""
    document = {
        "format": 1,
        "data": data,
        "missing": list(missing),
        "tables": [
            {
                "number": table.number,
                "title": table.title,
                "source": table.source,
                "figures": [_record(row) for row in results[table.number]],
            }
            for table in tables
            if table.number in results
        ],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1).decode() + "\n"


def _record(row: Comparison) -> dict[str, object]:
    return asdict(row) | {"difference": row.difference, "holds": row.holds}
