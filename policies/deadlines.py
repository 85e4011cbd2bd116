"""Deadlines that are promised: admission by a program over time (ElasticFlow, ASPLOS '23).

A job is promised its deadline only if all who were promised theirs can still meet them beside
it; who is refused is served with what is left, like jobs without a deadline. Here jobs do not
change their size but may spend time on several types, so that what fits beside what is a linear
program over (job, type, slot of time) instead of ElasticFlow's minimum satisfactory shares:

    work_j <= sum_{slots until its deadline} sum_k speed_jk x_jks      for all who are promised
    sum_k x_jks <= length_s,    sum_j gpus_j x_jks <= capacity_k length_s,    x >= 0

Slots end at deadlines, or at a selection of them that rounds the others down. What is granted
now is the first slot of the solution that lets the promised work at a steady pace as far as can
be, then raises the least of the others (as in `max_min_fairness`), then does most.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from policies.linear_program import Array, LinearProgram, Rows, Solution, Status
from policies.shares import equal_share, within_limits

MOST_SLOTS = 48
KEPT, STEADY, MOST = 1e5, 1e3, 1e-3
"""The order of aims in one objective: that all promised work is done, the pace of it, the least
of the others (1), what is done in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Jobs with deadlines, and the time until these in slots."""

    speeds: Array  # [jobs, types]
    gpus: Array
    work: Array
    deadline_s: Array
    capacity: Array  # [types]
    ends_s: Array  # [slots]
    n_slots: Rows  # [jobs] that a job may use

    @classmethod
    def of(
        cls, speeds: Array, gpus: Array, *, work: Array, deadline_s: Array, capacity: Array
    ) -> "Due":
        """Cut the time until the last deadline into slots."""
        ends_s = np.unique(deadline_s)
        if len(ends_s) > MOST_SLOTS:
            ends_s = ends_s[np.arange(MOST_SLOTS) * len(ends_s) // MOST_SLOTS]
        return cls(
            speeds=np.where(capacity > 0, speeds, 0.0),
            gpus=gpus,
            work=work,
            deadline_s=deadline_s,
            capacity=capacity,
            ends_s=ends_s,
            n_slots=np.searchsorted(ends_s, deadline_s, side="right"),
        )

    @property
    def lengths_s(self) -> Array:
        """How long each slot is."""
        return np.diff(self.ends_s, prepend=0.0)

    def program(self, jobs: Rows, **more: int) -> LinearProgram:
        """Return a program in which `time` is spent by (job, type, slot), within limits.

        `more` are further blocks of variables; the limits of the first slot are left to add.
        """
        n_types, n_slots = len(self.capacity), len(self.ends_s)
        lp = LinearProgram(time=len(jobs) * n_types * n_slots, **more)
        usable = self.speeds[jobs][:, :, None] > 0
        in_time = np.arange(n_slots) < self.n_slots[jobs][:, None, None]
        lp.bound("time", upper=np.where(usable & in_time, self.lengths_s, 0.0).ravel())
        return lp

    def spent_by_job(self, jobs: Rows) -> sparse.csr_array:
        """Return the rows that sum the time of each (job, slot)."""
        slots = sparse.eye_array(len(self.ends_s))
        types = sparse.csr_array(np.ones((1, len(self.capacity))))
        return sparse.csr_array(
            sparse.kron(sparse.eye_array(len(jobs)), sparse.kron(types, slots))
        )

    def held_of_type(self, jobs: Rows) -> sparse.csr_array:
        """Return the rows that sum the GPU time of each (type, slot)."""
        both = sparse.eye_array(len(self.capacity) * len(self.ends_s))
        return sparse.csr_array(sparse.kron(self.gpus[jobs][None, :], both))

    def done(self, jobs: Rows, *, until: int | None = None) -> sparse.csr_array:
        """Return the rows that sum the part of its work that each job does, in some slots."""
        n_slots = len(self.ends_s)
        counts = np.arange(n_slots) < (n_slots if until is None else until)
        parts = self.speeds[jobs] / self.work[jobs, None]
        blocks = [np.outer(part, counts).ravel()[None, :] for part in parts]
        return sparse.csr_array(sparse.block_diag(blocks))


def add_limits(
    lp: LinearProgram, due: Due, jobs: Rows, beside: dict[str, sparse.csr_array]
) -> None:
    """Add the limits; `beside` takes GPU time of (type, slot), too."""
    lengths_s = due.lengths_s
    lp.at_most({"time": due.spent_by_job(jobs)}, np.tile(lengths_s, len(jobs)))
    room = np.outer(due.capacity, lengths_s).ravel()
    lp.at_most({"time": due.held_of_type(jobs), **beside}, room, name="room")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What those who are promised do now, and what is left for the others."""

    promised: Array  # [promised, types] time fractions in the first slot
    others: Array  # [others, types]
    steady: float  # the part of their steady pace that all promised have, at most 1
    least: float  # of the others' speed per weight, in units of the equal share's
    status: Status
    prices: Array  # [types] of one more GPU in the first slot


def paced(
    due: Due,
    jobs: Rows,
    *,
    speeds: Array,
    gpus: Array,
    weights: Array,
    time_limit_s: float | None = None,
) -> Pace:
    """Share the time until the first deadline among `jobs` of `due` and others."""
    n_types, n_slots, n_others = len(due.capacity), len(due.ends_s), len(gpus)
    first_s = float(due.lengths_s[0])
    speeds = np.where(due.capacity > 0, speeds, 0.0)
    alone = (speeds * equal_share(gpus, due.capacity)).sum(axis=1)
    runs = np.flatnonzero(alone > 0)
    lp = due.program(jobs, share=n_others * n_types, steady=1, least=1, short=len(jobs))
    lp.bound("share", upper=(speeds > 0).astype(float).ravel())
    lp.bound("steady", upper=1.0 if len(jobs) else 0.0)
    lp.bound("least", upper=np.inf if len(runs) else 0.0)
    into_first = sparse.kron(sparse.eye_array(n_types), np.eye(n_slots)[:, [0]] * first_s)
    beside = sparse.csr_array(sparse.kron(gpus[None, :], into_first))
    add_limits(lp, due, jobs, {"share": beside} if n_others else {})
    if n_others:
        one = sparse.kron(sparse.eye_array(n_others), np.ones((1, n_types)))
        lp.at_most({"share": one}, 1.0)
    relative = gpus[:, None] * speeds / np.where(alone > 0, alone * weights, 1.0)[:, None]
    if len(runs):
        earned = sparse.csr_array(sparse.block_diag([row[None, :] for row in relative]))[runs]
        lp.at_least({"share": earned, "least": -np.ones((len(runs), 1))}, 0.0)
    aims: dict[str, float | Array] = {"steady": STEADY, "least": 1.0}
    if n_others:
        aims["share"] = MOST / n_others * relative.ravel()
    if len(jobs):
        aims["short"] = -KEPT
        lp.at_least({"time": due.done(jobs), "short": sparse.eye_array(len(jobs))}, 1.0)
        pace = np.minimum(first_s / due.deadline_s[jobs], 1.0)
        lp.at_least({"time": due.done(jobs, until=1), "steady": -pace[:, None]}, 0.0)
        aims["time"] = MOST / len(jobs) * np.asarray(due.done(jobs, until=1).sum(axis=0))
    solution = lp.maximize(aims, time_limit_s=time_limit_s)
    return _pace_of(solution, due, jobs, gpus=gpus, first_s=first_s)


def _pace_of(solution: Solution, due: Due, jobs: Rows, *, gpus: Array, first_s: float) -> Pace:
    n_types, n_slots = len(due.capacity), len(due.ends_s)
    if solution.status is not Status.OPTIMAL:
        nothing = np.zeros((len(jobs), n_types)), np.zeros((len(gpus), n_types))
        return Pace(
            promised=nothing[0],
            others=nothing[1],
            steady=np.nan,
            least=np.nan,
            status=solution.status,
            prices=np.zeros(n_types),
        )
    now = solution["time"].reshape(len(jobs), n_types, n_slots)[:, :, 0] / first_s
    share = solution["share"].reshape(len(gpus), n_types)
    together = within_limits(
        np.vstack([now, share]), np.concatenate([due.gpus[jobs], gpus]), due.capacity
    )
    return Pace(
        promised=together[: len(jobs)],
        others=together[len(jobs) :],
        steady=float(solution["steady"][0]),
        least=float(solution["least"][0]),
        status=solution.status,
        prices=solution.prices["room"].reshape(n_types, n_slots)[:, 0] * first_s,
    )
