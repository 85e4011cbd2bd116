"""The formats of traces, and reading a file in whichever of them it is.

    from simulator.traces import read_trace

    for job in read_trace("cluster_log.csv"):
        ...

A format is told by its header or by the name of its file; a new one is a module with a
`FORMAT`, or several `FORMATS`, and a line here.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from scheduler.core.errors import InvalidInput
from simulator.traces.format import Assumptions, Format
from simulator.traces.rules import check_roles, check_times
from simulator.traces.source import Opening, Source, TraceError, opening
from simulator.workload import TraceJobs

_MODULES = (
    "simulator.traces.own",
    "simulator.traces.journal",
    "simulator.traces.philly",
    "simulator.traces.slurm",
    "simulator.traces.pai",
    "simulator.traces.kubernetes",
    "simulator.traces.prometheus",
    "simulator.traces.swf",
    "simulator.traces.gavel",
    "simulator.traces.pollux",
    "simulator.traces.openb",
)
"""In the order in which they are asked whether they recognise a file."""

MOST_TASKS = 1_000_000
"""Tasks of one job: a trace that says more is mistaken, and each takes memory."""


@cache
def formats() -> tuple[Format, ...]:
    """Return every known format, in the order in which they are asked."""
    return tuple(found for module in _MODULES for found in _formats_of(import_module(module)))


def _formats_of(module: ModuleType) -> tuple[Format, ...]:
    found: tuple[Format, ...] = getattr(module, "FORMATS", None) or (module.FORMAT,)
    return found


def recognise(path: Path | str) -> Format:
    """Return the format of a file; `TraceError` if no reader, or more than one, knows it."""
    path = Path(path)
    shown = opening(path)
    found = [candidate for candidate in formats() if candidate.recognises(shown)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(candidate.name for candidate in found)
        raise TraceError(f"could be {names}; say which", path=path)
    raise TraceError(_unknown(shown, formats()), path=path)


def format_named(name: str, path: Path | str = "") -> Format:
    """Return the format of that name."""
    for candidate in formats():
        if candidate.name == name:
            return candidate
    names = ", ".join(candidate.name for candidate in formats())
    raise TraceError(f"there is no format {name!r}; there are {names}", path=Path(path))


def read_trace(
    path: Path | str,
    format: str | None = None,  # noqa: A002  # what everybody calls it
    *,
    assume: Assumptions | None = None,
    skipped: Counter[str] | None = None,
) -> TraceJobs:
    """Yield the jobs of a trace by rising `at_s`, in the trace's own time.

    Reads as it is asked for jobs; only files that are not in order are sorted first, on disk.
    `skipped`, if given, counts what is left out, by reason. Raises `TraceError`.
    """
    path = Path(path)
    chosen = format_named(format, path) if format else recognise(path)
    source = Source(path, skipped if skipped is not None else Counter())
    return _in_order(chosen.read(source, assume or Assumptions()), source)


def _in_order(jobs: TraceJobs, source: Source) -> TraceJobs:
    latest_s = -math.inf
    for job in jobs:
        if not job.at_s >= latest_s:
            raise source.error(
                f"job {job.key!r} comes at {job.at_s:.15g} after one at {latest_s:.15g}:"
                " jobs must stand in the order of their arrival"
            )
        latest_s = job.at_s
        n_tasks = job.spec.n_tasks * max(job.spec.array_size, 1)
        if n_tasks > MOST_TASKS:
            rule = f"has {n_tasks:,} tasks, of which there are at most {MOST_TASKS:,}"
            raise source.error(f"job {job.key!r} {rule}")
        try:
            check_times(job)
            check_roles(job.spec.roles)
        except InvalidInput as error:
            raise source.error(f"job {job.key!r}: {error}") from error
        yield job


def _unknown(shown: Opening, known: Sequence[Format]) -> str:
    beginning = shown.columns or shown.head[:1]
    names = ", ".join(candidate.name for candidate in known)
    if not beginning:
        return "the file is empty"
    start = ",".join(beginning)[:120]
    return f"no format is known that begins with {start!r}; there are {names}"
