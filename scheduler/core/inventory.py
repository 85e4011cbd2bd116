"""What there is: nodes that come, go, sicken and close, and queues."""

from dataclasses import replace

from scheduler.core import events
from scheduler.core.errors import InvalidInput
from scheduler.core.lifecycle import Changes, Lifecycle
from scheduler.core.model import (
    DEFAULT_QUEUE,
    NodeName,
)
from scheduler.core.plan import Refusal
from scheduler.core.queue_tree import check_queue
from scheduler.core.refusals import Refused
from scheduler.core.state import ClusterState


def registered(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.NodeRegistered
) -> None:
    """Take a node in, or in its new shape if it is known."""
    node = event.node
    old = state.node(node.name)
    if old is None:
        state.add_node(node)
        return
    view = state.node_view(node.name)
    if node == old and view.is_up:
        changes.is_repeat = True
        return
    if node.gpus != old.gpus:
        if view.n_tasks:
            raise Refused(
                Refusal.PRECONDITION,
                f"node {node.name} has {view.n_tasks} tasks: its GPUs cannot change",
                "node.gpus",
            )
        state.remove_node(node.name)
        state.add_node(node)
        state.set_node_flags(
            node.name, is_cordoned=view.is_cordoned, is_draining=view.is_draining
        )
        state.set_failures(node.name, view.n_failures, view.failed_at_s)
        return
    for field in ("cpu_milli", "memory_mib"):
        used = getattr(old, field) - getattr(view, f"{field}_free")
        if getattr(node, field) < used:
            raise Refused(
                Refusal.PRECONDITION, f"tasks of {node.name} hold {used}", f"node.{field}"
            )
    state.replace_node(node)
    state.set_node_flags(node.name, is_up=True, reason="")


def _known_node(state: ClusterState, name: NodeName) -> None:
    if state.node(name) is None:
        raise Refused(Refusal.NOT_FOUND, f"there is no node {name!r}", "name")


def removed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.NodeRemoved
) -> None:
    """Give up a node and what ran there."""
    _known_node(state, event.name)
    for task_id in sorted(state.tasks_on[event.name]):
        record = state.records[task_id.job]
        life.task_ended(
            record,
            record.tasks[task_id],
            exit_code=None,
            signal=None,
            is_lost=True,
            reason=f"node {event.name} was removed",
        )
    state.remove_node(event.name)


def health_changed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.NodeHealthChanged
) -> None:
    """Note what of a node works."""
    _known_node(state, event.name)
    node = state.node(event.name)
    n_devices = len(node.gpus) if node else 0
    if any(not 0 <= device < n_devices for device in event.unhealthy_gpus):
        raise Refused(
            Refusal.INVALID, f"node {event.name} has {n_devices} GPUs", "unhealthy_gpus"
        )
    before = state.node_view(event.name)
    fell_sick = any(before.gpu_is_healthy[device] for device in event.unhealthy_gpus)
    changes.is_repeat = not state.set_node_flags(
        event.name,
        is_up=event.is_up,
        unhealthy_gpus=event.unhealthy_gpus,
        reason=event.reason,
    )
    if fell_sick or (before.is_up and not event.is_up):
        state.note_failure(event.name)


def cordoned(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.NodeCordoned
) -> None:
    """Close, empty or open a node."""
    _known_node(state, event.name)
    changes.is_repeat = not state.set_node_flags(
        event.name, is_cordoned=event.is_cordoned, is_draining=event.is_draining
    )


def queue_put(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.QueuePut
) -> None:
    """Make or replace a queue."""
    changes.is_repeat = state.queue(event.queue.name) == event.queue
    if changes.is_repeat:
        return
    try:
        check_queue(event.queue, state.known_queues())
    except InvalidInput as error:
        raise Refused(Refusal.INVALID, error.rule, f"queue.{error.field}") from None
    state.put_queue(event.queue)


def queue_state_set(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.QueueStateSet
) -> None:
    """Let a queue take or start jobs, or not."""
    queue = state.queue(event.name)
    if queue is None:
        raise Refused(Refusal.NOT_FOUND, f"there is no queue {event.name!r}", "name")
    changed = replace(
        queue,
        is_open=queue.is_open if event.is_open is None else event.is_open,
        is_started=queue.is_started if event.is_started is None else event.is_started,
    )
    changes.is_repeat = changed == queue
    if not changes.is_repeat:
        state.put_queue(changed)


def half_life_set(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.HalfLifeSet
) -> None:
    """Let the past use of queues count, or not."""
    if not 0 <= event.half_life_s < float("inf"):
        raise Refused(Refusal.INVALID, "must be from 0 on", "half_life_s")
    changes.is_repeat = state.usage.half_life_s == event.half_life_s
    if not changes.is_repeat:
        state.change_half_life(event.half_life_s)


def queue_deleted(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.QueueDeleted
) -> None:
    """Remove an empty queue."""
    number = state.queue_number.get(event.name)
    if number is None or state.queues[number] is None:
        raise Refused(Refusal.NOT_FOUND, f"there is no queue {event.name!r}", "name")
    if event.name == DEFAULT_QUEUE.name:
        raise Refused(Refusal.PRECONDITION, "the default queue stays", "name")
    n_jobs = state.n_live[event.name]
    if n_jobs:
        raise Refused(
            Refusal.PRECONDITION, f"queue {event.name!r} still has {n_jobs} jobs", "name"
        )
    n_children = len(state.family(event.name)) - 1
    if n_children:
        raise Refused(
            Refusal.PRECONDITION,
            f"queue {event.name!r} still has {n_children} queues below it",
            "name",
        )
    state.delete_queue(event.name)
