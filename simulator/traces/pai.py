"""Alibaba's PAI 2020 (Weng et al., NSDI '22): `pai_task_table.csv`, and beside it, if it is
there, `pai_job_table.csv` for users and moments of submission.

A task of PAI is a role here, its instances are the role's tasks. A job runs from its first
task's start to its last task's end. Requests are in percent of a core and of a GPU, and in GB;
files come without a header. GPU types are those that were given, so a job asks for them only
with `keeps_gpu_types`.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from scheduler.core.model import MILLI, JobPhase, Role, Shape
from simulator.traces.format import Assumptions, Format
from simulator.traces.jobs import Facts, job_of, role_of
from simulator.traces.order import by_name, by_time
from simulator.traces.source import Opening, Row, Source, opening
from simulator.workload import TraceJobs

_TASKS = ("job_name", "task_name", "inst_num", "status", "start_time", "end_time", "plan_cpu",
          "plan_mem", "plan_gpu", "gpu_type")  # fmt: skip
_JOBS = ("job_name", "inst_id", "user", "status", "start_time", "end_time")
_ENDS = {"Terminated": JobPhase.SUCCEEDED, "Failed": JobPhase.FAILED}
_MILLI_PER_PERCENT = 10
_MIB_PER_GIB = 1024

_Known = tuple[str, float]  # user, submission
_CELLS = ("job", "at_s", "run_s", "end", "user", "tasks")
_COLUMNS = {name: place for place, name in enumerate(_CELLS)}
_FIELD, _RECORD = "\x1f", "\x1e"  # between the parts of a task, and between tasks


def _read(source: Source, assume: Assumptions) -> TraceJobs:
    """Group tasks by job, then order jobs by time: both on disk where they are many."""
    for at_s, row in by_time(_jobs(source), lambda row: row.number("at_s")):
        facts = Facts(
            key=row.text("job"),
            at_s=at_s,
            run_s=row.amount("run_s"),
            roles=tuple(_role(text, assume) for text in row.text("tasks").split(_RECORD)),
            ends_as=JobPhase(row.text("end")),
            submitter=row.text("user", ""),
        )
        yield job_of(facts, assume)


def _jobs(source: Source) -> Iterator[Row]:
    """Yield a row per job that ran and ended, by its name."""
    known = _known_jobs(source)
    held: tuple[str, _Known] | None = next(known, None)
    tasks = by_name(_rows(source, _TASKS), "job_name")
    for name, group in groupby(tasks, key=itemgetter(0)):
        while held is not None and held[0] < name:
            held = next(known, None)
        rows = [row for _, row in group]
        why = _left_out(rows)
        if why:
            source.skipped[why] += 1
            continue
        user, asked_at_s = held[1] if held is not None and held[0] == name else ("", None)
        yield _job_row(source, rows, user, asked_at_s)


def _job_row(source: Source, rows: list[Row], user: str, asked_at_s: float | None) -> Row:
    begin_s = min(row.number("start_time") for row in rows)
    end_s = max(row.number("end_time") for row in rows)
    is_ok = all(row.text("status") == "Terminated" for row in rows)
    end = JobPhase.SUCCEEDED if is_ok else JobPhase.FAILED
    at_s = begin_s if asked_at_s is None else min(asked_at_s, begin_s)
    tasks = _RECORD.join(_task_text(row) for row in rows)
    cells = (rows[0].text("job_name"), at_s, end_s - begin_s, end.value, user, tasks)
    return Row(source, rows[0].line, _COLUMNS, cells)


def _left_out(rows: Iterable[Row]) -> str:
    begin_s, end_s = math.inf, -math.inf
    for row in rows:
        if row.text("status") not in _ENDS:
            return "did not end"
        if not (row.has("start_time") and row.has("end_time")):
            return "moments unknown"
        begin_s = min(begin_s, row.number("start_time"))
        end_s = max(end_s, row.number("end_time"))
    return "" if end_s > begin_s else "did not run"


def _task_text(row: Row) -> str:
    parts = (
        row.text("task_name"),
        str(int(row.amount("inst_num", 1.0))),
        str(round(row.amount("plan_cpu", 100.0) * _MILLI_PER_PERCENT)),
        str(round(row.amount("plan_mem", 0.0) * _MIB_PER_GIB)),
        str(round(row.amount("plan_gpu", 0.0) * _MILLI_PER_PERCENT)),
        row.text("gpu_type", ""),
    )
    return _FIELD.join(parts)


def _role(text: str, assume: Assumptions) -> Role:
    name, n_tasks, cpu_milli, memory_mib, gpu_milli, gpu_type = text.split(_FIELD)
    milli = int(gpu_milli)
    is_part = 0 < milli < MILLI
    shape = Shape(
        cpu_milli=max(1, int(cpu_milli)),
        memory_mib=int(memory_mib),
        gpus=0 if is_part else math.ceil(milli / MILLI),
        gpu_milli=milli if is_part else 0,
        gpu_types=(gpu_type,) if assume.keeps_gpu_types and milli and gpu_type else (),
    )
    return role_of(max(1, int(n_tasks)), shape, name)


def _known_jobs(source: Source) -> Iterator[tuple[str, _Known]]:
    """Yield what the table of jobs beside that of tasks knows, by name."""
    beside = (
        source.path.parent / f"pai_job_table{end}" for end in (".csv", ".csv.gz", ".tar.gz")
    )
    path = next(filter(Path.exists, beside), None)
    if path is not None:
        for name, row in by_name(_rows(Source(path), _JOBS), "job_name"):
            if row.has("start_time"):
                yield name, (row.text("user", ""), row.number("start_time"))


def _rows(source: Source, header: tuple[str, ...]) -> Iterator[Row]:
    has_header = opening(source.path).has_columns(*header)
    return source.rows(() if has_header else header)


def _recognises(shown: Opening) -> bool:
    is_named = shown.name.startswith("pai_task_table")
    return shown.has_columns(*_TASKS) or (is_named and len(shown.columns) == len(_TASKS))


FORMAT = Format(
    name="pai",
    title="Alibaba PAI 2020: pai_task_table.csv, with pai_job_table.csv if it is beside it",
    recognises=_recognises,
    read=_read,
)
