"""Why a job waits, as a value: causes counted over nodes, for people and for programs."""

from collections import Counter

import numpy as np

from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.model import MILLI, JobPhase, Shape
from scheduler.core.node_columns import CPU, FRACTION, GPUS, MEMORY, NodeColumns
from scheduler.core.placement import Shortfall
from scheduler.core.plan import Cause, NodeCount, Unplaced
from scheduler.core.snapshot import Snapshot
from scheduler.core.space import Space


def why_unplaced(space: Space, short: Shortfall) -> Unplaced:
    """Return why a gang does not fit: for its first role that falls short, node by node."""
    want = short.want
    nodes = space.nodes
    n_nodes = int(np.count_nonzero(~nodes.is_removed))
    if not n_nodes:
        return Unplaced(cause=Cause.NO_NODES, detail="the cluster has no nodes")
    counts = node_counts(nodes, want.shape)
    n_fit = n_nodes - sum(count.n_nodes for count in counts)
    detail = ""
    cause = counts[0].cause if counts else Cause.GANG
    n_wanted = len(want.must) or len(want.may)
    if n_fit or n_wanted > 1:
        detail = f"room for {short.n_placed} of {n_wanted} {want.role} tasks"
    if n_fit:
        cause = Cause.GANG
    if short.level or short.why:
        n_tasks = f"{n_wanted} {want.role} task{'' if n_wanted == 1 else 's'}"
        one = f"no {short.level} has room for {n_tasks}: best has {short.n_placed}"
        detail = short.why or one
        cause = Cause.TOPOLOGY if n_fit else cause
    return Unplaced(
        cause=cause,
        role=want.role,
        n_nodes=n_nodes,
        n_fit=n_fit,
        counts=tuple(counts),
        detail=detail,
    )


def node_counts(nodes: NodeColumns, shape: Shape) -> list[NodeCount]:
    """Return the first cause, in the order of `Cause`, of every node that cannot take one."""
    counts: Counter[tuple[Cause, str]] = Counter()
    unseen = ~nodes.is_removed
    is_closed = nodes.is_cordoned | nodes.is_draining

    def count(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], *why: object) -> None:
        nonlocal unseen
        n_nodes = int(np.count_nonzero(mask & unseen))
        if n_nodes:
            cause, detail = why
            assert isinstance(cause, Cause)
            counts[cause, str(detail)] += n_nodes
        unseen = unseen & ~mask

    count(~nodes.is_up, Cause.NODE_DOWN, "are down")
    count(is_closed, Cause.CORDONED, "are cordoned")
    never = nodes.misfits(shape)
    n_of_kind = np.bincount(nodes.kind[unseen], minlength=len(never)).tolist()
    for why, n_nodes in zip(never, n_of_kind, strict=True):
        if why is not None and n_nodes:
            counts[why] += n_nodes
    unseen &= nodes.static_fit(shape)
    free = nodes.free
    if shape.gpus:
        what = "free GPU" if shape.gpus == 1 else "free GPUs"
        count(free[:, GPUS] < shape.gpus, Cause.GPUS, f"lack {shape.gpus} {what}")
    if shape.gpu_milli:
        part = shape.gpu_milli / MILLI
        count(
            free[:, FRACTION] < shape.gpu_milli,
            Cause.GPU_FRACTION,
            f"lack a GPU with {part:g} of it free",
        )
    count(
        free[:, CPU] < shape.cpu_milli, Cause.CPU, f"lack {shape.cpu_milli / MILLI:g} free CPUs"
    )
    count(
        free[:, MEMORY] < shape.memory_mib,
        Cause.MEMORY,
        f"lack {shape.memory_mib} MiB of free memory",
    )
    if shape.gpu_milli:
        memory_mib = shape.gpu_memory_mib or (
            nodes.device_memory_mib[:, None] * shape.gpu_milli // MILLI
        )
        fits = (nodes.device_free >= shape.gpu_milli) & (nodes.device_memory_free >= memory_mib)
        count(~np.logical_or.reduce(fits, axis=1), Cause.GPU_MEMORY, "lack free GPU memory")
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [NodeCount(cause=c, n_nodes=n, detail=detail) for (c, detail), n in ranked]


def why_not_yet(snapshot: Snapshot, row: int) -> Unplaced | None:
    """Return what but capacity holds a waiting job back, or None."""
    jobs = snapshot.jobs
    job = snapshot.job_at(row)
    queue = snapshot.queues[jobs.queue[row]]
    if jobs.phase[row] == PHASE_CODE[JobPhase.SUSPENDED]:
        return Unplaced(
            cause=Cause.SUSPENDED, detail="is suspended: `lepton resume` lets it go on"
        )
    if jobs.n_unmet[row]:
        waits_for = ", ".join(f"{d.kind} {d.on}" for d in job.spec.dependencies)
        n_unmet, n_all = int(jobs.n_unmet[row]), len(job.spec.dependencies)
        return Unplaced(
            cause=Cause.DEPENDENCY,
            detail=f"waits for {n_unmet} of {n_all} dependencies: {waits_for}",
        )
    if jobs.eligible_at_s[row] > snapshot.now_s:
        until_s = float(jobs.eligible_at_s[row])
        wait_s = until_s - snapshot.now_s
        if until_s == job.spec.start_after_s:
            detail, cause = f"starts in {wait_s:.0f} s at the earliest", Cause.START_AFTER
        else:
            detail, cause = f"tries again in {wait_s:.0f} s", Cause.BACKOFF
        return Unplaced(cause=cause, detail=detail, until_s=until_s)
    if queue is None or not snapshot.tree.is_started[jobs.queue[row]]:
        above = snapshot.tree.paths[jobs.queue[row]][:-1].tolist()
        stopped = (q.name for n in above if (q := snapshot.queues[n]) and not q.is_started)
        name = next(stopped, job.spec.queue)
        return Unplaced(cause=Cause.QUEUE_STOPPED, detail=f"queue {name} starts no jobs")
    return None
