"""Microsoft's Philly (Jeon et al., ATC '19), in its two published forms.

- `cluster_job_log`, a JSON list of jobs with their attempts. A job works for the time of all
  its attempts, on the GPUs of the last one; where they were is not asked for again.
- The GPU jobs of it as CSV, `timestamp, duration, num_gpus, gpu_time, cluster` (Helios and Sia
  ship it): without users and endings.

Virtual clusters become queues. Moments are Pacific time, read as if they were UTC.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import msgspec

from scheduler.core.model import JobPhase
from simulator.traces.format import Assumptions, Format
from simulator.traces.jobs import Facts, gpu_gang, job_of
from simulator.traces.order import by_time
from simulator.traces.source import Opening, Row, Source
from simulator.workload import TraceJobs

_CSV = ("timestamp", "duration", "num_gpus", "cluster")
_ENDS = {"Pass": JobPhase.SUCCEEDED, "Killed": JobPhase.CANCELLED, "Failed": JobPhase.FAILED}


def _read_csv(source: Source, assume: Assumptions) -> TraceJobs:
    for at_s, row in by_time(source.rows(), lambda row: row.moment("timestamp")):
        facts = Facts(
            key=f"line-{row.line}",
            at_s=at_s,
            run_s=row.amount("duration"),
            roles=gpu_gang(row.amount("num_gpus"), assume),
            queue=row.text("cluster"),
        )
        if facts.run_s > 0:
            yield job_of(facts, assume)
        else:
            source.skipped["did not run"] += 1


class _Server(msgspec.Struct):
    ip: str
    gpus: list[str]


class _Attempt(msgspec.Struct):
    start_time: str | None
    end_time: str | None
    detail: list[_Server] = []


class _Job(msgspec.Struct):
    jobid: str
    status: str
    vc: str
    attempts: list[_Attempt]
    submitted_time: Annotated[str, msgspec.Meta(min_length=1)]
    user: str | None = None


_CELLS = ("at_s", "run_s", "gpus", "jobid", "status", "vc", "user")
_COLUMNS = {name: place for place, name in enumerate(_CELLS)}


def _read_log(source: Source, assume: Assumptions) -> TraceJobs:
    for at_s, row in by_time(_log_rows(source), lambda row: row.number("at_s")):
        facts = Facts(
            key=row.text("jobid"),
            at_s=at_s,
            run_s=row.amount("run_s"),
            roles=gpu_gang(row.amount("gpus"), assume),
            ends_as=_ENDS[row.text("status")],
            queue=row.text("vc"),
            submitter=row.text("user", ""),
        )
        yield job_of(facts, assume)


def _log_rows(source: Source) -> Iterator[Row]:
    """Yield what matters of each job that ran and ended, in a row of one's own columns."""
    for line, value in source.objects():
        try:
            job = msgspec.convert(value, _Job)
        except msgspec.ValidationError as error:
            raise source.error(str(error), line=line) from error
        if job.status not in _ENDS:
            message = f"{job.status!r} is none of {', '.join(_ENDS)}"
            raise source.error(message, line=line, column="status")
        attempts = [attempt for attempt in job.attempts if _is_known(attempt)]
        run_s = sum(_run_s(source, line, attempt) for attempt in attempts)
        if run_s <= 0:
            source.skipped["did not run, or no attempt has both its times"] += 1
        elif not (n_gpus := sum(len(server.gpus) for server in attempts[-1].detail)):
            source.skipped["number of GPUs unknown"] += 1
        else:
            at_s = _moment(source, line, job.submitted_time)
            cells = (at_s, run_s, n_gpus, job.jobid, job.status, job.vc, job.user)
            yield Row(source, line, _COLUMNS, cells)


def _is_known(attempt: _Attempt) -> bool:
    return not {attempt.start_time, attempt.end_time} & {None, "None", ""}


def _run_s(source: Source, line: int, attempt: _Attempt) -> float:
    begin_s = _moment(source, line, attempt.start_time or "")
    return max(0.0, _moment(source, line, attempt.end_time or "") - begin_s)


def _moment(source: Source, line: int, text: str) -> float:
    try:
        return datetime.fromisoformat(f"{text}+00:00").timestamp()
    except ValueError:
        raise source.error(f"{text!r} is not a moment", line=line) from None


def _is_log(shown: Opening) -> bool:
    return shown.begins_with("[") and shown.mentions('"jobid"', '"attempts"')


FORMATS = (
    Format(
        name="philly",
        title="Philly's GPU jobs as CSV (Microsoft, ATC '19)",
        recognises=lambda shown: shown.has_columns(*_CSV),
        read=_read_csv,
    ),
    Format(
        name="philly-log",
        title="Philly's cluster_job_log as JSON (Microsoft, ATC '19)",
        recognises=_is_log,
        read=_read_log,
    ),
)
