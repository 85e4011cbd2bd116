"""From the core to the wire: specs, jobs, tasks, nodes, queues and explanations as messages.

The inverse of `codec`: `spec_from(spec_message(spec))` is `spec`. Nothing here fails.
"""

from collections.abc import Mapping

from scheduler.core.model import (
    DependencyKind,
    JobKind,
    JobPhase,
    JobSpec,
    Launch,
    Role,
    Shape,
    Task,
    TaskPhase,
)
from scheduler.core.plan import Unplaced
from scheduler.core.records import JobRecord, NodeView
from scheduler.wire import cluster_pb2

HIDDEN = "***"
"""What strangers see of the values in a job's environment."""

KIND_TO_WIRE = {
    JobKind.TRAINING: cluster_pb2.JOB_KIND_TRAINING,
    JobKind.INFERENCE: cluster_pb2.JOB_KIND_INFERENCE,
    JobKind.BATCH: cluster_pb2.JOB_KIND_BATCH,
}
DEPENDENCY_KIND_TO_WIRE = {
    DependencyKind.AFTER_OK: cluster_pb2.DEPENDENCY_KIND_AFTER_OK,
    DependencyKind.AFTER_ANY: cluster_pb2.DEPENDENCY_KIND_AFTER_ANY,
    DependencyKind.AFTER_NOT_OK: cluster_pb2.DEPENDENCY_KIND_AFTER_NOT_OK,
}
JOB_PHASE_TO_WIRE = {
    phase: cluster_pb2.JobPhase.Value(f"JOB_PHASE_{phase.name}") for phase in JobPhase
}
TASK_PHASE_TO_WIRE = {
    phase: cluster_pb2.TaskPhase.Value(f"TASK_PHASE_{phase.name}") for phase in TaskPhase
}


def spec_message(spec: JobSpec) -> cluster_pb2.JobSpec:
    """Return a spec with every default written out."""
    return cluster_pb2.JobSpec(
        name=spec.name,
        roles=[_role_message(role) for role in spec.roles],
        kind=KIND_TO_WIRE[spec.kind],
        queue=spec.queue,
        priority=spec.priority,
        preemptible=spec.preemptible,
        checkpoint_interval_s=spec.checkpoint_interval_s,
        grace_s=spec.grace_s,
        max_retries=spec.max_retries,
        backoff_s=spec.backoff_s,
        time_limit_s=spec.time_limit_s,
        start_after_s=spec.start_after_s,
        dependencies=[
            cluster_pb2.Dependency(on=d.on, kind=DEPENDENCY_KIND_TO_WIRE[d.kind])
            for d in spec.dependencies
        ],
        array_size=spec.array_size,
        suspended=spec.suspended,
        labels=dict(spec.labels),
        expected_run_s=spec.expected_run_s,
        expected_run_spread=spec.expected_run_spread,
        min_runtime_s=spec.min_runtime_s,
        priority_class=spec.priority_class,
        may_preempt=spec.may_preempt,
        weight=spec.weight,
        throughputs=dict(spec.throughputs),
        deadline_at_s=spec.deadline_at_s,
        total_work=spec.total_work,
        elastic=spec.elastic,
        resize_cooldown_s=spec.resize_cooldown_s,
        scaling=dict(spec.scaling),
        topology_required=spec.topology_required,
        topology_preferred=spec.topology_preferred,
        topology_balanced=spec.topology_balanced,
        inputs_mib=dict(spec.inputs_mib),
        profile=spec.profile,
        shared_throughputs=[
            cluster_pb2.SharedThroughput(gpu_type=s.gpu_type, beside=s.beside, per_s=s.per_s)
            for s in spec.shared_throughputs
        ],
    )


def _role_message(role: Role) -> cluster_pb2.Role:
    return cluster_pb2.Role(
        name=role.name,
        launch=_launch_message(role.launch),
        count=role.count,
        min_count=role.min_count,
        max_count=role.max_count,
        shape=_shape_message(role.shape),
    )


def _launch_message(launch: Launch) -> cluster_pb2.Launch:
    return cluster_pb2.Launch(
        command=launch.command,
        env=dict(launch.env),
        working_dir=launch.working_dir,
        image=launch.image,
    )


def _shape_message(shape: Shape) -> cluster_pb2.Shape:
    return cluster_pb2.Shape(
        cpu_milli=shape.cpu_milli,
        memory_mib=shape.memory_mib,
        gpus=shape.gpus,
        gpu_milli=shape.gpu_milli,
        gpu_memory_mib=shape.gpu_memory_mib,
        gpu_types=shape.gpu_types,
        node_labels=dict(shape.node_labels),
        tolerations=[
            cluster_pb2.Toleration(key=t.key, value=t.value) for t in shape.tolerations
        ],
    )


def job_message(
    record: JobRecord,
    *,
    now_s: float,
    unplaced: Unplaced | None = None,
    expected_start_at_s: float | None = None,
) -> cluster_pb2.Job:
    """Return a job as users see it; if it waits, with the reason and when it should start."""
    job = record.job
    is_waiting = unplaced is not None and record.phase is JobPhase.PENDING
    return cluster_pb2.Job(
        id=job.id,
        spec=spec_message(job.spec),
        phase=JOB_PHASE_TO_WIRE[record.phase],
        submitter=job.submitter,
        array_id=job.array_id or "",
        array_index=job.array_index,
        submitted_at_s=job.submitted_at_s,
        first_started_at_s=record.first_started_at_s,
        last_started_at_s=record.last_started_at_s,
        ended_at_s=record.ended_at_s,
        waited_s=record.waited_s(now_s),
        ran_s=record.ran_s(now_s),
        gpu_s=record.gpu_s(now_s),
        lost_gpu_s=record.lost_gpu_s,
        attempt=record.attempt,
        failures=record.failures,
        preemptions=record.preemptions,
        reason=unplaced.sentence() if unplaced and is_waiting else record.reason,
        expected_start_at_s=(expected_start_at_s or 0.0) if is_waiting else 0.0,
        exit_code=record.exit_code,
        tasks=[task_message(task) for task in record.tasks.values()],
        revision=record.revision,
        resizes=record.resizes,
    )


def hide_env(job: cluster_pb2.Job) -> None:
    """Take the values out of a job's environment: they may be secrets."""
    for role in job.spec.roles:
        for key in role.launch.env:
            role.launch.env[key] = HIDDEN


def task_message(task: Task) -> cluster_pb2.Task:
    """Return one attempt of one member of a job."""
    return cluster_pb2.Task(
        role=task.id.role,
        index=task.id.index,
        attempt=task.id.attempt,
        phase=TASK_PHASE_TO_WIRE[task.phase],
        node=task.node,
        rank=task.rank,
        devices=task.devices,
        bound_at_s=task.bound_at_s,
        started_at_s=task.started_at_s,
        ended_at_s=task.ended_at_s,
        exit_code=task.exit_code,
        signal=task.signal,
        reason=task.reason,
    )


def explanation_message(
    record: JobRecord,
    *,
    unplaced: Unplaced | None,
    n_ahead: int,
    expected_start_at_s: float | None = None,
    is_dry_run: bool = False,
    note: str = "",
) -> cluster_pb2.Explanation:
    """Return why a job waits, or that nothing holds it back, with its history."""
    explanation = cluster_pb2.Explanation(
        job_id="" if is_dry_run else record.job.id,
        phase=JOB_PHASE_TO_WIRE[record.phase],
        n_ahead=n_ahead,
        expected_start_at_s=expected_start_at_s or 0.0,
        history=record.history,
        note=note,
    )
    if unplaced is None:
        explanation.sentence = record.reason or _plainly(record)
        return explanation
    explanation.cause = unplaced.cause
    explanation.sentence = unplaced.sentence()
    explanation.role = unplaced.role
    explanation.n_nodes = unplaced.n_nodes
    explanation.n_fit = unplaced.n_fit
    explanation.until_s = unplaced.until_s
    explanation.counts.extend(
        cluster_pb2.NodeCount(cause=c.cause, n_nodes=c.n_nodes, detail=c.detail)
        for c in unplaced.counts
    )
    return explanation


def _plainly(record: JobRecord) -> str:
    """Return a sentence for a job that no cause holds back."""
    if record.phase is JobPhase.PENDING:
        return "nothing holds it back: it starts with the next decision"
    live = record.live_tasks()
    if live:
        nodes = ", ".join(sorted({task.node for task in live}))
        return f"it is {record.phase} with {len(live)} tasks on {nodes}"
    return f"it is {record.phase}"


def node_message(
    view: NodeView, *, telemetry: Mapping[int, cluster_pb2.GpuTelemetry] | None = None
) -> cluster_pb2.Node:
    """Return a node with what is free on it, and the latest telemetry per device."""
    node = view.node
    gpus = [
        cluster_pb2.Gpu(
            index=index,
            uuid=gpu.uuid,
            memory_mib=gpu.memory_mib,
            free_milli=view.gpu_milli_free[index],
            is_healthy=view.gpu_is_healthy[index],
            telemetry=telemetry.get(index) if telemetry else None,
        )
        for index, gpu in enumerate(node.gpus)
    ]
    return cluster_pb2.Node(
        name=node.name,
        address=node.address,
        is_up=view.is_up,
        is_cordoned=view.is_cordoned,
        is_draining=view.is_draining,
        cpu_milli=node.cpu_milli,
        cpu_milli_free=view.cpu_milli_free,
        memory_mib=node.memory_mib,
        memory_mib_free=view.memory_mib_free,
        gpu_type=node.gpu_type,
        gpus=gpus,
        labels=dict(node.labels),
        taints=[
            cluster_pb2.Taint(key=t.key, value=t.value, effect=t.effect) for t in node.taints
        ],
        n_tasks=view.n_tasks,
        reason=view.reason,
        pool=node.pool,
        price_usd_per_h=node.price_usd_per_h,
        nvlink=[",".join(map(str, clique)) for clique in node.nvlink],
    )
