"""Table 2: Gavel's policies on its traces, by its rules, through our scheduler.

Published: `measured_reference.csv`, from the authors' simulator run unmodified. The static
traces run on 8 V100, 16 P100 and 24 K80 until all jobs have ended; the generated one on 36 of
each until jobs 500 to 999 have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from math import floor, log
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from policies.orderings import nobody
from scheduler.core.model import Gpu, JobPhase, Node, NodeName, Shape
from scheduler.core.node_books import NodeBooks
from scheduler.core.node_columns import NodeColumns, Rows
from scheduler.core.ports import Backfilling, Policy
from scheduler.core.snapshot import Snapshot
from simulator.cluster import SimulatedCluster, cluster_of
from simulator.reproduction.gavel_rounds import ROUND_S, ROUNDING, Rounds
from simulator.reproduction.gavel_rule import GavelRule, rule_of
from simulator.reproduction.gavel_shares import (
    GAVEL_POLICIES,
    OUR_POLICIES,
    PRICE_USD_PER_H,
    TieBreak,
)
from simulator.run import JobTable, Run
from simulator.simulation import simulate
from simulator.traces.format import Assumptions
from simulator.traces.gavel import (
    PHYSICAL,
    SIMULATED,
    JobType,
    Line,
    Throughputs,
    job_of_line,
    read_jobs,
    read_throughputs,
)
from simulator.traces.source import Source
from simulator.workload import Gang, Speed, Steady, TraceJob, TraceJobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A trace, the GPUs it runs on, and what is measured of it."""

    name: str  # as the reference abbreviates it
    gpus: dict[str, int]
    window: range = range(0)  # the jobs that are measured; empty: all

    def jobs(self, folder: Path) -> TraceJobs:
        """Yield the jobs."""
        return _generated_jobs(folder) if self.window else _static_jobs(folder, self.name)

    def is_exact(self, policy: str) -> bool:
        """Whether jobs do their steps as Gavel's do, to the second, at the cost of restarts.

        First come first served draws types, and one draw more or less changes all that follow.
        """
        return not self.window or policy == "fifo"


STATIC_GPUS = {"V100": 8, "P100": 16, "K80": 24}
EXPERIMENTS = (
    Experiment(name="static_max_min_fairness", gpus=STATIC_GPUS),
    Experiment(name="static_minimize_makespan", gpus=STATIC_GPUS),
    Experiment(
        name="gens_l900_s0", gpus={"V100": 36, "P100": 36, "K80": 36}, window=range(500, 1000)
    ),
)

GENERATED = "generated_36x3_l900_seed0.csv.gz"
MEAN_GAP_S = 900.0
MODELS = (
    *(f"ResNet-18 (batch size {size})" for size in (16, 32, 64, 128, 256)),
    *(f"ResNet-50 (batch size {size})" for size in (16, 32, 64, 128)),
    *(f"Transformer (batch size {size})" for size in (16, 32, 64, 128, 256)),
    *(f"LM (batch size {size})" for size in (5, 10, 20, 40, 80)),
    *(f"Recommendation (batch size {size})" for size in (512, 1024, 2048, 4096, 8192)),
    "A3C",
    "CycleGAN",
)
"""The job types of Gavel's generator, in the order in which it draws from them."""


def _static_jobs(folder: Path, name: str) -> TraceJobs:
    throughputs = read_throughputs(folder / f"{PHYSICAL}.json.gz")
    path = folder / f"{name.removeprefix('static_')}.trace.gz"
    return read_jobs(Source(path), throughputs, Assumptions())


def _generated_jobs(folder: Path) -> TraceJobs:
    """Yield the jobs of the file, which ends with the shortest run, and then those to come.

    The longer runs saw more of the same generator's jobs. That it is the same is checked here.
    """
    source = Source(folder / GENERATED)
    throughputs = read_throughputs(folder / f"{SIMULATED}.json.gz")
    drawn = generated(throughputs)
    for job in read_jobs(source, throughputs, Assumptions()):
        if job != (like := next(drawn)):
            raise source.error(f"job {job.key} is not as generated: {like.spec.name}")
        yield job
    yield from drawn


def generated(throughputs: Throughputs) -> TraceJobs:
    """Yield the single-GPU jobs of Gavel's generator, without end.

    Four jobs in five take 10^1.5 to 10^3 minutes on a V100, the others 10^3 to 10^4,
    uniform in the exponent; arrivals are a Poisson process.
    """
    draw = Random(2)  # noqa: S311  # Gavel's seeds, no secret
    gaps = Random(3)  # noqa: S311
    at_s = 0.0
    for number in count():
        draw.random()  # for the number of GPUs, which is not used
        low, high = (3.0, 4.0) if draw.random() >= 0.8 else (1.5, 3.0)
        run_s = 60.0 * 10.0 ** draw.uniform(low, high)
        job_type = JobType(draw.choice(MODELS), 1)
        speeds = throughputs[job_type]
        steps = int(run_s * dict(speeds)["V100"])
        line = Line(key=str(number), job_type=job_type, steps=steps, weight=1.0, at_s=at_s)
        yield job_of_line(line, speeds, Assumptions())
        at_s -= log(1.0 - gaps.random()) * MEAN_GAP_S


def in_whole_steps(job: TraceJob) -> TraceJob:
    """Return the job as fast as it is if every round of `ROUND_S` does whole steps only."""
    assert isinstance(job.behaviour, Steady)
    speeds = tuple(
        (gpu_type, floor(per_s * ROUND_S) / ROUND_S) for gpu_type, per_s in job.behaviour.speeds
    )
    return replace(
        job,
        spec=replace(job.spec, throughputs=speeds),
        behaviour=replace(job.behaviour, speeds=speeds),
        save_s=SAVES_AT_ONCE,
    )


SAVES_AT_ONCE = 0.0
"""Gavel's jobs save their work without loss or delay whenever they are stopped."""


@dataclass(frozen=True, slots=True)
class StepsOfRounds:
    """A job that does the steps of its round and then waits for the round to end.

    It looks at the round, so it has to start again in every one.
    """

    steady: Steady
    number: int
    rounds: Rounds

    @property
    def work(self) -> float:
        """The steps of the job."""
        return self.steady.work

    def speed(self, gang: Gang, done: float) -> Speed:
        """Return the speed until the steps of the round are done, and then none."""
        per_s = self.steady.speed(gang, done).per_s
        left = self.rounds.left_after(self.number)
        if left is None:
            return Speed(per_s)
        until_done = self.work - left
        return Speed(per_s, until_done) if done < until_done - ROUNDING else Speed(0.0)


def in_steps_of_rounds(number: int, job: TraceJob, rounds: Rounds) -> TraceJob:
    """Return the job as it goes by Gavel's rounds, to the second."""
    assert isinstance(job.behaviour, Steady)
    behaviour = StepsOfRounds(job.behaviour, number, rounds)
    return replace(job, behaviour=behaviour, save_s=SAVES_AT_ONCE)


def cluster(gpus: dict[str, int]) -> SimulatedCluster:
    """Return the GPUs, a node for each type: Gavel's jobs do not see servers."""
    return cluster_of(
        Node(
            name=NodeName(gpu_type.lower()),
            cpu_milli=1000 * n_gpus,
            memory_mib=1,
            gpu_type=gpu_type,
            gpus=tuple(Gpu(uuid=f"{gpu_type}-{i}") for i in range(n_gpus)),
            price_usd_per_h=PRICE_USD_PER_H[gpu_type] * n_gpus,
        )
        for gpu_type, n_gpus in gpus.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the reference has of a run."""

    jct_s: float  # mean, of the window
    makespan_s: float
    cost_usd: float
    worst_ratio: float
    """The largest ratio of a job's time to what it would have taken on its equal share."""
    n_rounds: int
    n_turns: int
    n_solves: int


def run(
    experiment: Experiment,
    policy: str,
    folder: Path,
    *,
    tie_break: TieBreak = TieBreak.OWN,
) -> Figures:
    """Run a policy by Gavel's rules."""
    jobs, is_exact = experiment.jobs(folder), experiment.is_exact(policy)
    static = None if experiment.window else list(jobs)
    rule = rule_of(
        {**GAVEL_POLICIES, **OUR_POLICIES}[policy],
        experiment.gpus,
        tie_break=tie_break,
        n_jobs=None if static is None else len(static),
        until=experiment.window,
        restarts=is_exact,
    )
    goes_on = takewhile(lambda _: rule.over_at_s == np.inf, jobs)
    seen: list[TraceJob] = []

    def coming() -> TraceJobs:
        for number, job in enumerate(goes_on if static is None else static):
            seen.append(job)
            exactly = in_steps_of_rounds(number, job, rule.rounds)
            yield exactly if is_exact else in_whole_steps(job)

    outcome = simulate(cluster(experiment.gpus), coming(), policy_of(policy, rule))
    ratios = fairness_ratios(outcome.jobs, seen[: len(outcome.jobs.key)], experiment.gpus)
    return figures(outcome, rule, experiment.window, ratios)


def policy_of(name: str, rule: GavelRule) -> Policy:
    """Return the policy in which the rule alone decides."""
    return Policy(
        name=name,
        order=_as_they_are,
        may_preempt=nobody,
        score=_FirstNode(),
        rounds=rule,
        backfill=Backfilling.EASY,
        patience_s=np.inf,
        starvation_s=np.inf,
    )


def _as_they_are(snapshot: Snapshot, rows: Rows) -> Rows:
    return rows


class _FirstNode:
    """The score by which the first node that fits is the best."""

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> NDArray[np.float64]:
        return np.zeros(len(rows))

    def of_node(self, shape: Shape) -> Callable[[NodeBooks], float]:
        return lambda books: 0.0


def figures(
    outcome: Run, rule: GavelRule, window: range, ratios: NDArray[np.float64]
) -> Figures:
    """Return the figures of a run."""
    jobs = outcome.jobs
    measured = slice(window.start, window.stop) if window else slice(None)
    return Figures(
        jct_s=float((jobs.ended_at_s - jobs.submitted_at_s)[measured].mean()),
        makespan_s=min(rule.over_at_s, outcome.until_s),
        cost_usd=float(np.nansum(jobs.cost_usd)),
        worst_ratio=float(ratios[measured].max()),
        n_rounds=rule.rounds.n_rounds,
        n_turns=rule.rounds.n_turns,
        n_solves=rule.rounds.n_solves,
    )


def fairness_ratios(
    table: JobTable, jobs: Sequence[TraceJob], gpus: Mapping[str, int]
) -> NDArray[np.float64]:
    """Return each job's time over what it would have taken on its equal share (Themis).

    The equal share of a moment is the cluster's own mix, cut by the GPUs that the jobs there
    ask for. Jobs that did not end count as there until after the last end.
    """
    came_s, n_gpus = table.submitted_at_s, table.n_gpus
    has_ended = np.array([phase == JobPhase.SUCCEEDED for phase in table.phase])
    ended_s = np.where(has_ended, table.ended_at_s, np.inf)
    moments = np.unique(np.concatenate([came_s, ended_s[np.isfinite(ended_s)]]))
    change = np.zeros(len(moments) + 1)
    np.add.at(change, np.searchsorted(moments, came_s), n_gpus)
    np.subtract.at(change, np.searchsorted(moments, ended_s), n_gpus)
    asked = np.maximum(np.cumsum(change)[: len(moments)], sum(gpus.values()))
    # What a job that gets 1/asked of every GPU has had since the first moment.
    had = np.concatenate([[0.0], np.cumsum(np.diff(moments) / asked[:-1])])
    speed = np.array([_speed_on_all(job, gpus) for job in jobs])
    steps = np.array([job.spec.total_work for job in jobs])
    wanted = np.interp(came_s, moments, had) + steps / speed
    alone_until_s = np.interp(wanted, had, moments)
    beyond = np.maximum(wanted - had[-1], 0.0)
    alone_until_s += beyond * asked[-1]
    ratios: NDArray[np.float64] = (ended_s - came_s) / (alone_until_s - came_s)
    return ratios


def _speed_on_all(job: TraceJob, gpus: Mapping[str, int]) -> float:
    return sum(gpus.get(name, 0) * per_s for name, per_s in job.spec.throughputs)
