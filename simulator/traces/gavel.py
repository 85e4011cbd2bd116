"""Gavel's traces (Narayanan et al., OSDI '20): jobs whose speed depends on the type of GPU.

Two forms: its own, ten fields between tabs without a header, and CSV with the columns `job_id,
job_type, total_steps, scale_factor, weight, arrival_time_s`. Both name a job type, whose steps
per second on each type of GPU are in a JSON file of throughputs beside the trace.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from scheduler.core.model import JobSpec, SharedThroughput
from simulator.traces.format import Assumptions, Format
from simulator.traces.jobs import gpu_gang
from simulator.traces.source import Opening, Row, Source, is_parquet
from simulator.workload import Steady, TraceJob, TraceJobs

PHYSICAL, SIMULATED = "physical_cluster_throughputs", "simulation_throughputs"
"""Throughputs that Gavel measured for its physical cluster and for its simulations."""

_FIELDS = (
    "job_type", "command", "folder", "steps_argument", "needs_data", "total_steps",
    "scale_factor", "weight", "slo", "arrival_time_s",
)  # fmt: skip
_SPREAD_OUT = "_unconsolidated"
"""Types with this ending are the same GPUs with a gang spread over servers; not used."""


class JobType(NamedTuple):
    """What a throughput is known for."""

    name: str
    n_gpus: int


Speeds = tuple[tuple[str, float], ...]
"""Steps per second of the whole gang, by GPU type; types on which it cannot run are missing."""

Throughputs = Mapping[JobType, Speeds]


def read_throughputs(path: Path) -> dict[JobType, Speeds]:
    """Return the speeds of every job type alone on its GPUs. Raises `TraceError`.

    The file maps GPU types to job types, `('NAME', GPUS)`, to `{"null": steps per second}`.
    """
    source = Source(path)
    found: dict[JobType, dict[str, float]] = {}
    for gpu_type, by_job_type in _by_gpu_type(source):
        for text, steps_per_s in by_job_type.items():
            alone = steps_per_s.get("null")
            if not isinstance(alone, int | float) or alone < 0:
                raise source.error(
                    "steps per second must be a number, not negative", column=text
                )
            if alone > 0:
                found.setdefault(_job_type(source, text), {})[gpu_type] = float(alone)
    return {job_type: tuple(sorted(speeds.items())) for job_type, speeds in found.items()}


Beside = Mapping[JobType, tuple[SharedThroughput, ...]]
"""Steps per second of a job type on GPUs that it shares with another."""

NOBODY: Beside = {}


def read_beside(path: Path) -> Beside:
    """Return how fast job types are beside others on as many GPUs. Raises `TraceError`.

    In the file of `read_throughputs` a job type maps others to the steps per second of both.
    """
    source = Source(path)
    found: dict[JobType, list[SharedThroughput]] = {}
    for gpu_type, by_job_type in _by_gpu_type(source):
        for text, steps_per_s in by_job_type.items():
            one = _job_type(source, text)
            for beside, both in steps_per_s.items():
                if beside == "null":
                    continue
                other = _job_type(source, beside)
                if not _is_pair(both):
                    raise source.error("must be the steps per second of both", column=beside)
                if other.n_gpus == one.n_gpus and min(both) > 0:
                    found.setdefault(one, []).append(
                        SharedThroughput(
                            gpu_type=gpu_type,
                            beside=profile_of(other),
                            per_s=float(both[0]),
                        )
                    )
    return {
        job_type: tuple(sorted(measured, key=lambda m: (m.gpu_type, m.beside)))
        for job_type, measured in found.items()
    }


def _is_pair(both: object) -> bool:
    """Return whether these are the steps per second of two jobs."""
    return (
        isinstance(both, list)
        and len(both) == 2
        and all(isinstance(per_s, int | float) and per_s >= 0 for per_s in both)
    )


def profile_of(job_type: JobType) -> str:
    """Return the name under which others say how they run beside such a job."""
    name, n_gpus = job_type
    return name if n_gpus == 1 else f"{name} on {n_gpus} GPUs"


def _by_gpu_type(source: Source) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield the types of GPUs, and by job type what was measured on them."""
    try:
        tables = msgspec.json.decode(source.text(), type=dict[str, dict[str, dict[str, Any]]])
    except msgspec.DecodeError as error:
        raise source.error(f"not a file of throughputs: {error}") from None
    for gpu_type, by_job_type in tables.items():
        if not gpu_type.endswith(_SPREAD_OUT):
            yield gpu_type.upper(), by_job_type


def _job_type(source: Source, text: str) -> JobType:
    name, comma, n_gpus = text.rpartition(",")
    n_gpus = n_gpus.strip(" )")
    if not comma or not n_gpus.isdecimal():
        raise source.error("a job type must be ('NAME', GPUS)", column=text)
    return JobType(name.strip("( '\""), int(n_gpus))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One job as the trace has it."""

    key: str
    job_type: JobType
    steps: int
    weight: float
    at_s: float


def job_of_line(
    line: Line,
    speeds: Speeds,
    assume: Assumptions,
    beside: tuple[SharedThroughput, ...] = (),
) -> TraceJob:
    """Return the job, which knows how fast it is where and how much it has to do.

    It shares GPUs if it knows how fast it is `beside` others and is a single task.
    """
    name, n_gpus = line.job_type
    spec = JobSpec(
        name=name,
        roles=gpu_gang(n_gpus, assume),
        preemptible=assume.preemptible,
        checkpoint_interval_s=assume.checkpoint_interval_s,
        weight=line.weight,
        throughputs=speeds,
        total_work=float(line.steps),
    )
    if beside and spec.n_tasks == 1:
        spec = replace(spec, profile=profile_of(line.job_type), shared_throughputs=beside)
    behaviour = Steady(
        work=float(line.steps),
        speeds=speeds,
        n_tasks=spec.n_tasks,
        beside=spec.shared_throughputs,
    )
    return TraceJob(at_s=line.at_s, spec=spec, behaviour=behaviour, key=line.key)


def read_jobs(
    source: Source, throughputs: Throughputs, assume: Assumptions, beside: Beside = NOBODY
) -> TraceJobs:
    """Yield the jobs of a trace in either form, by these throughputs."""
    for row in _rows(source):
        job_type = JobType(row.text("job_type"), row.whole("scale_factor"))
        if job_type not in throughputs:
            gpus = "GPU" if job_type.n_gpus == 1 else "GPUs"
            raise row.error(
                f"no throughput is known for {job_type.name!r} on {job_type.n_gpus} {gpus}",
                "job_type",
            )
        line = Line(
            key=row.text("job_id"),
            job_type=job_type,
            steps=row.whole("total_steps"),
            weight=row.amount("weight", 1.0) or 1.0,
            at_s=row.amount("arrival_time_s"),
        )
        measured = beside.get(job_type, ())
        yield job_of_line(line, throughputs[job_type], assume, measured)


def _rows(source: Source) -> Iterator[Row]:
    if not _is_own_form(source):
        yield from source.rows()
        return
    columns = {name: place for place, name in enumerate((*_FIELDS, "job_id"))}
    for number, line in source.lines():
        cells = line.split("\t")
        if len(cells) != len(_FIELDS):
            raise source.error(
                f"{len(cells)} fields where there should be {len(_FIELDS)}", line=number
            )
        yield Row(source, number, columns, [*cells, str(number - 1)])


def _is_own_form(source: Source) -> bool:
    if is_parquet(source.path):
        return False
    with source.opened() as text:
        return "\t" in text.readline()


def _measured_for(source: Source, *names: str) -> Path:
    """Return the file of throughputs in the folder of a trace, of the first of these names."""
    for name in names:
        for ending in (".json", ".json.gz"):
            path = source.path.with_name(name + ending)
            if path.exists():
                return path
    wanted = " or ".join(f"{name}.json" for name in names)
    raise source.error(f"{wanted} must be beside the trace: it says how fast its jobs are")


def _read(source: Source, assume: Assumptions) -> TraceJobs:
    names = (PHYSICAL, SIMULATED) if _is_own_form(source) else (SIMULATED, PHYSICAL)
    path = _measured_for(source, *names)
    return read_jobs(source, read_throughputs(path), assume, read_beside(path))


def _recognises(shown: Opening) -> bool:
    if shown.has_columns("job_type", "total_steps", "scale_factor", "arrival_time_s"):
        return True
    cells = shown.head[0].split("\t") if shown.head else []
    return len(cells) == len(_FIELDS) and cells[5].isdigit() and cells[6].isdigit()


FORMAT = Format(
    name="gavel",
    title="Gavel's traces (OSDI '20), with a file of throughputs beside them",
    recognises=_recognises,
    read=_read,
)
