"""Queues from the wire to the core and back.

The edge checks form: names, numbers, resources that can be. Whether a parent exists and what is
guaranteed adds up is judged where the event is observed.
"""

from collections.abc import Mapping
from types import MappingProxyType

from scheduler.core.errors import InvalidInput
from scheduler.core.model import Amounts, Queue, QueueName, QueuePreemption
from scheduler.core.queue_tree import OF_TYPE, RESOURCES
from scheduler.daemon.limits import (
    Limits,
    check_count,
    check_int,
    check_name,
    check_seconds,
    check_text,
    check_users,
)
from scheduler.wire import cluster_pb2

MAX_AMOUNT = 1 << 53
MAX_WEIGHT = 1e6

_PREEMPTIONS = {
    cluster_pb2.QUEUE_PREEMPTION_UNSPECIFIED: QueuePreemption.ANYWHERE,
    cluster_pb2.QUEUE_PREEMPTION_NEVER: QueuePreemption.NEVER,
    cluster_pb2.QUEUE_PREEMPTION_IN_QUEUE: QueuePreemption.IN_QUEUE,
    cluster_pb2.QUEUE_PREEMPTION_ANYWHERE: QueuePreemption.ANYWHERE,
}
_PREEMPTIONS_TO_WIRE = {core: wire for wire, core in _PREEMPTIONS.items()}


def queue_from(message: cluster_pb2.Queue, limits: Limits) -> Queue:
    """Return the queue an admin wants; figures are output only and ignored."""
    weight = message.weight if message.HasField("weight") else 1.0
    if not 0 < weight <= MAX_WEIGHT:
        raise InvalidInput("weight", f"must be above 0 and at most {MAX_WEIGHT:g}")
    may_preempt = _PREEMPTIONS.get(message.may_preempt)
    if may_preempt is None:
        raise InvalidInput("may_preempt", "must be a known rule")
    most = limits.max_priority
    max_priority = None
    if message.HasField("max_priority"):
        max_priority = check_int("max_priority", message.max_priority, -most, most)
    parent = message.parent
    if parent:
        check_name("parent", parent, limits.max_name_length)
    return Queue(
        name=QueueName(check_name("name", message.name, limits.max_name_length)),
        submitters=check_users("submitters", message.submitters, limits),
        admins=check_users("admins", message.admins, limits),
        is_open=message.is_open if message.HasField("is_open") else True,
        is_started=message.is_started if message.HasField("is_started") else True,
        parent=QueueName(parent),
        weight=weight,
        guaranteed=_amounts("guaranteed", message.guaranteed, limits),
        limit=_amounts("limit", message.limit, limits),
        borrow_limit=_amounts("borrow_limit", message.borrow_limit, limits),
        is_lender=message.is_lender if message.HasField("is_lender") else True,
        default_priority=check_int("default_priority", message.default_priority, -most, most),
        max_priority=max_priority,
        max_jobs=check_int("max_jobs", message.max_jobs, 0, limits.max_live_jobs),
        may_preempt=may_preempt,
        default_time_limit_s=check_seconds(
            "default_time_limit_s", message.default_time_limit_s, limits.max_duration_s
        ),
        max_time_limit_s=check_seconds(
            "max_time_limit_s", message.max_time_limit_s, limits.max_duration_s
        ),
        default_min_runtime_s=check_seconds(
            "default_min_runtime_s", message.default_min_runtime_s, limits.max_duration_s
        ),
        is_preemptible=message.is_preemptible if message.HasField("is_preemptible") else True,
        max_jobs_per_submitter=check_int(
            "max_jobs_per_submitter", message.max_jobs_per_submitter, 0, limits.max_live_jobs
        ),
        policy=message.policy and check_name("policy", message.policy, limits.max_name_length),
    )


def _amounts(field: str, amounts: Mapping[str, int], limits: Limits) -> Amounts:
    check_count(field, len(amounts), len(RESOURCES) + limits.max_gpu_types)
    for name, amount in amounts.items():
        gpu_type = name.removeprefix(OF_TYPE)
        if name not in RESOURCES and (gpu_type == name or not gpu_type):
            rule = f"names must be {', '.join(RESOURCES)} or {OF_TYPE}TYPE"
            raise InvalidInput(field, rule)
        check_text(field, gpu_type, limits.max_value_length)
        check_int(f"{field}[{name}]", amount, 0, MAX_AMOUNT)
    return tuple(sorted(amounts.items()))


def queue_message(
    queue: Queue,
    *,
    n_pending: int = 0,
    n_running: int = 0,
    gpu_milli_used: int = 0,
    used: Amounts = (),
    average: Mapping[str, float] = MappingProxyType({}),
) -> cluster_pb2.Queue:
    """Return a queue with its figures."""
    return cluster_pb2.Queue(
        name=queue.name,
        submitters=queue.submitters,
        admins=queue.admins,
        is_open=queue.is_open,
        is_started=queue.is_started,
        n_pending=n_pending,
        n_running=n_running,
        gpu_milli_used=gpu_milli_used,
        parent=queue.parent,
        weight=queue.weight,
        guaranteed=dict(queue.guaranteed),
        limit=dict(queue.limit),
        borrow_limit=dict(queue.borrow_limit),
        is_lender=queue.is_lender,
        default_priority=queue.default_priority,
        max_priority=queue.max_priority,
        max_jobs=queue.max_jobs,
        may_preempt=_PREEMPTIONS_TO_WIRE[queue.may_preempt],
        used=dict(used),
        average=average,
        policy=queue.policy,
        default_time_limit_s=queue.default_time_limit_s,
        max_time_limit_s=queue.max_time_limit_s,
        default_min_runtime_s=queue.default_min_runtime_s,
        is_preemptible=queue.is_preemptible,
        max_jobs_per_submitter=queue.max_jobs_per_submitter,
    )
