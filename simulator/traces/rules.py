"""What a job of a trace must be like, beyond its types: no scheduler would take another.

The daemon checks what it is sent; a trace comes by no wire. `InvalidInput` names the field.
"""

from collections.abc import Iterable

from scheduler.core.errors import InvalidInput
from scheduler.core.model import MILLI, JobSpec, Role, Shape
from scheduler.quantities import MOST
from simulator.workload import FOREVER, Behaviour, Steady, TraceJob

_SPEC_AMOUNTS = (
    "checkpoint_interval_s", "grace_s", "max_retries", "backoff_s", "time_limit_s",
    "start_after_s", "array_size", "expected_run_s", "expected_run_spread", "min_runtime_s",
    "deadline_at_s", "total_work", "resize_cooldown_s",
)  # fmt: skip
_SHAPE_AMOUNTS = ("cpu_milli", "memory_mib", "gpus", "gpu_milli", "gpu_memory_mib")
_FACTORS = ("across_racks", "beside_others")

MOST_S = 1e11
"""Some 3,000 years, as a moment or a time: more is a mistake, often of the unit."""


def check_times(job: TraceJob) -> None:
    """Refuse moments and run times of which only a mistake can tell."""
    if not abs(job.at_s) <= MOST_S:
        raise InvalidInput("at_s", too_long(job.at_s))
    for name in ("startup_s", "restore_s"):
        if not 0 <= getattr(job, name) <= MOST_S:
            raise InvalidInput(name, too_long(getattr(job, name)))
    if isinstance(job.behaviour, Steady):
        work = job.behaviour.work
        if not work >= 0:
            raise InvalidInput(
                "behaviour.work", f"{work:g} is negative: it ends before it began"
            )
        if work < FOREVER and work > MOST_S * _slowest(job.behaviour):
            rule = f"{work:g} takes more than {MOST_S:g} s, some 3,000 years"
            raise InvalidInput("behaviour.work", rule)


def too_long(time_s: float) -> str:
    """Return what is wrong with a time or moment that is too large."""
    return f"{time_s:g} s is more than {MOST_S:g} s, some 3,000 years: is it in seconds?"


def _slowest(steady: Steady) -> float:
    """Return the least speed at which it may go, where it goes at all."""
    slowest = min((s for _, s in steady.speeds if s > 0), default=1.0)
    factors = [1.0, steady.across_racks, steady.beside_others, *(f for _, f in steady.scaling)]
    return slowest * min(factor for factor in factors if factor > 0)


def check_roles(roles: Iterable[Role]) -> None:
    """Refuse roles that cannot be: too few tasks, or shapes of less than nothing."""
    names: set[str] = set()
    for number, role in enumerate(roles):
        at = f"spec.roles[{number}]"
        if role.name in names:
            raise InvalidInput(f"{at}.name", f"{role.name!r} is used twice")
        names.add(role.name)
        if not 1 <= role.count <= MOST:
            raise InvalidInput(f"{at}.count", f"must be from 1 to {MOST}")
        if not 0 <= role.min_count <= role.count:
            raise InvalidInput(f"{at}.min_count", f"must be from 0 to count, {role.count}")
        if not role.count <= role.max_count <= MOST:
            raise InvalidInput(
                f"{at}.max_count", f"must be from count, {role.count}, to {MOST}"
            )
        _check_shape(role.shape, f"{at}.shape")
    if not any(role.min_count for role in roles):
        raise InvalidInput("spec.roles", "one must have a min_count of at least 1")


def _check_shape(shape: Shape, at: str) -> None:
    for name in _SHAPE_AMOUNTS:
        if not 0 <= getattr(shape, name) <= MOST:
            raise InvalidInput(f"{at}.{name}", f"must be from 0 to {MOST}")
    if shape.gpus > MOST // MILLI:
        raise InvalidInput(f"{at}.gpus", f"must be at most {MOST // MILLI}")
    if shape.gpu_milli >= MILLI:
        raise InvalidInput(f"{at}.gpu_milli", f"must be below {MILLI}: whole ones are gpus")
    if shape.gpus and shape.gpu_milli:
        raise InvalidInput(f"{at}.gpu_milli", "must not be given together with gpus")


def check_spec(spec: JobSpec) -> None:
    """Refuse negative amounts, of which a scheduler would make nonsense."""
    for name in _SPEC_AMOUNTS:
        amount = getattr(spec, name)
        if amount < 0:
            raise InvalidInput(f"spec.{name}", "must not be negative")
        if name.endswith("_s") and amount > MOST_S:
            raise InvalidInput(f"spec.{name}", too_long(amount))
    if abs(spec.priority) > MOST:
        raise InvalidInput("spec.priority", f"must be from -{MOST} to {MOST}")
    if not spec.weight > 0:
        raise InvalidInput("spec.weight", "must be above 0")
    _check_speeds("spec.throughputs", spec.throughputs)
    _check_scaling("spec.scaling", spec.scaling)


def check_behaviour(behaviour: Behaviour) -> None:
    """Refuse work and speeds of less than nothing."""
    if not behaviour.work >= 0:
        raise InvalidInput("behaviour.work", "must not be negative")
    if not isinstance(behaviour, Steady):
        return
    if behaviour.n_tasks < 1:
        raise InvalidInput("behaviour.n_tasks", "must be at least 1")
    for name in _FACTORS:
        if getattr(behaviour, name) < 0:
            raise InvalidInput(f"behaviour.{name}", "must not be negative")
    _check_speeds("behaviour.speeds", behaviour.speeds)
    _check_scaling("behaviour.scaling", behaviour.scaling)


def _check_speeds(field: str, speeds: tuple[tuple[str, float], ...]) -> None:
    for gpu_type, speed in speeds:
        if speed < 0:
            raise InvalidInput(f"{field}[{gpu_type}]", "must not be negative")


def _check_scaling(field: str, scaling: tuple[tuple[int, float], ...]) -> None:
    for n_tasks, factor in scaling:
        if n_tasks < 1 or factor < 0:
            raise InvalidInput(f"{field}[{n_tasks}]", "must be of 1 task or more, from 0 on")
    if len({n_tasks for n_tasks, _ in scaling}) < len(scaling):
        raise InvalidInput(field, "must name each number of tasks once")
