"""One simulation of many: which jobs, which cluster, which policy, which seed.

Everything is plain data that another process can be sent, so that a sweep may run anywhere;
what comes back is a `Summary`. Equal cases give equal summaries.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from policies.registry import POLICIES, in_rounds_of, is_aimed, policy_named, score_named
from scheduler.core.errors import InvalidInput
from scheduler.core.ports import Backfilling, Policy
from scheduler.core.snapshot import Snapshot
from simulator.cluster import SimulatedCluster
from simulator.inference import with_services
from simulator.presets import preset
from simulator.report import Summary, summarised
from simulator.service_file import Offered, beginning_at
from simulator.simulation import DEFAULTS, Settings, simulate
from simulator.synthetic import generate, scaled_to
from simulator.traces import read_trace
from simulator.traces.format import Assumptions
from simulator.traces.transforms import (
    Wanted,
    merged,
    only,
    sampled,
    stretched,
    window,
    with_estimates,
    with_load,
)
from simulator.workload import NodeOutage, Steady, TraceJob, TraceJobs

_ANY_JOB = Wanted()
_NOTHING_SAID = Assumptions()
_PLENTY = 2**62
"""Jobs of a preset of which others choose, and stop: more than are ever made."""
_PATIENCE = 200_000
"""Jobs of a preset in a row that nobody wants, after which none is expected any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where jobs come from, and what is made of them, in this order."""

    path: str = ""
    format: str = ""  # empty: told by the file
    preset: str = ""  # instead of a file: made up, scaled to the cluster, new for each seed
    scale_to_gpus: float = 0.0  # of a preset: as busy as on so many; 0: as the cluster has
    assume: Assumptions = _NOTHING_SAID
    after_s: float = 0.0  # since the first job: from here on
    span_s: float = math.inf  # and for so long
    wanted: Wanted = _ANY_JOB
    sample: float = 1.0  # the part of the jobs that is kept, drawn anew for each seed
    load: float = 1.0
    stretch: float = 1.0
    n_jobs: int | None = None  # the first so many of what is left
    estimate_spread: float | None = None  # users know run times up to such an error
    speeds: tuple[tuple[str, float], ...] = ()  # by GPU type, of jobs that do not say theirs

    @property
    def name(self) -> str:
        """What to call it in a report."""
        return self.preset or Path(self.path).name or "services"

    @property
    def is_nothing(self) -> bool:
        """Whether there are no jobs to come: services alone."""
        return not self.path and not self.preset

    @property
    def draws(self) -> bool:
        """Whether another seed gives other jobs."""
        return bool(self.preset) or self.sample < 1.0 or bool(self.estimate_spread)

    def jobs(
        self, *, n_gpus: float, seed: int, skipped: Counter[str] | None = None
    ) -> TraceJobs:
        """Yield the jobs by rising `at_s`. Raises TraceError and InvalidInput."""
        jobs = self._all(n_gpus, seed, skipped)
        if self.after_s or self.span_s < math.inf:
            jobs = _part(jobs, self.after_s, self.span_s)
        if self.wanted != _ANY_JOB:
            jobs = self._wanted_of_preset(jobs) if self.preset else only(jobs, self.wanted)
        if self.sample < 1.0:
            jobs = sampled(jobs, self.sample, seed=seed)
        if self.load != 1.0:
            jobs = with_load(jobs, self.load)
        if self.stretch != 1.0:
            jobs = stretched(jobs, self.stretch)
        if self.speeds:
            jobs = with_speeds(jobs, self.speeds)
        if self.estimate_spread is not None:
            jobs = with_estimates(jobs, spread=self.estimate_spread, seed=seed)
        return islice(jobs, self.n_jobs) if self.n_jobs is not None else jobs

    def _all(self, n_gpus: float, seed: int, skipped: Counter[str] | None) -> TraceJobs:
        if self.is_nothing:
            return iter(())
        if not self.preset:
            return read_trace(
                self.path, self.format or None, assume=self.assume, skipped=skipped
            )
        n_gpus = self.scale_to_gpus or n_gpus
        if n_gpus <= 0:
            rule = f"has no GPUs, which the jobs of {self.preset} would ask for"
            raise InvalidInput("cluster", rule)
        workload = scaled_to(preset(self.preset), n_gpus)
        n_jobs = self.n_jobs if self._keeps_all else None
        if n_jobs is None and (self.n_jobs is not None or self.span_s < math.inf):
            n_jobs = _PLENTY  # what follows takes as many as it needs
        return generate(workload, seed=seed, n_jobs=n_jobs, assume=self.assume)

    def _wanted_of_preset(self, jobs: TraceJobs) -> TraceJobs:
        """Yield the jobs that are wanted: if none ever comes, an endless preset would hang."""
        n_in_vain = 0
        for job in jobs:
            n_in_vain = 0 if self.wanted(job) else n_in_vain + 1
            if not n_in_vain:
                yield job
            elif n_in_vain == _PATIENCE:
                rule = (
                    f"{self.preset} made {_PATIENCE:,} jobs in a row, of which none is wanted"
                )
                raise InvalidInput("preset", rule)

    @property
    def _keeps_all(self) -> bool:
        return self.wanted == _ANY_JOB and self.sample >= 1.0 and not self.after_s


def with_speeds(jobs: Iterable[TraceJob], speeds: tuple[tuple[str, float], ...]) -> TraceJobs:
    """Yield the jobs, of which those that say nothing of speeds get these: 1 is their own.

    Such a job does not run on a type that is not named, and the scheduler knows.
    """
    speeds = tuple(sorted(speeds))
    for job in jobs:
        behaviour = job.behaviour
        if isinstance(behaviour, Steady) and not behaviour.speeds and job.spec.total_gpu_milli:
            spec = job.spec if job.spec.throughputs else replace(job.spec, throughputs=speeds)
            yield replace(job, spec=spec, behaviour=replace(behaviour, speeds=speeds))
        else:
            yield job


def _part(jobs: TraceJobs, after_s: float, span_s: float) -> TraceJobs:
    first = next(jobs, None)
    if first is None:
        return iter(())
    from_s = first.at_s + after_s
    return window(chain([first], jobs), from_s, from_s + span_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """A policy by names, as a command line or a report says it."""

    policy: str
    score: str = ""  # empty: the policy's own
    backfill: str = ""
    round_s: float = 0.0  # 0: the policy's own

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise InvalidInput(
                "policy", f"is {self.policy!r}; must be one of {', '.join(POLICIES)}"
            )
        if self.score:
            score_named(self.score)
        if self.backfill and self.backfill not in set(Backfilling):
            raise InvalidInput(
                "backfill", f"is {self.backfill!r}; must be one of {', '.join(Backfilling)}"
            )

    @property
    def label(self) -> str:
        """Return `fifo:fgd:conservative`, without what was not said."""
        return ":".join(filter(None, [self.policy, self.score, self.backfill]))

    @property
    def is_aimed(self) -> bool:
        """Whether its score is made for the jobs there are, again and again."""
        return is_aimed(self.score)

    def made(self, snapshot: Snapshot | None = None) -> Policy:
        """Return the policy."""
        policy = policy_named(self.policy, score=self.score or None, snapshot=snapshot)
        if self.round_s:
            policy = in_rounds_of(policy, self.round_s)
        if self.backfill:
            policy = replace(policy, backfill=Backfilling(self.backfill))
        return replace(policy, name=self.label)


def deciding(
    text: str, *, score: str = "", backfill: str = "", round_s: float = 0.0
) -> Deciding:
    """Read `POLICY[:SCORE][:BACKFILL]`; what the text does not say comes from the arguments."""
    policy, *rest = text.split(":")
    backfills = [word for word in rest if word in set(Backfilling)]
    scores = [word for word in rest if word not in set(Backfilling)]
    for kind, words in (("score", scores), ("backfill", backfills)):
        if len(words) > 1:
            raise InvalidInput("policy", f"{text} names more than one {kind}")
    score, backfill = (*scores, score)[0], (*backfills, backfill)[0]
    return Deciding(policy=policy, score=score, backfill=backfill, round_s=round_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One simulation."""

    cluster: SimulatedCluster
    source: Source
    deciding: Deciding
    seed: int = 0
    settings: Settings = DEFAULTS
    until_s: float = math.inf  # cut off so long after the first job
    services: tuple[Offered, ...] = ()  # their loads begin with the first job
    outages: tuple[NodeOutage, ...] = ()  # in the trace's time, besides those at random


Advance = Callable[[float, float], None]
"""How a case says how many of its jobs were submitted and have ended."""


def n_gpus_of(cluster: SimulatedCluster) -> float:
    """Return the GPUs of the cluster at the start."""
    return float(sum(len(node.gpus) for node in cluster.nodes()))


def n_gpus_by_type(cluster: SimulatedCluster) -> dict[str, float]:
    """Return the GPUs of the cluster at the start, by type."""
    found: dict[str, float] = {}
    for node in cluster.nodes():
        if node.gpus:
            found[node.gpu_type] = found.get(node.gpu_type, 0.0) + len(node.gpus)
    return found


def run_case(case: Case, advance: Advance | None = None) -> Summary:
    """Simulate the case and return what it comes to."""
    skipped: Counter[str] = Counter()
    asked = _with_services(case, skipped)
    first = next(asked.jobs, None)
    if first is None:
        raise InvalidInput(
            "trace", f"{case.source.name}: there are no jobs in it, or none left"
        )
    choice = case.deciding
    loads_end_s = max([one.service.load.at_s[-1] for one in asked.services], default=math.inf)
    run = simulate(
        case.cluster,
        chain([first], asked.jobs),
        choice.made(),
        seed=case.seed,
        outages=case.outages,
        settings=replace(
            case.settings,
            until_s=first.at_s + case.until_s,
            serve_until_s=float(loads_end_s),
            aim=choice.made if choice.is_aimed else None,
        ),
        progress=None
        if advance is None
        else lambda so_far: advance(so_far.n_submitted, so_far.n_ended),
        trace=case.source.name,
    )
    run = with_services(run, {one.key: one.service for one in asked.services})
    summary = summarised(replace(run, policy=choice.label))
    return replace(summary, skipped=dict(sorted(skipped.items())))


class _Asked(NamedTuple):
    """What is asked of the cluster: jobs by rising `at_s`, and services from the first on."""

    jobs: TraceJobs
    services: tuple[Offered, ...]


def _with_services(case: Case, skipped: Counter[str] | None = None) -> _Asked:
    jobs = case.source.jobs(n_gpus=n_gpus_of(case.cluster), seed=case.seed, skipped=skipped)
    first = next(jobs, None)
    if first is None and not case.source.is_nothing:
        return _Asked(iter(()), ())
    services = beginning_at(case.services, first.at_s if first is not None else 0.0)
    submitted = [one.job for one in services if one.job is not None]
    rest = chain([first], jobs) if first is not None else jobs
    return _Asked(merged(submitted, rest), services)


def jobs_of(case: Case) -> TraceJobs:
    """Yield all jobs of the case, those that are services too."""
    return _with_services(case).jobs


def n_jobs_of(case: Case) -> int:
    """Count the jobs of the case, reading all of them."""
    return sum(1 for _ in jobs_of(case))
