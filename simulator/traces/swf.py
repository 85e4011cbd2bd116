"""The Standard Workload Format of the Parallel Workloads Archive (Feitelson, Tsafrir, Krakov,
JPDC 74(10), 2014).

Lines of 18 numbers, -1 for unknown, after comments that begin with `;`. The logs know no GPUs:
a processor becomes a GPU, or with `processors_are_gpus` off a core, so that their arrivals,
sizes and times can be tried here.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from scheduler.core.model import MILLI, JobPhase, Role, Shape
from simulator.traces.format import Assumptions, Format
from simulator.traces.jobs import Facts, gpu_gang, job_of, role_of, tasks_of
from simulator.traces.source import Opening, Source, TraceError
from simulator.workload import TraceJobs

_FIELDS = (
    "job", "submit", "wait", "run", "processors", "cpu_time", "memory", "asked_processors",
    "asked_time", "asked_memory", "status", "user", "group", "program", "queue", "partition",
    "preceding", "think_time",
)  # fmt: skip
_ENDS = {0: JobPhase.FAILED, 1: JobPhase.SUCCEEDED, 5: JobPhase.CANCELLED}
_PARTS = frozenset({2, 3, 4})  # of a job that also has a line of its own
_KIB_PER_MIB = 1024


class _Line(NamedTuple):
    """The fields that matter."""

    job: int
    submit: float
    run: float
    processors: int
    asked_processors: int
    asked_time: float
    asked_memory: float
    status: int
    user: int
    queue: int


_PLACES = tuple(_FIELDS.index(name) for name in _Line._fields)


def _read(source: Source, assume: Assumptions) -> TraceJobs:
    begins_at_s = 0.0
    for number, text in source.lines():
        if text.startswith(";"):
            begins_at_s = _unix_start(source, number, text) or begins_at_s
        elif cells := text.split():
            line = _parsed(source, number, cells)
            if why := _left_out(line):
                source.skipped[why] += 1
            else:
                yield job_of(_facts(line, begins_at_s, assume), assume)


def _facts(line: _Line, begins_at_s: float, assume: Assumptions) -> Facts:
    return Facts(
        key=str(line.job),
        at_s=begins_at_s + line.submit,
        run_s=line.run,
        roles=_roles(line, assume),
        ends_as=_ENDS.get(line.status, JobPhase.SUCCEEDED),
        queue=f"queue-{line.queue}" if line.queue >= 0 else "default",
        submitter=f"user-{line.user}" if line.user >= 0 else "",
        estimate_s=max(0.0, line.asked_time),
    )


def _roles(line: _Line, assume: Assumptions) -> tuple[Role, ...]:
    n_processors = _n_processors(line)
    if assume.processors_are_gpus:
        return gpu_gang(n_processors, assume)
    n_tasks, per_task = tasks_of(n_processors, assume.gpus_per_node)
    memory_mib = round(max(0.0, line.asked_memory) / _KIB_PER_MIB) * per_task
    return (role_of(n_tasks, Shape(cpu_milli=per_task * MILLI, memory_mib=memory_mib)),)


def _n_processors(line: _Line) -> int:
    return line.asked_processors if line.asked_processors > 0 else line.processors


def _left_out(line: _Line) -> str:
    if line.status in _PARTS:
        return "part of a job that was interrupted"
    if line.run <= 0:
        return "did not run"
    return "" if _n_processors(line) > 0 else "number of processors unknown"


def _parsed(source: Source, number: int, cells: Sequence[str]) -> _Line:
    if len(cells) != len(_FIELDS):
        raise source.error(
            f"{len(cells)} fields where there should be {len(_FIELDS)}", line=number
        )
    values = []
    for place in _PLACES:
        try:
            value = float(cells[place])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _not_a_number(source, number, place, cells[place])
        values.append(value)
    job, submit, run, given, asked, time, memory, status, user, queue = values
    return _Line(
        int(job), submit, run, int(given), int(asked), time, memory,
        int(status), int(user), int(queue),
    )  # fmt: skip


def _not_a_number(source: Source, number: int, place: int, cell: str) -> TraceError:
    column = f"field {place + 1} ({_FIELDS[place]})"
    return source.error(f"{cell!r} is not a number", line=number, column=column)


def _unix_start(source: Source, number: int, comment: str) -> float:
    name, _, value = comment.lstrip("; ").partition(":")
    if name != "UnixStartTime":
        return 0.0
    try:
        begins_at_s = float(value)
    except ValueError:
        begins_at_s = math.nan
    if not math.isfinite(begins_at_s):
        message = f"{value.strip()!r} is not a number"
        raise source.error(message, line=number, column="UnixStartTime")
    return begins_at_s


def _recognises(shown: Opening) -> bool:
    if shown.name.endswith(".swf"):
        return True
    lines = [line.split() for line in shown.head if line and not line.startswith(";")]
    same = all(len(a) == len(b) for a, b in pairwise(lines))
    return bool(lines) and same and len(lines[0]) == len(_FIELDS) and _are_numbers(lines[0])


def _are_numbers(cells: Sequence[str]) -> bool:
    return all(cell.lstrip("-").replace(".", "", 1).isdigit() for cell in cells)


FORMAT = Format(
    name="swf",
    title="Standard Workload Format of the Parallel Workloads Archive",
    recognises=_recognises,
    read=_read,
)
