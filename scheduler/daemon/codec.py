"""From the wire to the core: requests become specs and events, or `InvalidInput`.

The edge checks form (types, ranges, names, sizes); whether a queue or a job exists is judged
where the event is observed. A field path in an error reads like the message:
`spec.roles[0].shape.gpu_milli`. Submits pass here ten thousand times a second, so the common
case is straight-line code.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache

from scheduler.core.errors import InvalidInput
from scheduler.core.model import (
    RESIZE_COOLDOWN_S,
    Dependency,
    DependencyKind,
    JobId,
    JobKind,
    JobSpec,
    Launch,
    QueueName,
    Role,
    Shape,
    Toleration,
)
from scheduler.daemon.codec_speeds import (
    scaling_from,
    shared_throughputs_from,
    throughputs_from,
)
from scheduler.daemon.limits import (
    ENV_KEY,
    ENV_KEY_RULE,
    REQUEST_ID,
    Limits,
    check_amount,
    check_count,
    check_int,
    check_job_id,
    check_labels,
    check_name,
    check_seconds,
    check_text,
    within,
)
from scheduler.wire import cluster_pb2

DEFAULT_ROLE = "worker"
DEFAULT_CPU_MILLI = 1_000
DEFAULT_GRACE_S = 30.0
DEFAULT_BACKOFF_S = 10.0
MAX_SPREAD = 10.0
MAX_SHARED_BYTES = 1_024

_KINDS = {
    cluster_pb2.JOB_KIND_UNSPECIFIED: JobKind.TRAINING,
    cluster_pb2.JOB_KIND_TRAINING: JobKind.TRAINING,
    cluster_pb2.JOB_KIND_INFERENCE: JobKind.INFERENCE,
    cluster_pb2.JOB_KIND_BATCH: JobKind.BATCH,
}
_DEPENDENCY_KINDS = {
    cluster_pb2.DEPENDENCY_KIND_UNSPECIFIED: DependencyKind.AFTER_OK,
    cluster_pb2.DEPENDENCY_KIND_AFTER_OK: DependencyKind.AFTER_OK,
    cluster_pb2.DEPENDENCY_KIND_AFTER_ANY: DependencyKind.AFTER_ANY,
    cluster_pb2.DEPENDENCY_KIND_AFTER_NOT_OK: DependencyKind.AFTER_NOT_OK,
}


def fingerprint(spec: cluster_pb2.JobSpec) -> str:
    """Return a hash that tells a retried submit from another one under the same request id."""
    data = spec.SerializeToString(deterministic=True)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def request_id_from(field: str, value: str, limits: Limits) -> str:
    """Return a client's name for a request."""
    if len(value) > limits.max_request_id_length:
        raise InvalidInput(field, f"must be at most {limits.max_request_id_length} characters")
    if REQUEST_ID.fullmatch(value) is None:
        raise InvalidInput(field, "must be printable ASCII without spaces")
    return value


def spec_from(message: cluster_pb2.JobSpec, limits: Limits) -> JobSpec:
    """Return the spec a user asked for, with every default filled in."""
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise InvalidInput("kind", "must be a known kind")
    if not -limits.max_priority <= message.priority <= limits.max_priority:
        raise InvalidInput("priority", f"must be within ±{limits.max_priority}")
    roles = _roles(message, limits)
    array_size = check_int("array_size", message.array_size, 0, limits.max_array_size)
    n_tasks = array_size * sum(role.max_count for role in roles)
    if n_tasks > limits.max_tasks_per_array:
        rule = f"must make at most {limits.max_tasks_per_array} tasks, makes {n_tasks}"
        raise InvalidInput("array_size", rule)
    grace_s = message.grace_s if message.HasField("grace_s") else DEFAULT_GRACE_S
    backoff_s = message.backoff_s if message.HasField("backoff_s") else DEFAULT_BACKOFF_S
    cooldown_s = RESIZE_COOLDOWN_S
    if message.HasField("resize_cooldown_s"):
        cooldown_s = message.resize_cooldown_s
    longest_s = limits.max_duration_s
    return JobSpec(
        name=check_name("name", message.name, limits.max_job_name_length),
        roles=roles,
        kind=kind,
        queue=QueueName(
            check_name("queue", message.queue or "default", limits.max_name_length)
        ),
        priority=message.priority,
        preemptible=message.preemptible if message.HasField("preemptible") else True,
        checkpoint_interval_s=check_seconds(
            "checkpoint_interval_s", message.checkpoint_interval_s, longest_s
        ),
        grace_s=check_seconds("grace_s", grace_s, longest_s),
        max_retries=check_int("max_retries", message.max_retries, 0, limits.max_retries),
        backoff_s=check_seconds("backoff_s", backoff_s, longest_s),
        time_limit_s=check_seconds("time_limit_s", message.time_limit_s, longest_s),
        start_after_s=check_seconds("start_after_s", message.start_after_s, limits.max_epoch_s),
        dependencies=_dependencies(message, limits) if message.dependencies else (),
        priority_class=message.priority_class
        and check_name("priority_class", message.priority_class, limits.max_name_length),
        may_preempt=message.may_preempt if message.HasField("may_preempt") else True,
        array_size=array_size,
        suspended=message.suspended,
        labels=check_labels("labels", message.labels, limits),
        expected_run_s=check_seconds("expected_run_s", message.expected_run_s, longest_s),
        expected_run_spread=_spread(message),
        min_runtime_s=check_seconds("min_runtime_s", message.min_runtime_s, longest_s),
        weight=check_amount("weight", message.weight) if message.HasField("weight") else 1.0,
        throughputs=throughputs_from(message, limits) if message.throughputs else (),
        deadline_at_s=check_seconds("deadline_at_s", message.deadline_at_s, limits.max_epoch_s),
        total_work=check_amount("total_work", message.total_work, least=0.0),
        elastic=_elastic(message, roles),
        resize_cooldown_s=check_seconds("resize_cooldown_s", cooldown_s, longest_s),
        scaling=scaling_from(message, limits) if message.scaling else (),
        topology_required=_level("topology_required", message.topology_required, limits),
        topology_preferred=_level("topology_preferred", message.topology_preferred, limits),
        topology_balanced=_balanced(message),
        inputs_mib=_inputs(message, limits) if message.inputs_mib else (),
        profile=message.profile
        and check_text("profile", message.profile, limits.max_value_length),
        shared_throughputs=(
            shared_throughputs_from(message, kind, roles, limits)
            if message.shared_throughputs
            else ()
        ),
    )


def _inputs(message: cluster_pb2.JobSpec, limits: Limits) -> tuple[tuple[str, int], ...]:
    check_count("inputs_mib", len(message.inputs_mib), limits.max_labels)
    for name, mib in message.inputs_mib.items():
        check_name("inputs_mib", name, limits.max_name_length)
        check_int(f"inputs_mib[{name}]", mib, 1, limits.max_input_mib)
    return tuple(sorted(message.inputs_mib.items()))


def _level(field: str, name: str, limits: Limits) -> str:
    return check_name(field, name, limits.max_name_length) if name else ""


def _balanced(message: cluster_pb2.JobSpec) -> bool:
    if message.topology_balanced and not (
        message.topology_required or message.topology_preferred
    ):
        rule = "needs topology_required or topology_preferred, within which it balances"
        raise InvalidInput("topology_balanced", rule)
    return message.topology_balanced


def _elastic(message: cluster_pb2.JobSpec, roles: tuple[Role, ...]) -> bool:
    if message.elastic and all(role.min_count == role.max_count for role in roles):
        rule = "needs a role whose max_count is more than its min_count"
        raise InvalidInput("elastic", rule)
    return message.elastic


def _spread(message: cluster_pb2.JobSpec) -> float:
    spread = message.expected_run_spread
    if not 0.0 <= spread <= MAX_SPREAD:
        raise InvalidInput("expected_run_spread", f"must be from 0 to {MAX_SPREAD:g}")
    if spread and not message.expected_run_s:
        raise InvalidInput("expected_run_spread", "needs expected_run_s, whose spread it is")
    return spread


def _roles(message: cluster_pb2.JobSpec, limits: Limits) -> tuple[Role, ...]:
    if not message.roles:
        raise InvalidInput("roles", "must have at least one role")
    check_count("roles", len(message.roles), limits.max_roles_per_job)
    roles = []
    for index, role in enumerate(message.roles):
        try:
            roles.append(_role(role, limits))
        except InvalidInput as error:
            raise within(f"roles[{index}]", error) from None
    if len(roles) > 1:
        _refuse_repeated_names(roles)
    n_tasks = sum(role.max_count for role in roles)
    if n_tasks > limits.max_tasks_per_job:
        rule = f"must have at most {limits.max_tasks_per_job} tasks, have {n_tasks}"
        raise InvalidInput("roles", rule)
    if not any(role.min_count for role in roles):
        raise InvalidInput("roles", "must have a role with a min_count of at least 1")
    return tuple(roles)


def _refuse_repeated_names(roles: list[Role]) -> None:
    seen: set[str] = set()
    for index, role in enumerate(roles):
        if role.name in seen:
            raise InvalidInput(f"roles[{index}].name", f"{role.name!r} is used twice")
        seen.add(role.name)


def _role(message: cluster_pb2.Role, limits: Limits) -> Role:
    name = message.name or DEFAULT_ROLE
    count = message.count if message.HasField("count") else 1
    check_int("count", count, 1, limits.max_tasks_per_job)
    min_count = message.min_count if message.HasField("min_count") else count
    max_count = message.max_count if message.HasField("max_count") else count
    if not 0 <= min_count <= count:
        raise InvalidInput("min_count", f"must be from 0 to count, which is {count}")
    if not count <= max_count <= limits.max_tasks_per_job:
        rule = f"must be from count, which is {count}, to {limits.max_tasks_per_job}"
        raise InvalidInput("max_count", rule)
    try:
        launch = _launch(message.launch, limits)
    except InvalidInput as error:
        raise within("launch", error) from None
    try:
        shape = _shared_shape(message.shape, limits)
    except InvalidInput as error:
        raise within("shape", error) from None
    return Role(
        name=check_name("name", name, limits.max_name_length),
        launch=launch,
        count=count,
        min_count=min_count,
        max_count=max_count,
        shape=shape,
    )


def _launch(message: cluster_pb2.Launch, limits: Limits) -> Launch:
    command = tuple(message.command)
    if not command or not command[0]:
        raise InvalidInput("command", "must not be empty")
    check_count("command", len(command), limits.max_args)
    joined = "".join(command)
    if "\0" in joined:
        raise InvalidInput("command", "must not contain NUL")
    if len(joined) > limits.max_args_bytes or len(joined.encode()) > limits.max_args_bytes:
        raise InvalidInput("command", f"must be at most {limits.max_args_bytes} bytes")
    working_dir = message.working_dir
    if working_dir:
        check_text("working_dir", working_dir, limits.max_path_length)
        if not working_dir.startswith("/"):
            raise InvalidInput("working_dir", "must be an absolute path")
    return Launch(
        command=command,
        env=_env(message.env, limits) if message.env else (),
        working_dir=working_dir,
        image=check_text("image", message.image, limits.max_path_length),
    )


def _env(env: Mapping[str, str], limits: Limits) -> tuple[tuple[str, str], ...]:
    check_count("env", len(env), limits.max_env)
    n_bytes = 0
    for key, value in env.items():
        if len(key) > limits.max_key_length or ENV_KEY.fullmatch(key) is None:
            raise InvalidInput("env", ENV_KEY_RULE)
        if "\0" in value:
            raise InvalidInput(f"env[{key}]", "must not contain NUL")
        n_bytes += len(key) + len(value.encode())
    if n_bytes > limits.max_env_bytes:
        raise InvalidInput("env", f"must be at most {limits.max_env_bytes} bytes")
    return tuple(sorted(env.items()))


def _shared_shape(message: cluster_pb2.Shape, limits: Limits) -> Shape:
    """Return one shape for all tasks that ask for the same: most jobs are alike in that."""
    data = message.SerializeToString(deterministic=True)
    if len(data) > MAX_SHARED_BYTES:
        return _shape(message, limits)
    return _known_shape(data, limits)


@lru_cache(maxsize=4_096)
def _known_shape(data: bytes, limits: Limits) -> Shape:
    return _shape(cluster_pb2.Shape.FromString(data), limits)


def _shape(message: cluster_pb2.Shape, limits: Limits) -> Shape:
    cpu_milli = message.cpu_milli if message.HasField("cpu_milli") else DEFAULT_CPU_MILLI
    gpus, gpu_milli = message.gpus, message.gpu_milli
    if gpus and gpu_milli:
        raise InvalidInput("gpu_milli", "must not be given together with gpus")
    if not 0 <= gpu_milli <= 999:
        raise InvalidInput("gpu_milli", "must be from 1 to 999")
    if message.gpu_memory_mib and not gpus and not gpu_milli:
        raise InvalidInput("gpu_memory_mib", "must not be given without gpus or gpu_milli")
    most_mib = limits.max_memory_mib
    return Shape(
        cpu_milli=check_int("cpu_milli", cpu_milli, 0, limits.max_cpu_milli),
        memory_mib=check_int("memory_mib", message.memory_mib, 0, most_mib),
        gpus=check_int("gpus", gpus, 0, limits.max_gpus_per_task),
        gpu_milli=gpu_milli,
        gpu_memory_mib=check_int("gpu_memory_mib", message.gpu_memory_mib, 0, most_mib),
        gpu_types=_gpu_types(message, limits) if message.gpu_types else (),
        node_labels=check_labels("node_labels", message.node_labels, limits),
        tolerations=_tolerations(message, limits) if message.tolerations else (),
    )


def _gpu_types(message: cluster_pb2.Shape, limits: Limits) -> tuple[str, ...]:
    check_count("gpu_types", len(message.gpu_types), limits.max_gpu_types)
    for index, gpu_type in enumerate(message.gpu_types):
        if not gpu_type:
            raise InvalidInput(f"gpu_types[{index}]", "must not be empty")
        check_text(f"gpu_types[{index}]", gpu_type, limits.max_value_length)
    return tuple(dict.fromkeys(message.gpu_types))


def _tolerations(message: cluster_pb2.Shape, limits: Limits) -> tuple[Toleration, ...]:
    check_count("tolerations", len(message.tolerations), limits.max_tolerations)
    tolerations = []
    for index, toleration in enumerate(message.tolerations):
        field = f"tolerations[{index}]"
        value = toleration.value if toleration.HasField("value") else None
        if not toleration.key:
            raise InvalidInput(f"{field}.key", "must not be empty")
        check_text(f"{field}.key", toleration.key, limits.max_key_length)
        check_text(f"{field}.value", value or "", limits.max_value_length)
        tolerations.append(Toleration(key=toleration.key, value=value))
    return tuple(tolerations)


def _dependencies(message: cluster_pb2.JobSpec, limits: Limits) -> tuple[Dependency, ...]:
    check_count("dependencies", len(message.dependencies), limits.max_dependencies)
    dependencies = []
    for index, dependency in enumerate(message.dependencies):
        field = f"dependencies[{index}]"
        kind = _DEPENDENCY_KINDS.get(dependency.kind)
        if kind is None:
            raise InvalidInput(f"{field}.kind", "must be a known kind")
        on = JobId(check_job_id(f"{field}.on", dependency.on))
        dependencies.append(Dependency(on=on, kind=kind))
    return tuple(dependencies)


def replicas_from(
    field: str, replicas: Mapping[str, int], limits: Limits
) -> tuple[tuple[str, int], ...]:
    """Return new counts by role, sorted."""
    check_count(field, len(replicas), limits.max_roles_per_job)
    for role, count in replicas.items():
        check_name(field, role, limits.max_name_length)
        check_int(f"{field}[{role}]", count, 0, limits.max_tasks_per_job)
    return tuple(sorted(replicas.items()))
