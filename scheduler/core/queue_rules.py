"""What queues say of the jobs in them: defaults for what they leave open, bounds on the rest.

A line is a queue and all above it, the nearest first (`queue_tree.lineage`). The nearest
default counts; bounds hold all the way up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from scheduler.core.model import JobSpec, Queue
from scheduler.core.plan import Refusal
from scheduler.core.refusals import Refused


def with_defaults(spec: JobSpec, line: Sequence[Queue]) -> JobSpec:
    """Return the spec with what the queues say where it says nothing."""
    if not any(map(_has_defaults, line)):
        return spec
    priority = spec.priority
    if not priority and not spec.priority_class:
        priority = int(_nearest(queue.default_priority for queue in line))
    min_runtime_s = spec.min_runtime_s or _nearest(q.default_min_runtime_s for q in line)
    time_limit_s = spec.time_limit_s
    if not time_limit_s:
        bounds = [q.max_time_limit_s for q in line if q.max_time_limit_s]
        default_s = _nearest(queue.default_time_limit_s for queue in line)
        time_limit_s = min([default_s, *bounds] if default_s else bounds, default=0.0)
    preemptible = spec.preemptible and all(queue.is_preemptible for queue in line)
    given = (spec.priority, spec.min_runtime_s, spec.time_limit_s, spec.preemptible)
    if given == (priority, min_runtime_s, time_limit_s, preemptible):
        return spec
    return replace(
        spec,
        priority=priority,
        min_runtime_s=min_runtime_s,
        time_limit_s=time_limit_s,
        preemptible=preemptible,
    )


def _nearest(values: Iterable[float]) -> float:
    return next((value for value in values if value), 0)


def _has_defaults(queue: Queue) -> bool:
    return bool(
        queue.default_priority
        or queue.default_min_runtime_s
        or queue.default_time_limit_s
        or queue.max_time_limit_s
        or not queue.is_preemptible
    )


def check_spec(spec: JobSpec, line: Sequence[Queue]) -> None:
    """Refuse what the queues take no new job for, defaults included."""
    for queue in line:
        if not queue.is_open:
            raise Refused(
                Refusal.PRECONDITION, f"queue {queue.name!r} takes no new jobs", "spec.queue"
            )
    check_priority(line, spec.priority, "spec.priority")
    check_time_limit(line, spec.time_limit_s, "spec.time_limit_s")


def check_priority(line: Sequence[Queue], priority: int, field: str) -> None:
    """Refuse a priority above what a queue of the line allows."""
    for queue in line:
        if queue.max_priority is not None and priority > queue.max_priority:
            raise Refused(
                Refusal.PRECONDITION,
                f"queue {queue.name!r} takes priorities up to {queue.max_priority}",
                field,
            )


def check_time_limit(line: Sequence[Queue], time_limit_s: float, field: str) -> None:
    """Refuse a time limit, or none, beyond what a queue of the line allows."""
    for queue in line:
        most_s = queue.max_time_limit_s
        if most_s and not 0 < time_limit_s <= most_s:
            raise Refused(
                Refusal.PRECONDITION,
                f"queue {queue.name!r} takes time limits up to {most_s:g} s",
                field,
            )
