"""From the wire to the core: what jobs say of their speed, or `InvalidInput`."""

from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobKind, Role, SharedThroughput
from scheduler.daemon.limits import Limits, check_amount, check_count, check_text
from scheduler.wire import cluster_pb2


def throughputs_from(
    message: cluster_pb2.JobSpec, limits: Limits
) -> tuple[tuple[str, float], ...]:
    """Return the work per second by GPU type, sorted."""
    check_count("throughputs", len(message.throughputs), limits.max_gpu_types)
    for gpu_type, speed in message.throughputs.items():
        if not gpu_type:
            raise InvalidInput("throughputs", "must name GPU types")
        check_text("throughputs", gpu_type, limits.max_value_length)
        check_amount(f"throughputs[{gpu_type}]", speed)
    return tuple(sorted(message.throughputs.items()))


def scaling_from(message: cluster_pb2.JobSpec, limits: Limits) -> tuple[tuple[int, float], ...]:
    """Return the work per second by number of tasks, sorted."""
    check_count("scaling", len(message.scaling), limits.max_scaling_points)
    for n_tasks, speed in message.scaling.items():
        if not 1 <= n_tasks <= limits.max_tasks_per_job:
            rule = f"must be of 1 to {limits.max_tasks_per_job} tasks"
            raise InvalidInput(f"scaling[{n_tasks}]", rule)
        check_amount(f"scaling[{n_tasks}]", speed)
    return tuple(sorted(message.scaling.items()))


def shared_throughputs_from(
    message: cluster_pb2.JobSpec, kind: JobKind, roles: tuple[Role, ...], limits: Limits
) -> tuple[SharedThroughput, ...]:
    """Return how fast the job is beside others, sorted by GPU type and profile."""
    name = "shared_throughputs"
    check_count(name, len(message.shared_throughputs), limits.max_shared_throughputs)
    if not message.profile:
        raise InvalidInput(name, "needs a profile, by which others say the same of this job")
    if kind is JobKind.INFERENCE or [role.max_count for role in roles] != [1]:
        raise InvalidInput(name, "needs a job of a single task that is no service")
    if not roles[0].shape.gpus:
        raise InvalidInput(name, "needs a task with whole GPUs, which two jobs then share")
    found: dict[tuple[str, str], SharedThroughput] = {}
    for index, measured in enumerate(message.shared_throughputs):
        at = f"{name}[{index}]"
        key = (measured.gpu_type, measured.beside)
        for part, text in zip(("gpu_type", "beside"), key, strict=True):
            if not text:
                raise InvalidInput(f"{at}.{part}", "must not be empty")
            check_text(f"{at}.{part}", text, limits.max_value_length)
        if message.throughputs and measured.gpu_type not in message.throughputs:
            raise InvalidInput(f"{at}.gpu_type", "must be one that throughputs name")
        if key in found:
            raise InvalidInput(at, f"says twice how fast it is beside {measured.beside!r}")
        per_s = check_amount(f"{at}.per_s", measured.per_s)
        found[key] = SharedThroughput(
            gpu_type=measured.gpu_type, beside=measured.beside, per_s=per_s
        )
    return tuple(found[key] for key in sorted(found))
