"""Run every benchmark, each in its own process, then show all their figures as one table."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
RUNS = '\nif __name__ == "__main__":\n'
"""What a benchmark ends with; the other files are what several of them use."""


def main() -> int:
    """Return 1 if a benchmark crashed; a missed goal is a figure, not a crash."""
    rows: list[dict[str, Any]] = []
    crashed: list[str] = []
    for path in sorted(HERE.glob("[!_]*.py")):
        if RUNS not in path.read_text():
            continue
        lines, returncode = _run(path)
        rows += lines
        if returncode:
            crashed.append(path.name)
    Console(width=None if sys.stdout.isatty() else 160).print(_table(rows))
    if crashed:
        print(f"crashed: {', '.join(crashed)}", file=sys.stderr)
    return 1 if crashed else 0


def _run(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Run one benchmark, passing its lines on as they come."""
    rows = []
    with subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith('{"benchmark"'):
                rows.append(json.loads(line))
    return rows, process.returncode


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Lepton benchmarks")
    for heading in ("benchmark", "case", "size"):
        table.add_column(heading)
    for heading in ("value", "baseline", "ratio", "goal"):
        table.add_column(heading, justify="right")
    table.add_column("met")
    for row in rows:
        table.add_row(
            row["benchmark"],
            row["case"],
            row["size"],
            f"{row['value']:,g} {row['unit']}",
            _baseline(row),
            _number(row["ratio"]),
            _goal(row),
            {True: "[green]yes", False: "[bold red]no", None: ""}[row["met"]],
        )
    return table


def _baseline(row: dict[str, Any]) -> str:
    return f"{row['baseline_value']:,g} {row['baseline']}" if row["baseline"] else ""


def _goal(row: dict[str, Any]) -> str:
    if row["goal"] is None:
        return ""
    return f"{'≥' if row['better'] == 'higher' else '≤'} {row['goal']:,g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,g}"


if __name__ == "__main__":
    sys.exit(main())
