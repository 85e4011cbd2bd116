"""Rounds in which two jobs may share GPUs (Gavel, OSDI '20, sections 3.1 and 5).

A program says which part of its time each job should spend in which way: on a type alone, or
beside a job of some profile. Every round ways are served that are furthest behind, as `rounds`
does with types; who is served beside another brings the one along of that profile who is most
behind in being beside it. A pair that stays is left alone. Of a pair that has had its time one
is stopped, if what the other is owed without it exceeds what it loses.

With whom a job had its time is looked up in the snapshot, as far as the others are still there.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from policies.contest import (
    Array,
    Contest,
    Sharing,
    arrived_at_s,
    contest_of,
    lower_beside_turns,
)
from policies.granting import answered, scope_of
from policies.rounds import (
    ROUNDS_KEPT,
    SMALLEST,
    Rounds,
    is_anybody_bound,
    keeps_work,
    types_to_start_on,
)
from policies.sharing import Ways, mates_of, meetings, sharing_of
from scheduler.core.node_columns import BoolColumn, Rows
from scheduler.core.ports import Round
from scheduler.core.preemption import RESTART_S
from scheduler.core.snapshot import Snapshot

NOWHERE = -1
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRounds(Rounds):
    """`Rounds` of a program that lets two jobs share GPUs if they say how fast that is."""

    def __call__(self, snapshot: Snapshot) -> Round | None:
        """Return how this round serves the waiting."""
        contest = contest_of(snapshot)
        sharing = sharing_of(snapshot, contest)
        if sharing is None:
            return Rounds.__call__(self, snapshot)
        answer = answered(
            snapshot,
            replace(contest, sharing=sharing),
            self.program,
            is_timeless=self.is_timeless,
            time_limit_s=self.time_limit_s,
        )
        turn = _Turn(self.round_s, snapshot, contest, sharing, answer.fractions)
        return Round(
            order=turn.order,
            may_preempt=turn.may_preempt,
            gpu_types=turn.gpu_types(),
            beside=turn.beside(),
            moves=turn.moves(),
            wake_at_s=turn.wake_at_s(),
            granted={scope_of(snapshot): answer.granted},
            notes=answer.notes,
            excuse=answer.excuse,
        )


class _Turn:
    """One round, as seen at one moment of it."""

    def __init__(
        self,
        round_s: float,
        snapshot: Snapshot,
        contest: Contest,
        sharing: Sharing,
        fractions: Array,
    ) -> None:
        self._round_s, self._snapshot, self._contest = round_s, snapshot, contest
        self._profile = sharing.profile
        self._begin_s = float(np.floor(snapshot.now_s / round_s) * round_s)
        self._is_open = snapshot.now_s < self._begin_s + round_s / 2
        n_jobs, n_types = contest.speeds.shape
        ways = Ways(n_types, sharing.beside.shape[2])
        self._share = np.round(ways.unfolded(fractions), 6)
        self._speed = np.zeros(self._share.shape)
        self._speed[:, :, 0] = contest.speeds
        said = np.flatnonzero(sharing.table >= 0)
        self._speed[said, :, 1:] = sharing.beside[sharing.table[said]]
        self._share[(self._share < SMALLEST) | (self._speed <= 0)] = 0.0
        self._mate = mates_of(snapshot, contest)
        self._runs: BoolColumn = contest.on_type >= 0
        self._way_now = np.where(self._mate >= 0, 1 + self._profile[self._mate], 0)
        rows, kept_s = contest.rows, round_s * ROUNDS_KEPT
        age_s = np.clip(self._begin_s - arrived_at_s(snapshot, rows), 0.0, kept_s)
        age_s = age_s[:, None, None]
        had_s = self._had_s(kept_s)
        self._owed_s: Array = self._share * age_s - had_s
        counted_s = had_s + self._share * (kept_s - age_s) + round_s / 2
        self._urgency: Array = self._share * kept_s / counted_s
        self._loss_s = snapshot.unsaved_s(rows) + RESTART_S
        self._is_new: BoolColumn = arrived_at_s(snapshot, rows) > self._begin_s
        ran_s = snapshot.now_s - snapshot.jobs.started_at_s[rows]
        least_s = np.maximum(snapshot.jobs.min_runtime_s[rows], round_s / 2)
        self._keeps_work = keeps_work(snapshot, rows)
        self._may_stop: BoolColumn = self._runs & (ran_s >= least_s) & self._keeps_work
        self._may_stop &= self._is_open
        self._place_of = {row: i for i, row in enumerate(rows.tolist())}
        self._ranked = self._ranking()
        self._served = np.full(n_jobs, NOWHERE, np.intp)  # the type
        self._partner = np.full(n_jobs, NOWHERE, np.intp)
        self._select()
        self._stays = self._staying()

    def _had_s(self, kept_s: float) -> Array:
        """Return the time that each job had in each way over the latest rounds."""
        snapshot, contest = self._snapshot, self._contest
        since_s, until_s = self._begin_s - kept_s, self._begin_s
        total_s = snapshot.gpu_s(
            contest.rows, contest.gpu_types, since_s=since_s, until_s=until_s
        )
        total_s = total_s / contest.gpus[:, None]
        known_s = np.zeros(self._share.shape)
        for job, other, gpu_type, both_s in meetings(
            snapshot, contest, since_s=since_s, until_s=until_s
        ):
            known_s[job, gpu_type, 1 + self._profile[other]] += both_s
            known_s[other, gpu_type, 1 + self._profile[job]] += both_s
        # The rest was alone, or beside jobs that are no more.
        rest_s = np.maximum(total_s - known_s.sum(axis=2), 0.0)
        part = self._share.copy()
        is_ever_alone = (part[:, :, 0] > 0) | (part.sum(axis=2) <= 0)
        part[is_ever_alone] = 0.0
        part[is_ever_alone, 0] = 1.0
        part /= part.sum(axis=2, keepdims=True)
        had_s: Array = known_s + part * rest_s[:, :, None]
        return had_s

    def _ranking(self) -> list[tuple[int, int, int]]:
        """Return job, type and way of every share, first served first."""
        contest = self._contest
        now_on = contest.on_type
        here = contest.speeds[np.arange(len(now_on)), now_on]
        is_elsewhere = now_on[:, None] != np.arange(contest.speeds.shape[1])
        # Nobody is to stop by itself in order to go on where it is no faster.
        is_worse = self._runs[:, None] & is_elsewhere & (contest.speeds <= here[:, None])
        jobs, types, ways = np.nonzero((self._share > 0) & ~is_worse[:, :, None])
        at = (jobs, types, ways)
        keys = (
            ways,
            jobs,
            -self._share[at],
            -np.round(self._owed_s[at], 3),
            -np.round(self._urgency[at], 6),
            self._is_new[jobs],
        )
        ranked = np.lexsort(keys)
        return list(zip(*(column[ranked].tolist() for column in at), strict=True))

    # Who is served

    def _select(self) -> None:
        """Choose how each job is served in this round: by itself, with a partner, or not."""
        contest = self._contest
        self._left, self._turns = contest.capacity.copy(), contest.capacity.copy()
        # Whose turn it is, but for those who cannot be stopped: it keeps its place in line.
        self._waits: BoolColumn = np.zeros(len(self._runs), np.bool_)
        is_pinned = self._runs & ~self._may_stop
        self._is_pinned = is_pinned
        self._is_set = np.zeros(len(is_pinned), np.bool_)
        for job in np.flatnonzero(is_pinned).tolist():
            mate = int(self._mate[job])
            if not (mate >= 0 and is_pinned[mate] and mate < job):
                self._left[contest.on_type[job]] -= contest.gpus[job]
                if self._keeps_work[job]:
                    self._turns[contest.on_type[job]] -= contest.gpus[job]
            if mate == -2 or (mate >= 0 and is_pinned[mate]):
                self._set(job, int(contest.on_type[job]), mate if mate >= 0 else NOWHERE)
        self._waiting_for = self._by_company()
        for job, gpu_type, way in self._ranked:
            if self._is_open_to(job, gpu_type):
                if way:
                    self._serve_pair(job, gpu_type, way)
                else:
                    self._serve_alone(job, gpu_type)
        for job, gpu_type, _ in self._ranked:  # who found no company
            if self._is_open_to(job, gpu_type):
                self._serve_alone(job, gpu_type)
        for job in np.flatnonzero(is_pinned & ~self._is_set).tolist():
            mate = int(self._mate[job])
            stays = mate >= 0 and not self._is_set[mate]
            self._set(job, int(contest.on_type[job]), mate if stays else NOWHERE)
            if stays:
                self._set(mate, int(contest.on_type[job]), job)

    def _by_company(self) -> dict[tuple[int, int, int], list[int]]:
        """Return by type, profile and profile beside it who wants that, most urgent first."""
        wanting: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for job, gpu_type, way in self._ranked:
            if way:
                wanting[gpu_type, int(self._profile[job]), way - 1].append(job)
        return wanting

    def _is_open_to(self, job: int, gpu_type: int) -> bool:
        is_settled = self._is_set[job] or self._waits[job]
        return not is_settled and self._may_be_on(job, gpu_type)

    def _may_be_on(self, job: int, gpu_type: int) -> bool:
        return not self._is_pinned[job] or self._contest.on_type[job] == gpu_type

    def _set(self, job: int, gpu_type: int, partner: int) -> None:
        self._served[job], self._partner[job] = gpu_type, partner
        self._is_set[job] = True

    def _has_room(self, gpu_type: int, *jobs: int) -> bool:
        """Take the GPUs for who is served, unless one of them has them for sure."""
        if any(self._is_pinned[job] for job in jobs):
            return True
        gpus = self._contest.gpus[jobs[0]]
        has_room = bool(gpus <= self._left[gpu_type] + ROUNDING)
        if has_room:
            self._left[gpu_type] -= gpus
        elif gpus <= self._turns[gpu_type] + ROUNDING:
            self._waits[list(jobs)] = True
        if has_room or self._waits[jobs[0]]:
            self._turns[gpu_type] -= gpus
        return has_room

    def _serve_alone(self, job: int, gpu_type: int) -> None:
        mate = int(self._mate[job])
        if mate >= 0 and self._is_pinned[mate] and not self._is_set[mate]:
            return  # who has just come stays, and so does the pair
        if self._has_room(gpu_type, job):
            self._set(job, gpu_type, NOWHERE)

    def _serve_pair(self, job: int, gpu_type: int, way: int) -> None:
        beside = self._waiting_for[gpu_type, way - 1, int(self._profile[job])]
        mate = int(self._mate[job])
        if mate >= 0 and mate in beside:
            beside = [mate, *beside]
        for other in beside:
            if self._could_be_together(job, other, gpu_type):
                if self._has_room(gpu_type, job, other):
                    self._set(job, gpu_type, other)
                    self._set(other, gpu_type, job)
                return

    def _could_be_together(self, job: int, other: int, gpu_type: int) -> bool:
        if job == other or not self._is_open_to(other, gpu_type):
            return False
        if self._contest.gpus[job] != self._contest.gpus[other]:
            return False
        if self._mate[job] == other:
            return True
        # Whoever has just come somewhere stays there, with whoever is there.
        pinned = [j for j in (job, other) if self._is_pinned[j]]
        return len(pinned) < 2 and all(self._mate[j] == NOWHERE for j in pinned)

    def _staying(self) -> BoolColumn:
        """Return who is where it is served: of two that are to meet, one goes to the other."""
        stays: BoolColumn = self._runs & (self._served == self._contest.on_type)
        rank = self._first_ranks()
        for job in np.flatnonzero(stays & (self._partner != self._mate)).tolist():
            mate, partner = int(self._mate[job]), int(self._partner[job])
            if mate >= 0 and stays[mate] and (rank[mate], mate) < (rank[job], job):
                stays[job] = False  # the two part
            elif partner >= 0 and stays[partner] and self._goes(job, partner, rank):
                stays[job] = False
        return stays

    def _goes(self, job: int, partner: int, rank: NDArray[np.intp]) -> bool:
        """Return whether of two who run apart, and should not, the first goes to the second."""
        order = [(not self._is_pinned[j], rank[j], j) for j in (job, partner)]
        return order[0] > order[1]

    def _first_ranks(self) -> NDArray[np.intp]:
        rank = np.full(len(self._served), len(self._ranked), np.intp)
        for place, (job, _, _) in reversed(list(enumerate(self._ranked))):
            rank[job] = place
        return rank

    # What the cycle asks

    def order(self, snapshot: Snapshot, rows: Rows) -> Rows:
        """Serve who shares nothing, then who is served in this round, then the others."""
        place = np.array([self._place_of.get(row, -1) for row in rows.tolist()], np.intp)
        rank = self._first_ranks().astype(np.float64)
        for guest, host in self.beside().items():
            job, other = self._place_of[guest], self._place_of[host]
            # Whoever joins one that runs takes nothing from anybody.
            rank[job] = -1.0 if self._runs[other] else rank[other] + 0.5
        keys = (
            snapshot.jobs.sequence[rows],
            np.where(place >= 0, rank[place], -snapshot.jobs.priority[rows]),
            (place >= 0) & (self._served[place] < 0) & ~self._waits[place],
            place >= 0,
        )
        return rows[np.lexsort(keys)]

    def beside(self) -> dict[int, int]:
        """Return by the row of who starts beside another the row of that one."""
        rows, found = self._contest.rows, {}
        rank = self._first_ranks()
        for job in np.flatnonzero(~self._runs & (self._partner >= 0)).tolist():
            other = int(self._partner[job])
            waits = not self._runs[other]
            is_free = self._stays[other] and self._mate[other] == NOWHERE
            if is_free or (waits and (rank[other], other) < (rank[job], job)):
                found[int(rows[job])] = int(rows[other])
        return found

    def may_preempt(self, snapshot: Snapshot, row: int, running: Rows) -> Rows:
        """Let a job that is served stop those on its type who are not there, for a gain."""
        job = self._place_of.get(row)
        if job is None:
            return lower_beside_turns(snapshot, row, running)
        gpu_type = int(self._served[job])
        if gpu_type < 0 or self._is_new[job] or row in self.beside():
            return running[:0]
        contest, every = self._contest, np.arange(len(self._served))
        owed_s = self._owed_s[every, contest.on_type, self._way_now]
        gain_s = self._owed_s[job, gpu_type, self._way_of(job)] - owed_s
        leaving = self._may_stop & (contest.on_type == gpu_type) & ~self._stays
        leaving &= gain_s > self._loss_s
        return running[np.isin(running, contest.rows[leaving])]

    def _way_of(self, job: int) -> int:
        partner = int(self._partner[job])
        return 1 + int(self._profile[partner]) if partner >= 0 else 0

    def gpu_types(self) -> dict[int, tuple[str, ...]]:
        """Return the types on which each waiting job may start: its own, if it is served."""
        contest = self._contest
        held = np.where(self._mate >= 0, contest.gpus / 2, contest.gpus)
        return types_to_start_on(contest, self._served, held, is_open=self._is_open)

    def moves(self) -> tuple[int, ...]:
        """Return running jobs that leave another alone, or go on where they are faster."""
        contest = self._contest
        moving = []
        for job in np.flatnonzero(self._may_stop & ~self._stays).tolist():
            mate, here = int(self._mate[job]), int(contest.on_type[job])
            owed_s = self._owed_s[job, here, self._way_now[job]]
            if mate >= 0 and self._stays[mate] and self._is_set[mate]:
                # For who is to be alone, or for who is to come.
                next_one = int(self._partner[mate])
                gaining = next_one if next_one >= 0 else mate
                gain_s = self._owed_s[gaining, here, self._way_of(gaining)] - owed_s
                is_due = gain_s > self._loss_s[job]
            else:
                is_due = self._is_faster_elsewhere(job)
            if is_due:
                moving.append(int(contest.rows[job]))
        return tuple(moving)

    def _is_faster_elsewhere(self, job: int) -> bool:
        """Return whether going where it is served pays within a round, and there is room."""
        contest, gpu_type = self._contest, int(self._served[job])
        now_on = int(contest.on_type[job])
        if gpu_type < 0 or gpu_type == now_on or self._partner[job] >= 0:
            return False
        here = self._speed[job, now_on, self._way_now[job]]
        there = contest.speeds[job, gpu_type]
        on = self._runs & (contest.on_type == gpu_type)
        gpus = np.where(self._mate >= 0, contest.gpus / 2, contest.gpus)
        has_room = contest.gpus[job] <= contest.capacity[gpu_type] - gpus[on].sum() + ROUNDING
        pays = (there - here) * self._round_s > here * self._loss_s[job]
        return bool(has_room and pays)

    def wake_at_s(self) -> float:
        """Return when the next round or its second half begins, if that may change anything."""
        if (self._stays & (self._partner == self._mate)).all():
            return np.inf
        is_halved = self._is_open and is_anybody_bound(self._contest, self._served)
        return self._begin_s + self._round_s / (2 if is_halved else 1)
