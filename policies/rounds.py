"""Time shares made true by taking turns: rounds (Gavel, OSDI '20, section 5).

A program says which part of its time each job should spend on each type of GPU. Every round
the pairs of job and type that are furthest behind are served first: by share over what the job
had of it, among those by what it is owed, then by share, then by arrival. A job that stays on
the type where it runs is left alone; the others are stopped for those who are served, in the
first half of a round and only if there is a gain: what the one is owed, less what the other is,
must exceed the running time that the other loses (its work since the last checkpoint, and a
restart). So a job without checkpoints is stopped rarely, and a job alone never. Nobody is
stopped who has run for less than half a round. Who is not served fills what is left.

Nothing is remembered: rounds begin at multiples of their length, and what a job had is looked
up in the snapshot, for the latest rounds. For the time before it came it counts as having had
its share, so that who is new is neither behind nor ahead.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.contest import (
    Array,
    Contest,
    ShareProgram,
    arrived_at_s,
    contest_of,
    lower_beside_turns,
)
from policies.granting import answered, scope_of
from policies.orderings import highest_priority, lower_priority
from scheduler.core.node_columns import BoolColumn, Rows
from scheduler.core.ports import PreemptionRule, Round
from scheduler.core.preemption import RESTART_S
from scheduler.core.snapshot import Snapshot

ROUND_S = 360.0
"""The length of a round in Gavel."""
ROUNDS_KEPT = 20
"""Rounds over which shares are made true: the grain of time fractions is one part of it."""
SMALLEST = 1e-3
"""A share below this counts as none: it would be one round in a thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """A `RoundRule` that realises the shares of a program."""

    program: ShareProgram
    round_s: float = ROUND_S
    sees_speeds: bool = False
    """Whether jobs may be moved to a type because they are faster there."""
    minds_priority: bool = False
    """Whether the highest priority goes first, and stops lower ones whenever it needs to."""
    keeps_order: bool = False
    """Whether nobody takes turns as long as no job says anything to tell it from others by."""
    is_timeless: bool = False
    """Whether the program reads nothing that changes by itself, so that answers hold."""
    time_limit_s: float | None = None
    """Of a solve by simplex; interior points are bounded in steps."""

    def is_asked(self, snapshot: Snapshot) -> bool:
        """Return whether there is anything to tell jobs from each other by."""
        jobs = snapshot.jobs
        told = np.flatnonzero(jobs.is_described & (jobs.phase >= 0))
        return not self.keeps_order or len(snapshot.in_scope(told)) > 0

    @property
    def beside_turns(self) -> PreemptionRule:
        """Whom those may stop who take no part in turns."""
        return lower_priority if self.minds_priority else lower_beside_turns

    def __call__(self, snapshot: Snapshot) -> Round | None:
        """Return how this round serves the waiting; None: as they came."""
        if not self.is_asked(snapshot):
            return None
        contest = contest_of(snapshot)
        may_move = self.sees_speeds and np.count_nonzero(contest.capacity) > 1
        if not len(contest.rows) or not ((contest.on_type < 0).any() or may_move):
            last = snapshot.granted.get(scope_of(snapshot))
            return Round(
                order=highest_priority,
                may_preempt=self.beside_turns,
                granted={} if last is None else {scope_of(snapshot): last},
            )
        answer = answered(
            snapshot,
            contest,
            self.program,
            is_timeless=self.is_timeless,
            time_limit_s=self.time_limit_s,
        )
        turn = _Turn(self, snapshot, contest, answer.fractions)
        return Round(
            order=turn.order,
            may_preempt=turn.may_preempt,
            gpu_types=turn.gpu_types(),
            moves=turn.moves(),
            wake_at_s=turn.wake_at_s(),
            granted={scope_of(snapshot): answer.granted},
            notes=answer.notes,
            excuse=answer.excuse,
        )


def keeps_work(snapshot: Snapshot, rows: Rows) -> BoolColumn:
    """Return who goes on where it was if it is stopped: others cannot take turns."""
    jobs = snapshot.jobs
    keeps: BoolColumn = jobs.checkpoint_interval_s[rows] > 0
    return keeps | (jobs.checkpoint_at_s[rows] > 0)


class _Turn:
    """One round, as seen at one moment of it."""

    def __init__(
        self, rule: Rounds, snapshot: Snapshot, contest: Contest, fractions: Array
    ) -> None:
        self._rule, self._snapshot, self._contest = rule, snapshot, contest
        self._begin_s = float(np.floor(snapshot.now_s / rule.round_s) * rule.round_s)
        self._is_open = snapshot.now_s < self._begin_s + rule.round_s / 2
        share = np.round(fractions, 6)
        share[(share < SMALLEST) | (contest.speeds <= 0)] = 0.0
        known = contest.speeds if rule.sees_speeds else contest.runs_on
        # Types on which a job is equally fast are one type for it, as no program tells them
        # apart: how it splits a share among them means nothing.
        alike = (known[:, :, None] == known[:, None, :]) & (known > 0)[:, :, None]
        self._asked, self._share = share, np.einsum("jlk,jk->jl", alike, share)
        # Nobody is to stop by itself in order to go on where it is no faster.
        there = known[np.arange(len(known)), contest.on_type]
        is_elsewhere = contest.on_type[:, None] != np.arange(known.shape[1])
        is_worse = is_elsewhere & (contest.on_type >= 0)[:, None] & (known <= there[:, None])
        self._is_choice: BoolColumn = (self._share > 0) & ~is_worse
        rows, kept_s = contest.rows, rule.round_s * ROUNDS_KEPT
        age_s = np.clip(self._begin_s - arrived_at_s(snapshot, rows), 0.0, kept_s)[:, None]
        had_s = snapshot.gpu_s(
            rows,
            contest.gpu_types,
            since_s=self._begin_s - kept_s,
            until_s=self._begin_s,
        )
        had_s = np.einsum("jlk,jk->jl", alike, had_s / contest.gpus[:, None])
        self._owed_s: Array = self._share * age_s - had_s
        counted_s = had_s + self._share * (kept_s - age_s) + rule.round_s / 2
        self._urgency: Array = self._share * kept_s / counted_s
        self._loss_s = snapshot.unsaved_s(rows) + RESTART_S
        self._is_new: BoolColumn = arrived_at_s(snapshot, rows) > self._begin_s
        self._place_of = {row: i for i, row in enumerate(rows.tolist())}
        no_class = np.zeros(len(rows), np.int64)
        self._class = contest.priority if rule.minds_priority else no_class
        self._keeps_work = keeps_work(snapshot, rows)
        self._may_stop = self._stoppable()
        # Whose turn it is, but for those who cannot be stopped: it keeps its place in line.
        self._waits: BoolColumn = np.zeros(len(rows), np.bool_)
        self._served = self._select()

    def _stoppable(self) -> BoolColumn:
        jobs, rows = self._snapshot.jobs, self._contest.rows
        ran_s = self._snapshot.now_s - jobs.started_at_s[rows]
        least_s = np.maximum(jobs.min_runtime_s[rows], self._rule.round_s / 2)
        may: BoolColumn = (self._contest.on_type >= 0) & (ran_s >= least_s)
        return may & self._keeps_work & self._is_open

    def _ranked(self) -> list[tuple[int, int]]:
        """Return the pairs of job and type with a share, first served first."""
        jobs, types = np.nonzero(self._is_choice)
        keys = (
            jobs,
            -self._asked[jobs, types],
            -np.round(self._owed_s[jobs, types], 3),
            -np.round(self._urgency[jobs, types], 6),
            self._is_new[jobs],
            -self._class[jobs],
        )
        ranked = np.lexsort(keys)
        return list(zip(jobs[ranked].tolist(), types[ranked].tolist(), strict=True))

    def _select(self) -> NDArray[np.intp]:
        """Return the type on which each job is served in this round; -1: none."""
        contest = self._contest
        served = np.full(len(contest.rows), -1, np.intp)
        left, turns = contest.capacity.copy(), contest.capacity.copy()
        pinned = np.flatnonzero((contest.on_type >= 0) & ~self._may_stop)
        waiting = deque(pinned[np.argsort(-self._class[pinned], kind="stable")].tolist())
        for job, gpu_type in [*self._ranked(), (-1, -1)]:
            while waiting and (job < 0 or self._class[waiting[0]] >= self._class[job]):
                stays = waiting.popleft()
                served[stays] = contest.on_type[stays]
                left[contest.on_type[stays]] -= contest.gpus[stays]
                if self._keeps_work[stays]:
                    turns[contest.on_type[stays]] -= contest.gpus[stays]
            if job < 0 or served[job] >= 0 or self._waits[job]:
                continue
            if contest.gpus[job] <= left[gpu_type] + 1e-9:
                served[job] = gpu_type
                left[gpu_type] -= contest.gpus[job]
                turns[gpu_type] -= contest.gpus[job]
            elif contest.gpus[job] <= turns[gpu_type] + 1e-9:
                self._waits[job] = True
                turns[gpu_type] -= contest.gpus[job]
        return served

    # What the cycle asks

    def order(self, snapshot: Snapshot, rows: Rows) -> Rows:
        """Serve who shares nothing, then who is served in this round, then the others."""
        place = np.array([self._place_of.get(row, -1) for row in rows.tolist()], np.intp)
        rank = {job: i for i, (job, _) in reversed(list(enumerate(self._ranked())))}
        last = len(rank) + self._share.size
        ranks = np.array([rank.get(job, last) for job in place.tolist()], np.intp)
        is_behind = (place >= 0) & (self._served[place] < 0) & ~self._waits[place]
        priority = snapshot.jobs.priority[rows]
        keys = (
            snapshot.jobs.sequence[rows],
            np.where(place >= 0, ranks, -priority),
            is_behind,
            place >= 0,
            -priority if self._rule.minds_priority else np.zeros(len(rows)),
        )
        return rows[np.lexsort(keys)]

    def may_preempt(self, snapshot: Snapshot, row: int, running: Rows) -> Rows:
        """Let a job that is served stop those on its type who are not, for a gain."""
        job = self._place_of.get(row)
        if job is None:
            return self._rule.beside_turns(snapshot, row, running)
        lower = running[:0]
        if self._rule.minds_priority:
            lower = lower_priority(snapshot, row, running)
        gpu_type = int(self._served[job])
        if gpu_type < 0 or self._is_new[job]:
            return lower
        leaving = self._contest.rows[self._leaving(job, gpu_type)]
        return running[np.isin(running, leaving) | np.isin(running, lower)]

    def _leaving(self, job: int, gpu_type: int) -> BoolColumn:
        """Return who may be stopped so that the job is served on that type."""
        gain_s = self._owed_s[job, gpu_type] - self._owed_s[:, gpu_type]
        leaving: BoolColumn = self._may_stop & (self._contest.on_type == gpu_type)
        leaving &= (self._served != gpu_type) & (gain_s > self._loss_s)
        equal: BoolColumn = self._class == self._class[job]
        return leaving & equal

    def gpu_types(self) -> dict[int, tuple[str, ...]]:
        """Return the types on which each waiting job may start: its own, if it is served."""
        contest = self._contest
        return types_to_start_on(contest, self._served, contest.gpus, is_open=self._is_open)

    def moves(self) -> tuple[int, ...]:
        """Return running jobs that stop to go on where they are faster and have their share.

        Only if that pays within a round, and if there is room once those have left who may be
        stopped for it.
        """
        contest, now_on = self._contest, self._contest.on_type
        if not self._rule.sees_speeds or not self._is_open:
            return ()
        wishes = self._may_stop & (self._served >= 0) & (self._served != now_on)
        movers = np.flatnonzero(wishes)
        here = contest.speeds[movers, now_on[movers]]
        there = contest.speeds[movers, self._served[movers]]
        pays = (there - here) * self._rule.round_s > here * self._loss_s[movers]
        moving = []
        for job in movers[pays].tolist():
            gpu_type = int(self._served[job])
            stays = (now_on == gpu_type) & ~self._leaving(job, gpu_type)
            if contest.gpus[job] <= contest.capacity[gpu_type] - contest.gpus[stays].sum():
                moving.append(int(contest.rows[job]))
        return tuple(moving)

    def wake_at_s(self) -> float:
        """Return when the next round or its second half begins, if that may change anything."""
        on_type, served = self._contest.on_type, self._served
        if ((on_type >= 0) & (served == on_type)).all():
            return np.inf
        is_halved = self._is_open and is_anybody_bound(self._contest, served)
        return self._begin_s + self._rule.round_s / (2 if is_halved else 1)


def types_to_start_on(
    contest: Contest, served: NDArray[np.intp], held: Array, *, is_open: bool
) -> dict[int, tuple[str, ...]]:
    """Return the types on which each waiting job may start, by row, if not on all.

    Its own if it is served, in the second half of a round only if it is free: `held` has the
    GPUs that each running job holds by itself.
    """
    on = contest.on_type >= 0
    free = contest.capacity - np.bincount(contest.on_type[on], held[on], len(contest.capacity))
    found = {}
    for job in np.flatnonzero(~on).tolist():
        gpu_type = int(served[job])
        is_bound = gpu_type >= 0 and (is_open or contest.gpus[job] <= free[gpu_type] + 1e-9)
        allowed = [gpu_type] if is_bound else np.flatnonzero(contest.speeds[job]).tolist()
        if len(allowed) < len(contest.gpu_types):
            found[int(contest.rows[job])] = tuple(contest.gpu_types[k] for k in allowed)
    return found


def is_anybody_bound(contest: Contest, served: NDArray[np.intp]) -> bool:
    """Return whether one waits for its own type that may start on others later in the round."""
    is_bound = (contest.on_type < 0) & (served >= 0)
    has_choice = np.count_nonzero(contest.speeds, axis=1) > 1
    return bool((is_bound & has_choice).any())
