"""Compute the published results again: `python -m simulator.reproduction`, or `make reproduce`.

Tasks run in processes beside each other, the longest first. Writes a document for people and
one for programs; says so and ends with status 2 if the data are not there, 1 if a figure is
not what it should be.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from joblib import Parallel, delayed  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from simulator.reproduction.comparison import Comparison, Table, Task, tables
from simulator.reproduction.document import as_json, markdown, verdict

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
NO_DATA = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute the tables and write the documents; return the status to exit with."""
    args = _parser().parse_args(arguments)
    console = Console(stderr=True)
    wanted = [table for table in tables() if not args.tables or table.number in args.tables]
    missing = [
        args.data / t.data for t in wanted if t.data and not (args.data / t.data).is_dir()
    ]
    if missing:
        listed = ", ".join(str(path) for path in missing)
        console.print(f"no data in {listed}: name their folder with --data", style="red")
        return NO_DATA
    tasks = [(table, task) for table in wanted for task in table.tasks(args.data / table.data)]
    found = kept([task for _, task in tasks], args.keep)
    if not args.kept_only:
        compute_rest(tasks, found, n_jobs=args.jobs, console=console, keep=args.keep)
    missing_parts = [task.title for n, (_, task) in enumerate(tasks) if n not in found]
    results = by_table(tasks, found)
    shown = _shown(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "reproduction.md").write_text(
        markdown(results, wanted, data=shown, missing=missing_parts)
    )
    (args.out / "reproduction.json").write_text(
        as_json(results, wanted, data=shown, missing=missing_parts)
    )
    console.print(f"{verdict(results)} See {args.out / 'reproduction.md'}.")
    claims = [row.holds for rows in results.values() for row in rows]
    return 1 if False in claims else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulator.reproduction", description=__doc__
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the published data")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder to write to")
    parser.add_argument("--jobs", type=int, default=2, help="processes beside each other")
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder of what tasks found; what is there already is not computed again",
    )
    parser.add_argument(
        "--kept-only", action="store_true", help="compute nothing; write what --keep has"
    )
    parser.add_argument("--tables", type=int, nargs="*", help="their numbers; otherwise all")
    return parser


def _shown(data: Path) -> str:
    """Return the folder as the document names it: from the project, if it is beside it."""
    return "`../shared/data`" if data.resolve() == DATA else f"`{data}`"


Parts = Sequence[tuple[Table, Task]]
Found = dict[int, Sequence[Comparison]]
"""What each task found, by its place among all."""


def kept(tasks: Sequence[Task], keep: Path | None) -> Found:
    """Return what earlier runs kept."""
    if keep is None:
        return {}
    return {
        place: msgspec.json.decode(path.read_bytes(), type=list[Comparison])
        for place, task in enumerate(tasks)
        if (path := _kept_at(keep, task)).exists()
    }


def compute_rest(
    tasks: Parts, found: Found, *, n_jobs: int, console: Console, keep: Path | None = None
) -> None:
    """Run the tasks of which nothing is found, the longest first, and keep what they find."""
    due = [place for place in range(len(tasks)) if place not in found]
    due.sort(key=lambda place: -tasks[place][1].cost_s)
    bars = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*bars, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("computing", total=len(tasks), completed=len(found))
        for place, rows, took_s in _run_all(
            [(place, tasks[place][1]) for place in due], n_jobs
        ):
            found[place] = rows
            table, task = tasks[place]
            progress.console.print(f"{table.number}. {task.title}: {took_s:.1f} s CPU")
            progress.advance(bar)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                _kept_at(keep, task).write_bytes(msgspec.json.encode(rows))


def by_table(tasks: Parts, found: Found) -> dict[int, Sequence[Comparison]]:
    """Return what was found, by the number of the table, in the order of the tasks."""
    rows: dict[int, list[Comparison]] = {table.number: [] for table, _ in tasks}
    for place, (table, _) in enumerate(tasks):
        rows[table.number] += found.get(place, ())
    summarised = {table.number: table.summarise for table, _ in tasks}
    return {number: summarised[number](listed) for number, listed in rows.items()}


def _kept_at(folder: Path, task: Task) -> Path:
    return folder / f"{re.sub('[^a-z0-9_]+', '-', task.title.lower())}.json"


def _run_all(
    tasks: Sequence[tuple[int, Task]], n_jobs: int
) -> Iterator[tuple[int, Sequence[Comparison], float]]:
    run = Parallel(
        n_jobs=n_jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="all"
    )
    yield from run(delayed(_run_one)(place, task) for place, task in tasks)


def _run_one(place: int, task: Task) -> tuple[int, Sequence[Comparison], float]:
    before_s = time.process_time()
    rows = task.compute(*task.arguments)
    return place, rows, time.process_time() - before_s


if __name__ == "__main__":
    sys.exit(main())
