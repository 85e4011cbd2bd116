"""Slurm's accounts of jobs as Helios (Hu et al., SC '21) and Acme (Hu et al., NSDI '24) publish
them: `job_id, user, vc or type, gpu_num, cpu_num, node_num, state, submit_time, duration, ...`.

GPUs and CPUs are over all nodes; a job is a task per node. Helios' virtual clusters become
queues, and so do Acme's types of jobs. Jobs without a GPU are batch jobs.
"""

import math

from scheduler.core.model import MILLI, JobKind, JobPhase, Role, Shape
from simulator.traces.format import Assumptions, Format
from simulator.traces.jobs import Facts, job_of, role_of
from simulator.traces.order import by_time
from simulator.traces.source import Row, Source
from simulator.workload import TraceJobs

_COLUMNS = (
    "job_id",
    "user",
    "gpu_num",
    "cpu_num",
    "node_num",
    "state",
    "submit_time",
    "duration",
)
_ENDS = {
    "COMPLETED": JobPhase.SUCCEEDED,
    "CANCELLED": JobPhase.CANCELLED,
    "FAILED": JobPhase.FAILED,
    "TIMEOUT": JobPhase.FAILED,  # rare, and failures in the papers' analysis
    "NODE_FAIL": JobPhase.FAILED,
    "OUT_OF_MEMORY": JobPhase.FAILED,
}


def _read(source: Source, assume: Assumptions) -> TraceJobs:
    for at_s, row in by_time(source.rows(), lambda row: row.moment("submit_time")):
        run_s = row.amount("duration", 0.0)
        ends_as = _ENDS.get(row.text("state"))
        if ends_as is None:
            source.skipped[f"state {row.text('state')}"] += 1
        elif run_s == 0:
            source.skipped["did not run"] += 1
        else:
            yield job_of(_facts(row, at_s, run_s, ends_as), assume)


def _facts(row: Row, at_s: float, run_s: float, ends_as: JobPhase) -> Facts:
    return Facts(
        key=row.text("job_id"),
        at_s=at_s,
        run_s=run_s,
        roles=_roles(row),
        ends_as=ends_as,
        queue=row.text("vc", "") or row.text("type", "default"),
        submitter=row.text("user"),
        kind=JobKind.TRAINING if row.amount("gpu_num") else JobKind.BATCH,
    )


def _roles(row: Row) -> tuple[Role, ...]:
    n_gpus, n_cpus = row.whole("gpu_num"), row.amount("cpu_num", 0.0)
    n_nodes = max(1, row.whole("node_num"))
    shape = Shape(
        cpu_milli=max(1, math.ceil(n_cpus * MILLI / n_nodes)),
        gpus=math.ceil(n_gpus / n_nodes),
    )
    return (role_of(n_nodes, shape),)


FORMAT = Format(
    name="helios",
    title="Helios' cluster_log.csv (SenseTime, SC '21), and Acme's job traces (NSDI '24)",
    recognises=lambda shown: shown.has_columns(*_COLUMNS),
    read=_read,
)
