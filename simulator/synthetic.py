"""Workloads that are made up, with the distributions of real ones.

`generate` yields as many jobs as asked for, the same for the same seed:

- arrivals are a Poisson process whose rate follows an hourly and a weekly profile;
- the GPUs and the ending of a job are drawn together, independent of each other;
- its run time is lognormal, truncated at `max_run_s`, with a median that depends on how it
  ends and grows with a power of its GPUs: over all, a mixture of lognormals;
- queues are drawn by their shares, users within a queue by Zipf's law.

Sizes, endings and run times are drawn so that each gets its due, in random order: a short trace
has the statistics of a long one, although a few jobs in a thousand make most of the load.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobPhase
from simulator.traces.format import Assumptions
from simulator.traces.jobs import Facts, gpu_gang, job_of
from simulator.workload import TraceJobs

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 4_096
_HOUR_S = 3_600.0
_DAY_S = 24 * _HOUR_S
_WEEK_S = 7 * _DAY_S
_SHORTEST_S = 1.0  # no trace has jobs below the grain of its clock

FLAT_DAY = (1.0,) * 24
FLAT_WEEK = (1.0,) * 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The jobs that end in one way: how many, and how long they run before."""

    phase: JobPhase
    share: float  # of the jobs
    median_s: float  # of the run time on one GPU, before truncation
    growth: float = 0.0  # the median grows with GPUs to this power


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The distributions of a workload. Shares need not sum to one."""

    name: str
    n_gpus: float  # of the cluster that it loads
    jobs_per_day: float
    sizes: tuple[tuple[float, float], ...]  # GPUs of a job, and its share; fractions below 1
    endings: tuple[Ending, ...]
    spread: float  # standard deviation of the logarithm of the run time
    max_run_s: float
    hourly: tuple[float, ...] = FLAT_DAY  # rate by hour of the day, up to a factor
    weekly: tuple[float, ...] = FLAT_WEEK  # rate by day of the week from Monday
    queues: tuple[tuple[str, float], ...] = (("default", 1.0),)
    n_users: int = 20  # of each queue; the k-th is k times rarer than the first


def scaled_to(workload: Workload, n_gpus: float) -> Workload:
    """Return the workload for another cluster: as much load per GPU, no job too wide for it.

    Wide is more than half of the cluster.
    """
    widest = max(min(size for size, _ in workload.sizes), n_gpus / 2)
    sizes = tuple((size, share) for size, share in workload.sizes if size <= widest)
    narrower = replace(workload, sizes=sizes)
    load = n_gpus / workload.n_gpus * mean_gpu_s(workload) / mean_gpu_s(narrower)
    return replace(narrower, n_gpus=n_gpus, jobs_per_day=workload.jobs_per_day * load)


def mean_gpu_s(workload: Workload) -> float:
    """Return the expected GPU-seconds of a job, in closed form."""
    return sum(gpu_s_by_ending(workload).values())


def gpu_s_by_ending(workload: Workload) -> dict[JobPhase, float]:
    """Return how the endings make up the expected GPU-seconds of a job, in closed form."""
    cells = _Cells.of(workload)
    at_max = (math.log(workload.max_run_s) - cells.log_median) / workload.spread
    mean_s = np.exp(cells.log_median + workload.spread**2 / 2)
    mean_s *= ndtr(at_max - workload.spread) / cells.mass
    gpu_s = np.bincount(cells.ending, weights=cells.share * cells.n_gpus * mean_s)
    phases = [ending.phase for ending in workload.endings]
    return dict(zip(phases, gpu_s.tolist(), strict=True))


def generate(
    workload: Workload,
    *,
    seed: int,
    n_jobs: int | None = None,
    until_s: float = math.inf,
    from_s: float = 0.0,
    assume: Assumptions | None = None,
) -> TraceJobs:
    """Yield jobs by rising `at_s` from `from_s`, a Monday midnight, until there are enough."""
    _check(workload)
    if n_jobs is None and math.isinf(until_s):
        raise InvalidInput("n_jobs", "say how many jobs, or until when")
    jobs = _jobs(workload, seed, n_jobs, from_s, assume or Assumptions())
    jobs = islice(jobs, n_jobs)
    for job in jobs:
        if job.at_s >= until_s:
            return
        yield job


def _jobs(
    workload: Workload, seed: int, n_jobs: int | None, from_s: float, assume: Assumptions
) -> TraceJobs:
    random = np.random.Generator(np.random.PCG64(seed))
    cells = _Cells.of(workload)
    draws = _Draws(cells, random)
    arrivals = _Arrivals(workload)
    number = 0
    while n_jobs is None or number < n_jobs:
        n = _BLOCK if n_jobs is None else min(_BLOCK, n_jobs - number)
        at_s = from_s + arrivals.next(random, n)
        which, run_s = draws.next(n)
        people = list(_people(random, workload, n))
        n_gpus, endings = cells.n_gpus[which].tolist(), cells.ending[which].tolist()
        for i, (moment_s, ran_s) in enumerate(zip(at_s.tolist(), run_s.tolist(), strict=True)):
            queue, user = people[i]
            facts = Facts(
                key=f"{workload.name}-{number}",
                at_s=round(moment_s, 3),
                run_s=round(ran_s, 3),
                roles=gpu_gang(n_gpus[i], assume),
                ends_as=workload.endings[endings[i]].phase,
                queue=queue,
                submitter=user,
            )
            number += 1
            yield job_of(facts, assume)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cells:
    """Every pair of an ending and a number of GPUs."""

    share: Floats
    n_gpus: Floats
    ending: Ints
    log_median: Floats
    mass: Floats  # of the lognormal below `max_run_s`
    spread: float

    @classmethod
    def of(cls, workload: Workload) -> "_Cells":
        sizes, size_shares = np.array(workload.sizes, dtype=np.float64).T
        ending_shares = np.array([ending.share for ending in workload.endings])
        growth = np.array([ending.growth for ending in workload.endings])
        medians = np.array([ending.median_s for ending in workload.endings])
        log_median = np.log(medians)[:, None] + growth[:, None] * np.log(sizes)
        share = np.outer(ending_shares, size_shares).ravel()
        log_median = log_median.ravel()
        n_endings = len(workload.endings)
        return cls(
            share=share / share.sum(),
            n_gpus=np.tile(sizes, n_endings),
            ending=np.repeat(np.arange(n_endings), len(sizes)),
            log_median=log_median,
            mass=ndtr((math.log(workload.max_run_s) - log_median) / workload.spread),
            spread=workload.spread,
        )


class _Draws:
    """Jobs out of the cells: points of a scrambled Sobol' sequence, as (cell, run time).

    However many jobs there are, each region of cells and run times has its due of them within
    very little (Owen, Scrambled Net Variance, 1997); cells stand in the order of their run
    times, so that rare ones make up for each other.
    """

    def __init__(self, cells: _Cells, random: np.random.Generator) -> None:
        from scipy.stats.qmc import (  # type: ignore[import-untyped]  # slow to import
            Sobol,
        )

        self._cells = cells
        self._random = random
        self._order = np.argsort(cells.log_median, kind="stable")
        self._below = np.cumsum(cells.share[self._order])[:-1]
        self._points = Sobol(2, scramble=True, rng=random)

    def next(self, n: int) -> tuple[Ints, Floats]:
        """Return the cells and the run times of so many jobs, at most a block, shuffled."""
        cells = self._cells
        along, quantile = self._points.random(_BLOCK)[:n].T
        which = self._order[np.searchsorted(self._below, along, side="right")]
        z = ndtri(np.clip(quantile * cells.mass[which], 1e-12, 1 - 1e-12))
        run_s = np.exp(cells.log_median[which] + cells.spread * z)
        shuffled = self._random.permutation(n)
        return which[shuffled], np.maximum(run_s, _SHORTEST_S)[shuffled]


class _Arrivals:
    """A Poisson process with a weekly profile, drawn in the time in which its rate is one."""

    def __init__(self, workload: Workload) -> None:
        rate = np.outer(workload.weekly, workload.hourly).ravel()
        rate = rate / rate.mean() * workload.jobs_per_day / 24
        self._expected = np.concatenate(
            [[0.0], np.cumsum(rate)]
        )  # jobs by the hour of the week
        self._hours_s = np.arange(len(self._expected)) * _HOUR_S
        self._passed = 0.0

    def next(self, random: np.random.Generator, n: int) -> Floats:
        passed = self._passed + np.cumsum(-np.log1p(-random.random(n)))
        self._passed = float(passed[-1])
        weeks, rest = np.divmod(passed, self._expected[-1])
        at_s: Floats = weeks * _WEEK_S + np.interp(rest, self._expected, self._hours_s)
        return at_s


def _people(
    random: np.random.Generator, workload: Workload, n: int
) -> Iterator[tuple[str, str]]:
    """Yield a queue and a user of it for so many jobs."""
    names = [name for name, _ in workload.queues]
    queues = _chosen(random, np.array([share for _, share in workload.queues]), n)
    users = _chosen(random, 1.0 / np.arange(1, workload.n_users + 1), n)
    for queue, user in zip(queues.tolist(), users.tolist(), strict=True):
        yield names[queue], f"{names[queue]}-user-{user + 1}"


def _chosen(random: np.random.Generator, shares: Floats, n: int) -> Ints:
    below = np.cumsum(shares)[:-1] / shares.sum()
    return np.searchsorted(below, random.random(n), side="right")


def _check(workload: Workload) -> None:
    rules = (
        ("jobs_per_day", workload.jobs_per_day > 0),
        ("sizes", all(size >= 0 and share >= 0 for size, share in workload.sizes)),
        ("endings", all(e.share >= 0 and e.median_s > 0 for e in workload.endings)),
        ("spread", workload.spread > 0),
        ("max_run_s", workload.max_run_s > 0),
        ("hourly", len(workload.hourly) == 24 and min(workload.hourly) > 0),
        ("weekly", len(workload.weekly) == 7 and min(workload.weekly) > 0),
        ("n_users", workload.n_users > 0),
    )
    for field, holds in rules:
        if not holds:
            raise InvalidInput(field, f"{getattr(workload, field)} cannot be")
