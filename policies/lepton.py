"""`lepton`: guarantees, deadlines, fairness, progress, prices and switching in one program.

Jobs j, GPU types k, queues q; x_jk is the part of its time that job j spends on type k:

    maximise    sum_j w_j sum_k (speed_jk / fair_j - COST price_k + stay_jk) x_jk    progress
              - sum_j FAIRNESS gpus_j (need_j / full_j) late_j unfair_j              fairness
              - sum_j DEADLINE gpus_j (due_j / full_j) missed_j                      deadlines
              - sum_qk GUARANTEE lacking_qk                                          guarantees
    subject to  sum_k x_jk <= 1,   sum_j gpus_j x_jk <= capacity_k,   x >= 0
                sum_k speed_jk x_jk + need_j unfair_j >= need_j        unfair_j in [0, 1]
                sum_k speed_jk x_jk + due_j missed_j  >= due_j         missed_j in [0, 1]
                sum_{j in q} gpus_j x_jk + lacking_qk >= min(guaranteed_qk, wanted_qk)

`fair_j` is the speed on the equal share by weight (Gavel, OSDI '20), `full_j` the fastest,
`need_j` the speed at which the job ends within FAIR_WITHIN of the time it would have taken on
that share (finish-time fairness: Themis, NSDI '20), `due_j` that which meets its deadline
(ElasticFlow, ASPLOS '23, softened). What is left goes where it makes most progress: `w_j` is
weight / sqrt(remaining time), between favouring nobody and Smith's rule (1956: weight over
remaining time), which is best for the mean but lets long jobs wait. Staying is worth what a
stop would lose. docs/policies.md has the reasons for the figures.

Priority classes are served one after another, each by the program on what is left.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from policies.contest import UNKNOWN_S, Array, Contest, prices_or_alike, required_speeds
from policies.linear_program import (
    Classes,
    LinearProgram,
    Rows,
    Solution,
    Status,
    classes_of,
)
from policies.shares import (
    Shares,
    earned_by_jobs,
    equal_share,
    fallback,
    jobs_within,
    types_within,
    within_limits,
)
from policies.worth import Worth
from scheduler.core.model import MILLI
from scheduler.core.queue_tree import FIRST_TYPE, GPU

HORIZON_S = 3600.0
"""Over which what a stop loses is spread: moving pays if it is faster for about an hour."""
SHORTEST_S = 360.0
"""Jobs that need less than a round are equally short."""
LATE = 2.0
"""How far beyond its fair finish a job must be before its fairness weighs more."""
DEADLINE, GUARANTEE = 3.0, 10.0
"""What a deadline and a guarantee weigh beside `Terms.fairness`, per GPU."""
NOTHING = 1e-6
"""GPUs that are not worth dealing."""
MANY = 32
"""Guarantees up to which the interior point method holds every job against every one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What may be tuned."""

    fair_within: float = 1.3
    """A job should take at most this many times as long as on its equal share."""
    cost: float = 0.1
    """What an hour on GPUs of the mean price weighs, in hours of progress at the fair speed."""
    fairness: float = 10.0
    """What a GPU's time short of the fair speed weighs, in progress of a mean job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the program asks for, job by job: all that it reads of a contest."""

    speeds: Array  # [jobs, types]
    gpus: Array
    capacity: Array  # [types]
    worth: Array  # [jobs, types] of time spent there
    fair: Array  # [jobs] the speed that is fair; 0: none is asked for
    unfair: Array  # [jobs] what being short of all of it weighs
    due: Array  # [jobs] the speed that meets the deadline; 0: none
    missed: Array  # [jobs] what being short of all of it weighs
    guaranteed: Array  # [guarantees] GPUs yet to be had
    is_in: Array  # [guarantees, jobs] 1 or 0: whose GPUs count
    counts: Array  # [guarantees, types] 1 or 0: of which types
    lacking: float  # what being short of a guaranteed GPU weighs


def lepton_shares(
    contest: Contest, terms: Terms | None = None, *, time_limit_s: float | None = None
) -> Shares:
    """Share the GPUs; the value is that of the program, summed over priority classes."""
    terms, contest = terms or Terms(), _without_guesses(contest)
    fractions = np.zeros(contest.speeds.shape)
    left, value, prices = contest.capacity.copy(), 0.0, np.zeros(len(contest.capacity))
    held = np.zeros((contest.tree.root + 1, len(left)))
    for row, paths in enumerate(contest.tree.paths):
        held[paths] += contest.held_elsewhere[row]
    for priority in np.unique(contest.priority)[::-1]:
        rows = np.flatnonzero(contest.priority == priority)
        needs = _needs(contest, rows, terms, left=left, held=held)
        shares = solve(needs, time_limit_s=time_limit_s)
        if shares.status is not Status.OPTIMAL:
            return fallback(contest.gpus, contest.capacity, shares.status)
        fractions[rows] = _dealt(contest, rows, shares.fractions)
        used = contest.gpus[rows, None] * shares.fractions
        left = np.maximum(left - used.sum(axis=0), 0.0)
        for row in np.unique(contest.queue[rows]).tolist():
            held[contest.tree.paths[row]] += used[contest.queue[rows] == row].sum(axis=0)
        value, prices = value + shares.value, np.maximum(prices, shares.prices)
    return Shares(fractions=fractions, value=value, status=Status.OPTIMAL, prices=prices)


def _without_guesses(contest: Contest) -> Contest:
    """Return the contest in which nothing is known of jobs that say nothing.

    Not even how far they have come, so that those that ask for the same are one column.
    """
    says = contest.is_described
    return replace(
        contest,
        elapsed_s=np.where(says, contest.elapsed_s, 0.0),
        done_work=np.where(says, contest.done_work, 0.0),
        remaining_work=np.where(
            says, contest.remaining_work, UNKNOWN_S * contest.speeds.max(axis=1, initial=0.0)
        ),
        loss_s=np.where(says, contest.loss_s, 0.0),
    )


def _dealt(contest: Contest, rows: Rows, fractions: Array) -> Array:
    """Deal what the jobs of a queue that say nothing were granted: to those who came first.

    Such jobs keep no checkpoints, so they cannot take turns: each has all of its time or none.
    Those that run have theirs already. The others stand in line.
    """
    dealt, says = fractions.copy(), contest.is_described[rows]
    waits = contest.on_type[rows] < 0
    for queue in np.unique(contest.queue[rows[~says]]).tolist():
        line = np.flatnonzero(~says & (contest.queue[rows] == queue))
        left = (contest.gpus[rows[line], None] * fractions[line]).sum(axis=0)
        dealt[line] = 0.0
        for job in line[np.argsort(waits[line], kind="stable")].tolist():
            if left.sum() < NOTHING:
                break
            row, wanted = rows[job], float(contest.gpus[rows[job]])
            here = contest.on_type[row]
            for kind in sorted(range(len(left)), key=lambda k: k != here):
                if contest.speeds[row, kind] > 0 and wanted > 0:
                    taken = min(float(left[kind]), wanted)
                    dealt[job, kind] = taken / contest.gpus[row]
                    left[kind] -= taken
                    wanted -= taken
    return dealt


def solve(needs: Needs, *, time_limit_s: float | None = None) -> Shares:
    """Solve the program above; equal jobs are one column. The equal shares if it fails."""
    jobs = classes_of(
        needs.speeds,
        needs.gpus,
        needs.worth,
        needs.fair,
        needs.unfair,
        needs.due,
        needs.missed,
        needs.is_in.T,
    )
    program, unit = _program_of(needs, jobs)
    chosen, prices = program.unhindered(), np.zeros(len(needs.capacity))
    if chosen is None:
        found = program.solve() if needs.guaranteed.size <= MANY else None
        if found is None:
            return _solve_by_simplex(needs, jobs, time_limit_s=time_limit_s)
        chosen, prices = found[0], unit * found[1]
    times = needs.gpus[jobs.first] * jobs.copies
    fractions = within_limits(chosen.T, times, needs.capacity)
    return Shares(
        fractions=fractions[jobs.of_row],
        value=unit * program.value(fractions.T),
        status=Status.OPTIMAL,
        prices=np.divide(
            prices, needs.capacity, out=np.zeros(len(prices)), where=needs.capacity > 0
        ),
    )


def _program_of(needs: Needs, jobs: Classes) -> tuple[Worth, float]:
    """Return the program for a class of equal jobs per column, and the unit of its worth."""
    first, copies = jobs.first, jobs.copies
    speeds = needs.speeds[first].T
    full = np.maximum(speeds.max(axis=0, initial=0.0), np.finfo(float).tiny)
    times = np.where(speeds > 0, needs.gpus[first] * copies, 0.0)
    worth = np.where(speeds > 0, needs.worth[first].T * copies, 0.0)
    unit = float(np.maximum(worth.max(axis=0, initial=0.0), 0.0).sum()) or 1.0
    asked = np.stack([needs.fair[first], needs.due[first]]) / full
    weight = np.stack([needs.unfair[first], needs.missed[first]]) * copies
    is_asked = (asked > 0) & (weight > 0)
    counted = needs.is_in[:, None, first] * needs.counts[:, :, None] * times
    program = Worth(
        worth=worth / unit,
        speed=speeds / full,
        asked=np.where(is_asked, asked, 0.0),
        short=np.divide(weight, asked * unit, out=np.zeros(asked.shape), where=is_asked),
        demand=times / np.where(needs.capacity > 0, needs.capacity, 1.0)[:, None],
        counted=counted / needs.guaranteed[:, None, None],
        lacking=needs.lacking * needs.guaranteed / unit,
    )
    return program, unit


def _solve_by_simplex(needs: Needs, jobs: Classes, *, time_limit_s: float | None) -> Shares:
    """Solve it by HiGHS, whose tables are sparse: for many guarantees, and as the last word."""
    speeds, copies = needs.speeds[jobs.first], jobs.copies
    times, n_types = needs.gpus[jobs.first] * copies, len(needs.capacity)
    full = np.maximum(speeds.max(axis=1, initial=0.0), np.finfo(float).tiny)
    parts = speeds / full[:, None]
    lp = LinearProgram(
        share=speeds.size, unfair=len(times), missed=len(times), lacking=needs.guaranteed.size
    )
    lp.bound("unfair", upper=1.0)
    lp.bound("missed", upper=1.0)
    lp.at_most({"share": jobs_within(*speeds.shape)}, 1.0)
    lp.at_most({"share": types_within(times, n_types)}, needs.capacity, name="gpus")
    earned = earned_by_jobs(parts)
    for short, speed in (("unfair", needs.fair), ("missed", needs.due)):
        part = speed[jobs.first] / full
        asks = np.flatnonzero(part > 0)
        if len(asks):
            rest = _diagonal(part)[asks]
            lp.at_least({"share": earned[asks], short: rest}, part[asks])
    if needs.guaranteed.size:
        lp.at_least(
            {
                "share": _held_by_queues(needs, jobs.first, times),
                "lacking": _diagonal(np.ones(needs.guaranteed.size)),
            },
            needs.guaranteed,
        )
    solution = lp.maximize(
        {
            "share": (needs.worth[jobs.first] * copies[:, None]).ravel(),
            "unfair": -needs.unfair[jobs.first] * copies,
            "missed": -needs.missed[jobs.first] * copies,
            "lacking": -needs.lacking,
        },
        time_limit_s=time_limit_s,
    )
    return _shares_of(solution, needs, jobs.of_row, speeds=speeds, times=times)


def _shares_of(
    solution: Solution, needs: Needs, job_class: Rows, *, speeds: Array, times: Array
) -> Shares:
    if solution.status is not Status.OPTIMAL:
        return fallback(needs.gpus, needs.capacity, solution.status)
    share = np.where(speeds > 0, solution["share"].reshape(speeds.shape), 0.0)
    return Shares(
        fractions=within_limits(share, times, needs.capacity)[job_class],
        value=solution.value,
        status=solution.status,
        prices=solution.prices["gpus"],
    )


def _needs(contest: Contest, rows: Rows, terms: Terms, *, left: Array, held: Array) -> Needs:
    """Return what the jobs of one priority need of what the classes above have left."""
    speeds = np.where(left > 0, contest.speeds[rows], 0.0)
    full = speeds.max(axis=1, initial=0.0)
    runs = full > 0
    full, remaining = np.where(runs, full, 1.0), contest.remaining_work[rows]
    fair = np.where(runs, _fair_speeds(contest, rows, speeds, left=left), 1.0)
    short_s = np.maximum(remaining / full, SHORTEST_S)
    usual_s = float(np.median(short_s[runs])) if runs.any() else 1.0
    rank = np.where(runs, contest.weights[rows] * np.sqrt(usual_s / short_s), 0.0)
    progress = rank[:, None] * speeds / fair[:, None]
    usual = float(progress.max(axis=1, initial=0.0)[runs].mean()) if runs.any() else 0.0
    weight = terms.fairness * usual * contest.gpus[rows] / full
    alone_s = (contest.done_work[rows] + remaining) / fair
    allowed_s = np.maximum(terms.fair_within * alone_s - contest.elapsed_s[rows], 1.0)
    need = np.where(runs, np.minimum(remaining / allowed_s, full), 0.0)
    late = (contest.elapsed_s[rows] + remaining / fair) / (LATE * alone_s)
    due = np.where(runs, np.minimum(required_speeds(contest)[rows], full), 0.0)
    guaranteed, is_in, counts = _guarantees(contest, rows, speeds=speeds, held=held)
    return Needs(
        speeds=speeds,
        gpus=contest.gpus[rows],
        capacity=left,
        worth=_worth(contest, rows, terms, progress=progress, rank=rank),
        fair=need,
        unfair=weight * need * np.maximum(late, 1.0),
        due=due,
        missed=DEADLINE * weight * due,
        guaranteed=guaranteed,
        is_in=is_in,
        counts=counts,
        lacking=GUARANTEE * terms.fairness * usual,
    )


def _fair_speeds(contest: Contest, rows: Rows, speeds: Array, *, left: Array) -> Array:
    """Return each job's speed if it had its part, by weight, of the GPUs of every type."""
    gpus, weights = contest.gpus[rows], contest.weights[rows]
    equal = (speeds * equal_share(gpus, left)).sum(axis=1)
    by_weight = equal * weights * gpus.sum() / (gpus @ weights)
    fair: Array = np.minimum(by_weight, speeds.max(axis=1, initial=0.0))
    return fair


def _worth(
    contest: Contest, rows: Rows, terms: Terms, *, progress: Array, rank: Array
) -> Array:
    """Return what a job's time on each type is worth: progress and staying, less its price."""
    price = prices_or_alike(contest)
    is_priced = bool((contest.price_usd_per_h > 0).any())
    cost = terms.cost * price / price.mean() if is_priced else np.zeros(len(price))
    worth = progress - rank[:, None] * cost
    on_type = contest.on_type[rows]
    stays = np.flatnonzero(on_type >= 0)
    loss = np.minimum(contest.loss_s[rows][stays] / HORIZON_S, 1.0)
    worth[stays, on_type[stays]] += loss * progress[stays, on_type[stays]]
    kept: Array = np.where(progress > 0, worth, 0.0)
    return kept


def _guarantees(
    contest: Contest, rows: Rows, *, speeds: Array, held: Array
) -> tuple[Array, Array, Array]:
    """Return how many GPUs each queue is yet to get, of which jobs and of which types.

    No more than its jobs here want; `held` is what it and those below it have already.
    """
    tree, queue, gpus = contest.tree, contest.queue[rows], contest.gpus[rows]
    columns = [tree.gpu_types.index(name) + FIRST_TYPE for name in contest.gpu_types]
    kinds = [(GPU, np.ones(len(columns)))]
    kinds += [(column, np.eye(len(columns))[k]) for k, column in enumerate(columns)]
    found, queues = [], np.unique(queue).tolist()
    for row in sorted({q for one in queues for q in tree.paths[one][:-1]}):
        if not tree.guaranteed[row].any():
            continue
        below = np.isin(queue, [q for q in queues if row in tree.paths[q]]).astype(float)
        for column, counts in kinds:
            wanted = float((below * gpus)[(speeds * counts).any(axis=1)].sum())
            promised = tree.guaranteed[row, column] / MILLI - float(held[row] @ counts)
            if min(promised, wanted) > 0:
                found.append((min(promised, wanted), below, counts))
    return (
        np.array([amount for amount, _, _ in found]),
        np.array([below for _, below, _ in found]).reshape(-1, len(rows)),
        np.array([counts for _, _, counts in found]).reshape(-1, len(columns)),
    )


def _diagonal(values: Array) -> sparse.csr_array:
    return sparse.csr_array(sparse.diags_array(values))


def _held_by_queues(needs: Needs, jobs: Rows, times: Array) -> sparse.csr_array:
    """Return the rows that sum what the jobs of a queue hold of what counts there."""
    return sparse.csr_array(
        sparse.vstack(
            [
                sparse.kron((is_in[jobs] * times)[None, :], counts[None, :])
                for is_in, counts in zip(needs.is_in, needs.counts, strict=True)
            ]
        )
    )
