"""Other traces out of traces: a part, a sample, more load, slower time, estimates, queues.

Functions from jobs to jobs by rising `at_s`, so that they compose and stream; what is drawn
depends on the seed and the place in the trace alone.
"""

import heapq
import math
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from itertools import islice

from scheduler.core.errors import InvalidInput
from scheduler.core.model import MILLI, JobSpec, QueueName
from simulator.workload import Behaviour, Gang, Speed, Steady, TraceJob, TraceJobs


def head(jobs: Iterable[TraceJob], n_jobs: int) -> TraceJobs:
    """Yield the first jobs."""
    return islice(iter(jobs), n_jobs)


def window(jobs: Iterable[TraceJob], from_s: float, until_s: float = math.inf) -> TraceJobs:
    """Yield the jobs that come from `from_s` on and before `until_s`; read no further."""
    for job in jobs:
        if job.at_s >= until_s:
            return
        if job.at_s >= from_s:
            yield job


def sampled(jobs: Iterable[TraceJob], fraction: float, *, seed: int = 0) -> TraceJobs:
    """Yield each job with a probability of `fraction`."""
    if not 0 < fraction <= 1:
        raise InvalidInput("fraction", f"{fraction:g} is not above 0 and at most 1")
    draw = random.Random(seed)  # noqa: S311  # no secret
    return (job for job in jobs if draw.random() < fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which jobs to keep; what is not said does not matter."""

    queues: Collection[str] = ()
    submitters: Collection[str] = ()
    min_gpus: float = 0.0  # over all tasks
    max_gpus: float = math.inf
    gpu_types: Collection[str] = ()  # jobs that run on any type are kept

    def __call__(self, job: TraceJob) -> bool:
        """Return whether to keep the job."""
        n_gpus = job.spec.total_gpu_milli / MILLI
        asked = {name for role in job.spec.roles for name in role.shape.gpu_types}
        return (
            (not self.queues or job.spec.queue in self.queues)
            and (not self.submitters or job.submitter in self.submitters)
            and self.min_gpus <= n_gpus <= self.max_gpus
            and (not self.gpu_types or not asked or not asked.isdisjoint(self.gpu_types))
        )


def only(jobs: Iterable[TraceJob], wanted: Callable[[TraceJob], bool]) -> TraceJobs:
    """Yield the jobs that are wanted."""
    return filter(wanted, jobs)


def starting_at(jobs: Iterable[TraceJob], at_s: float) -> TraceJobs:
    """Yield the jobs with all moments moved so that the first comes at `at_s`."""
    moved_s: float | None = None
    for job in jobs:
        if moved_s is None:
            moved_s = at_s - job.at_s
        spec = _moved(job.spec, moved_s)
        yield replace(job, at_s=job.at_s + moved_s, spec=spec)


def with_load(jobs: Iterable[TraceJob], factor: float) -> TraceJobs:
    """Yield the jobs `factor` times as close to each other: that much more load."""
    _check_factor(factor)
    first_s: float | None = None
    for job in jobs:
        if first_s is None:
            first_s = job.at_s
        at_s = first_s + (job.at_s - first_s) / factor
        yield replace(job, at_s=at_s, spec=_moved(job.spec, at_s - job.at_s))


def stretched(jobs: Iterable[TraceJob], factor: float) -> TraceJobs:
    """Yield the jobs with all that takes time taking `factor` times as long."""
    _check_factor(factor)
    first_s: float | None = None
    for job in jobs:
        if first_s is None:
            first_s = job.at_s
        yield replace(
            job,
            at_s=first_s + (job.at_s - first_s) * factor,
            spec=_stretched_spec(job.spec, first_s, factor),
            behaviour=slower(job.behaviour, factor),
            startup_s=job.startup_s * factor,
            restore_s=job.restore_s * factor,
            save_s=job.save_s * factor,
        )


def with_estimates(
    jobs: Iterable[TraceJob], *, spread: float = 0.0, seed: int = 0
) -> TraceJobs:
    """Yield the jobs with estimates of their run times: the truth, times a lognormal error.

    `spread` is the error's relative standard deviation, which the scheduler is told; the error
    is 1 in the mean. Jobs without an end, or of a behaviour that does not know its time, keep
    what they have.
    """
    draw = random.Random(seed)  # noqa: S311  # no secret
    sigma = math.sqrt(math.log1p(spread**2))
    for job in jobs:
        error = math.exp(draw.gauss(0.0, 1.0) * sigma - sigma**2 / 2)
        run_s = _known_run_s(job.behaviour)
        if run_s is None:
            yield job
        else:
            spec = replace(job.spec, expected_run_s=run_s * error, expected_run_spread=spread)
            yield replace(job, spec=spec)


def in_queues(jobs: Iterable[TraceJob], queue_of: Callable[[TraceJob], str]) -> TraceJobs:
    """Yield the jobs in other queues."""
    for job in jobs:
        yield replace(job, spec=replace(job.spec, queue=QueueName(queue_of(job))))


def merged(*traces: Iterable[TraceJob]) -> TraceJobs:
    """Yield the jobs of several traces by their arrival."""
    return heapq.merge(*traces, key=lambda job: job.at_s)


@dataclass(frozen=True, slots=True)
class Slower:
    """A behaviour that takes `factor` times as long."""

    behaviour: Behaviour
    factor: float

    @property
    def work(self) -> float:
        """The work of the behaviour."""
        return self.behaviour.work

    def speed(self, gang: Gang, done: float) -> Speed:
        """Return its speed, slowed down."""
        speed = self.behaviour.speed(gang, done)
        return Speed(speed.per_s / self.factor, speed.until_done)


def slower(behaviour: Behaviour, factor: float) -> Behaviour:
    """Return the behaviour taking `factor` times as long."""
    if isinstance(behaviour, Steady):
        return replace(behaviour, work=behaviour.work * factor)
    return Slower(behaviour, factor)


def _known_run_s(behaviour: Behaviour) -> float | None:
    """Return the time of all tasks on the fastest type, if it is known and ends."""
    if not isinstance(behaviour, Steady) or math.isinf(behaviour.work):
        return None
    fastest = max((speed for _, speed in behaviour.speeds), default=1.0)
    return behaviour.work / fastest if fastest > 0 else None


def _moved(spec: JobSpec, by_s: float) -> JobSpec:
    if not (spec.deadline_at_s or spec.start_after_s):
        return spec
    return replace(
        spec,
        deadline_at_s=spec.deadline_at_s and spec.deadline_at_s + by_s,
        start_after_s=spec.start_after_s and spec.start_after_s + by_s,
    )


def _stretched_spec(spec: JobSpec, first_s: float, factor: float) -> JobSpec:
    def moment(at_s: float) -> float:
        return at_s and first_s + (at_s - first_s) * factor

    return replace(
        spec,
        checkpoint_interval_s=spec.checkpoint_interval_s * factor,
        grace_s=spec.grace_s * factor,
        backoff_s=spec.backoff_s * factor,
        time_limit_s=spec.time_limit_s * factor,
        expected_run_s=spec.expected_run_s * factor,
        min_runtime_s=spec.min_runtime_s * factor,
        resize_cooldown_s=spec.resize_cooldown_s * factor,
        # Where speeds are given they say it: so much work at a lower speed.
        total_work=spec.total_work * (1.0 if spec.throughputs else factor),
        throughputs=tuple((name, speed / factor) for name, speed in spec.throughputs),
        shared_throughputs=tuple(
            replace(shared, per_s=shared.per_s / factor) for shared in spec.shared_throughputs
        ),
        deadline_at_s=moment(spec.deadline_at_s),
        start_after_s=moment(spec.start_after_s),
    )


def _check_factor(factor: float) -> None:
    if not (factor > 0 and math.isfinite(factor)):
        raise InvalidInput("factor", f"{factor:g} is not a positive number")
