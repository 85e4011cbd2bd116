"""Moving jobs together so that a waiting gang starts: the least lost work, if it is worth it.

A gang that fits nowhere although enough is free in pieces is given room by moving others: jobs
that may be preempted, keep checkpoints and have run for a while stop, and start again on places
that are free besides. All of it is tried on the draft first: the gang fits, and every moved job
of the wave does, too. It must be worth it: the GPU time that the gang waits less, against the
work lost and the restarts. One wave at a time, over when its gang has started: until then those
who moved let the gang go first (`in_turn`), and their places are held for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.core.draft import Draft
from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.model import MILLI, JobKind, JobPhase, StopCause, Task
from scheduler.core.node_columns import BoolColumn, Rows
from scheduler.core.placement import (
    Member,
    Shortfall,
    Want,
    could_place,
    hold_later,
    place_gang,
    undo,
)
from scheduler.core.preemption import Preemption, Victim, width_milli
from scheduler.core.snapshot import Snapshot

SETTLED_S = 600.0
"""A job runs so long before it is moved: twenty times what a restart costs."""

WORTH = 2.0
"""A wave must save so many times what it costs: estimates are often wrong."""

WAVES_TRIED = 4
"""Gangs for which a cycle looks for a wave."""

SETS_TRIED = 4
"""Sets of jobs to move for one gang, each without those that found no other place."""

Pair = tuple[int, tuple[Want, ...]]
"""A job row, and its tasks as wants."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Jobs that move, booked on the draft, and the places held for the gang that gains."""

    moves: tuple[Victim, ...]
    members: tuple[Member, ...]
    saved_gpu_s: float
    cost_gpu_s: float


class Defragmentation:
    """The search of one cycle."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._n_left = 0 if is_under_way(draft.snapshot) else WAVES_TRIED
        self._excluded: set[int] = set()
        self._search: Preemption | None = None  # made when somebody asks
        self._fits_elsewhere: dict[tuple[Want, ...], bool] = {}
        self._movable: BoolColumn | None = None  # by job row, made when somebody asks

    @property
    def is_idle(self) -> bool:
        """Whether no wave may begin any more in this cycle."""
        return not self._n_left

    def move_for(
        self, row: int, wants: tuple[Want, ...], *, saved_s: float, before: Sequence[Pair]
    ) -> Wave | None:
        """Book the cheapest wave that lets the gang of `row` fit, if it is worth it.

        Nothing is booked otherwise. `before` are gangs that wait longer: none of them may fit
        into what the wave frees, because they would take it.
        """
        self._n_left -= 1
        self._excluded.clear()
        if self._search is None:
            self._search = Preemption(self._draft, self._may_move, are_equals_alike=False)
        saved_gpu_s = _width(wants) * saved_s
        for _ in range(SETS_TRIED):
            moves = self._search.find(row, wants)
            if not moves:
                return None
            cost_gpu_s = sum(victim.cost_gpu_s for victim in moves)
            is_worth_it = cost_gpu_s * WORTH <= saved_gpu_s
            stuck = self._without_a_place(wants, moves, before) if is_worth_it else set()
            if is_worth_it and not stuck:
                self._n_left = 0
                members = self._book(row, wants, moves)
                return Wave(tuple(moves), tuple(members), saved_gpu_s, cost_gpu_s)
            self._search.spare(moves)
            if not is_worth_it:
                return None
            self._excluded |= stuck
        return None

    def _may_move(self, snapshot: Snapshot, row: int, running: Rows) -> Rows:
        """Return who could go elsewhere at once, by itself."""
        if self._movable is None:
            self._movable = self._all_movable(running)
        jobs = snapshot.jobs
        kept = running[self._movable[running]]
        if snapshot.tree.has_shares:
            # Queues take turns: whose turn comes first, that of the gang or another, is open.
            kept = kept[jobs.queue[kept] == jobs.queue[row]]
        return np.array([r for r in kept.tolist() if r not in self._excluded], np.intp)

    def _all_movable(self, running: Rows) -> BoolColumn:
        draft, snapshot = self._draft, self._draft.snapshot
        jobs = snapshot.jobs
        keeps = (jobs.checkpoint_interval_s > 0) | (jobs.checkpoint_at_s > 0)
        keeps &= snapshot.now_s - jobs.started_at_s >= SETTLED_S
        keeps &= snapshot.tree.is_started[jobs.queue]  # else it could not go on
        movable = np.zeros(len(jobs.jobs), np.bool_)
        for row in running[keeps[running]].tolist():
            if snapshot.job_at(row).spec.kind is JobKind.INFERENCE:
                continue
            wants = wants_as_held(snapshot, row)
            known = self._fits_elsewhere.get(wants)
            if known is None:
                known = self._fits_elsewhere[wants] = could_place(draft.now, wants)
            movable[row] = known
        return movable

    def _without_a_place(
        self, wants: tuple[Want, ...], moves: Sequence[Victim], before: Sequence[Pair]
    ) -> set[int]:
        """Return whom of the moved jobs no place is left for; all, if the gang gets none."""
        space, snapshot = self._draft.open_later(), self._draft.snapshot
        everybody = {victim.row for victim in moves}
        if any(could_place(space, others) for _, others in before):
            return everybody
        booked: list[list[Member]] = []
        stuck: set[int] = set()
        members = place_gang(space, wants)
        if isinstance(members, Shortfall):
            return everybody
        booked.append(members)
        for victim in _widest_first(moves):
            there = place_gang(space, wants_as_held(snapshot, victim.row))
            if isinstance(there, Shortfall):
                stuck.add(victim.row)
            else:
                booked.append(there)
        for places in reversed(booked):
            undo(space, places)
        return stuck

    def _book(self, row: int, wants: tuple[Want, ...], moves: Sequence[Victim]) -> list[Member]:
        draft = self._draft
        draft.note_ends((victim.row, victim.tasks) for victim in moves)
        members = hold_later(draft, row, wants)
        assert not isinstance(members, Shortfall)
        for victim in _widest_first(moves):
            hold_later(draft, victim.row, wants_as_held(draft.snapshot, victim.row))
        return members


def is_under_way(snapshot: Snapshot) -> bool:
    """Return whether jobs are moving, or the gang that they moved for has not started yet."""
    jobs = snapshot.jobs
    stopping = np.flatnonzero(jobs.n_stopping > 0).tolist()
    if any(t.stop_cause is StopCause.MIGRATED for row in stopping for t in jobs.tasks[row]):
        return True
    is_pending = jobs.phase == PHASE_CODE[JobPhase.PENDING]
    awaited = jobs.yields_to[is_pending & (jobs.yields_to > 0)]
    return bool(np.isin(awaited, jobs.sequence[is_pending]).any())


def keep_for(draft: Draft, row: int) -> None:
    """Hold places for those who move for the job of a row, once it has its own."""
    jobs = draft.snapshot.jobs
    moving = jobs.yields_to == jobs.sequence[row]
    moving &= jobs.phase == PHASE_CODE[JobPhase.STOPPING]
    movers = np.flatnonzero(moving)
    for mover in movers[np.argsort(jobs.sequence[movers])].tolist():
        hold_later(draft, mover, wants_as_held(draft.snapshot, mover))


def in_turn(snapshot: Snapshot, rows: Rows) -> Rows:
    """Return waiting rows in their order, but who moved for somebody right behind that one."""
    jobs = snapshot.jobs
    yields_to = jobs.yields_to[rows]
    if not yields_to.any():
        return rows
    place_of = {int(sequence): i for i, sequence in enumerate(jobs.sequence[rows].tolist())}
    place = np.arange(len(rows), dtype=np.float64)
    n_tasks = np.zeros(len(rows), np.int64)
    for i in np.flatnonzero(yields_to).tolist():
        other = place_of.get(int(yields_to[i]), -1)
        if other > i:
            place[i] = other + 0.5
            n_tasks[i] = snapshot.job_at(int(rows[i])).spec.n_tasks
    return rows[np.lexsort((jobs.sequence[rows], -n_tasks, place))]


def wants_as_held(snapshot: Snapshot, row: int) -> tuple[Want, ...]:
    """Return the live tasks of a job as wants for places on GPUs of the types they have."""
    jobs, nodes = snapshot.jobs, snapshot.nodes
    by_role: dict[str, list[Task]] = {}
    for task in jobs.tasks[row]:
        by_role.setdefault(task.id.role, []).append(task)
    wants = []
    for role in snapshot.gangs[jobs.gang[row]]:
        tasks = by_role.get(role.name, [])
        shape = role.shape
        if shape.total_gpu_milli:
            types = {nodes.nodes[nodes.row_of[task.node]].gpu_type for task in tasks}
            shape = replace(shape, gpu_types=tuple(sorted(types)))
        if tasks:
            must = tuple(range(len(tasks)))
            wants.append(Want(role.name, shape, must=must, may=(), near=role.near))
    return tuple(wants)


def _widest_first(moves: Sequence[Victim]) -> list[Victim]:
    return sorted(moves, key=lambda victim: (-len(victim.tasks), victim.sequence))


def _width(wants: tuple[Want, ...]) -> float:
    """Return how many GPUs' worth the tasks take without which the gang does not start."""
    return sum(len(want.must) * width_milli(want.shape) for want in wants) / MILLI
