"""Alibaba's trace of shared GPUs, 2023 ("openb"; Weng et al., ATC '23): nodes and pods.

A list of pods has `name, cpu_milli, memory_mib, num_gpu, gpu_milli` and, in most lists,
`gpu_spec` (types that will do, between `|`) and times in seconds. A pod without times comes a
second after the one before it and does not end. Device memory does not enter the trace.
"""

from collections.abc import Iterator
from pathlib import Path

from scheduler.core.model import MILLI, Gpu, JobKind, JobPhase, Node, NodeName, Shape
from simulator.traces.format import Assumptions, Format
from simulator.traces.jobs import Facts, job_of, role_of
from simulator.traces.order import by_time
from simulator.traces.source import Opening, Row, Source
from simulator.workload import FOREVER, TraceJobs

DEVICE_MIB = MILLI
"""Memory of a device, in thousandths: a fraction of a device takes the same of its memory."""

_ENDS = {"Failed": JobPhase.FAILED}


def read_nodes(path: Path) -> list[Node]:
    """Return the nodes of a list with `sn, cpu_milli, memory_mib, gpu, model`."""
    return [_node(row) for row in Source(path).rows()]


def _node(row: Row) -> Node:
    name = row.text("sn")
    devices = range(row.whole("gpu"))
    return Node(
        name=NodeName(name),
        cpu_milli=row.whole("cpu_milli"),
        memory_mib=row.whole("memory_mib"),
        gpu_type=row.text("model", ""),
        gpus=tuple(Gpu(uuid=f"{name}-{i}", memory_mib=DEVICE_MIB) for i in devices),
    )


def read_shapes(path: Path) -> list[tuple[str, Shape]]:
    """Return the pods of a list by name, with what each asks of a node."""
    return sorted((row.text("name"), _shape(row)) for row in Source(path).rows())


def _shape(row: Row) -> Shape:
    n_gpus, gpu_milli = row.whole("num_gpu"), row.whole("gpu_milli", 0)
    if gpu_milli > MILLI:
        raise row.error(f"{gpu_milli} thousandths of one device", "gpu_milli")
    is_share = n_gpus == 1 and 0 < gpu_milli < MILLI
    types = tuple(sorted(filter(None, row.text("gpu_spec", "").split("|"))))
    return Shape(
        cpu_milli=row.whole("cpu_milli"),
        memory_mib=row.whole("memory_mib"),
        gpus=0 if is_share else n_gpus,
        gpu_milli=gpu_milli if is_share else 0,
        gpu_types=types if n_gpus else (),
    )


def _read(source: Source, assume: Assumptions) -> TraceJobs:
    with source.opened() as text:
        has_times = "creation_time" in text.readline()
    for at_s, row in _in_order(source.rows(), has_times=has_times):
        run_s = _run_s(row)
        if run_s <= 0:
            source.skipped["did not run"] += 1
            continue
        facts = Facts(
            key=row.text("name"),
            at_s=at_s,
            run_s=run_s,
            roles=(role_of(1, _shape(row)),),
            ends_as=_ENDS.get(row.text("pod_phase", ""), JobPhase.SUCCEEDED),
            kind=JobKind.BATCH,
        )
        yield job_of(facts, assume)


def _in_order(rows: Iterator[Row], *, has_times: bool) -> Iterator[tuple[float, Row]]:
    if has_times:
        return by_time(rows, lambda row: row.amount("creation_time"))
    return ((float(number), row) for number, row in enumerate(rows))


def _run_s(row: Row) -> float:
    """Return for how long the pod ran; it ran until it was deleted."""
    if not row.has("deletion_time"):
        return FOREVER
    from_s = row.amount("scheduled_time", row.amount("creation_time"))
    return row.amount("deletion_time") - from_s


def _recognises(shown: Opening) -> bool:
    return shown.has_columns("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")


FORMAT = Format(
    name="openb",
    title="Alibaba's pods on shared GPUs, 2023 (openb)",
    recognises=_recognises,
    read=_read,
)
