"""Who must leave its node: by a drain or a taint that is not tolerated."""

from collections.abc import Iterator

import numpy as np

from scheduler.core.model import JobKind, NodeName, TaintEffect, Task
from scheduler.core.snapshot import Snapshot


def leaving(snapshot: Snapshot) -> Iterator[tuple[int, tuple[Task, ...], str]]:
    """Yield the job rows that must leave nodes: with the tasks that stop for it, and why.

    A gang stops as a whole, a service moves only the replicas that are there.
    """
    nodes = _nodes_to_leave(snapshot)
    if nodes:
        for row in snapshot.running_rows().tolist():
            tasks = snapshot.jobs.tasks[row]
            going = tuple(t for t in tasks if t.stop_cause is None and t.node in nodes)
            going = tuple(task for task in going if _must_leave(snapshot, row, task))
            if going:
                is_service = snapshot.job_at(row).spec.kind is JobKind.INFERENCE
                names = ", ".join(dict.fromkeys(task.node for task in going))
                yield row, going if is_service else tasks, f"leaves {names}"


def _nodes_to_leave(snapshot: Snapshot) -> set[NodeName]:
    """Return the nodes that some tasks must leave: draining ones, and by taints."""
    nodes = snapshot.nodes
    kicking = [
        number
        for number, node in enumerate(nodes.kinds)
        if node.taints and any(t.effect is TaintEffect.NO_EXECUTE for t in node.taints)
    ]
    if not kicking and not nodes.is_draining.any():
        return set()
    leave = (nodes.is_draining | np.isin(nodes.kind, kicking)) & ~nodes.is_removed
    return {nodes.nodes[row].name for row in np.flatnonzero(leave)}


def _must_leave(snapshot: Snapshot, row: int, task: Task) -> bool:
    nodes, spec = snapshot.nodes, snapshot.job_at(row).spec
    node_row = nodes.row_of[task.node]
    if nodes.is_draining[node_row] and spec.preemptible:
        return True
    shape = next(role.shape for role in spec.roles if role.name == task.id.role)
    return any(
        taint.effect is TaintEffect.NO_EXECUTE
        and not any(toleration.tolerates(taint) for toleration in shape.tolerations)
        for taint in nodes.nodes[node_row].taints
    )
