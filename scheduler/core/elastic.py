"""Elastic jobs over time: they go on where they were shrunk or grown to, and grow when idle.

A gang can change its size only by stopping and starting again, from its last checkpoint. The
cycle that decides so also decides where it goes on: on its `seats`, which are kept for it until
it has stopped, and where it starts before anybody else is served.

Jobs grow by one task at a time, those first that have least of what they want, onto nodes that
no waiting job could use, in their own queue's quota. A running gang grows at most once per
cool-down, and only if it gets more work done until the next one than without a restart: the
seconds of the restart and the work not saved are lost. Services grow in place, and so do gangs
that start in this cycle.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scheduler.core import capacity
from scheduler.core.draft import Draft
from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.model import JobId, JobKind, JobPhase, JobSpec, Levels, Shape, Task, fill
from scheduler.core.node_columns import BoolColumn, Rows
from scheduler.core.placement import (
    Member,
    Shortfall,
    Want,
    place_gang,
    placement_of,
    places_of,
    undo,
)
from scheduler.core.plan import Placement, Resize
from scheduler.core.preemption import RESTART_S
from scheduler.core.quotas import Excess, Quotas
from scheduler.core.records import Seat
from scheduler.core.snapshot import Snapshot
from scheduler.core.space import Space, Spot
from scheduler.core.topology import Near, Place, beside

RUNNING = PHASE_CODE[JobPhase.RUNNING]
PENDING = PHASE_CODE[JobPhase.PENDING]
STOPPING = PHASE_CODE[JobPhase.STOPPING]

SEATS_KEPT_S = RESTART_S
"""How long a gang that has stopped to be resized comes before everybody else."""


def go_on_resized(
    draft: Draft, quotas: Quotas | None, levels: Levels
) -> tuple[list[Placement], set[int]]:
    """Start gangs that were stopped to be resized on their seats, or keep those for them.

    Returns the placements, and the rows of all that have their seats.
    """
    snapshot, jobs = draft.snapshot, draft.snapshot.jobs
    placements: list[Placement] = []
    seated: set[int] = set()
    for row in _rows_with_seats(snapshot):
        is_pending = jobs.phase[row] == PENDING
        # In a queue that was stopped, too: what runs goes on.
        if is_pending and not snapshot.is_ready(np.array([row]))[0]:
            continue
        members = _members_on_seats(draft, row)
        if members is None:
            continue
        if is_pending and quotas is not None:
            wants = tuple(dict.fromkeys(member.want for member in members))
            if isinstance(quotas.admit(row, wants, is_now=True), Excess):
                undo(draft.now, members)
                continue
        if is_pending:
            draft.note_start(row, places_of(members))
            placements.append(placement_of(snapshot, row, members, levels))
        else:
            draft.note_hold(row, places_of(members))
        if quotas is not None:
            quotas.book(row, members, is_now=bool(is_pending))
        seated.add(row)
    return placements, seated


def _rows_with_seats(snapshot: Snapshot) -> list[int]:
    """Return the gangs that are being resized, those that still stop too, as they arrived."""
    jobs, now_s = snapshot.jobs, snapshot.now_s
    rows = [
        row
        for row in jobs.seats
        if jobs.phase[row] == STOPPING
        or (jobs.phase[row] == PENDING and now_s - jobs.pending_since_s[row] < SEATS_KEPT_S)
    ]
    return sorted(rows, key=lambda row: int(jobs.sequence[row]))


def _members_on_seats(draft: Draft, row: int) -> list[Member] | None:
    """Book the seats of a gang, now or later, if all of them are free; else none."""
    snapshot = draft.snapshot
    space = draft.now if snapshot.jobs.phase[row] == PENDING else draft.open_later()
    roles = {role.name: role for role in snapshot.gangs[snapshot.jobs.gang[row]]}
    seats = snapshot.jobs.seats[row]
    counts = Counter(seat.role for seat in seats)
    index: Counter[str] = Counter()
    members: list[Member] = []
    for seat in seats:
        role, node = roles[seat.role], space.nodes.row_of.get(seat.node)
        if node is None or not _is_free(space, node, role.shape, seat.devices):
            undo(space, members)
            return None
        space.take(node, role.shape, seat.devices)
        must = tuple(range(counts[seat.role]))
        want = Want(seat.role, role.shape, must=must, may=(), near=role.near)
        members.append(Member(want, index[seat.role], Spot(node, seat.devices)))
        index[seat.role] += 1
    return members


def _is_free(space: Space, node: int, shape: Shape, devices: tuple[int, ...]) -> bool:
    is_open = bool(space.could_take(shape)[node])
    return is_open and capacity.can_take(space.nodes, node, shape, devices)


def resize_onto(snapshot: Snapshot, row: int, members: Sequence[Member], why: str) -> Resize:
    """Return the resize of a gang onto these places."""
    nodes = snapshot.nodes.nodes
    seats = [
        Seat(role=m.want.role, node=nodes[m.spot.row].name, devices=m.spot.devices)
        for m in members
    ]
    return _resize(snapshot, row, seats, why)


def resize_of(snapshot: Snapshot, row: int, tasks: Iterable[Task], why: str) -> Resize:
    """Return the resize that keeps these tasks of a gang."""
    return _resize(snapshot, row, [_seat(task) for task in tasks], why)


def _seat(task: Task) -> Seat:
    return Seat(role=task.id.role, node=task.node, devices=task.devices)


def _resize(snapshot: Snapshot, row: int, seats: Sequence[Seat], why: str) -> Resize:
    n_now = len(snapshot.jobs.tasks[row])
    return Resize(
        job_id=snapshot.job_at(row).id,
        attempt=int(snapshot.jobs.attempt[row]),
        seats=tuple(seats),
        detail=f"restarts with {len(seats)} tasks instead of {n_now}: {why}",
    )


def _staying_on(shape: Shape, gpu_types: tuple[str, ...]) -> Shape:
    """Return the shape on those types where its job is, if it may go to any of them."""
    allowed = shape.gpu_types or gpu_types
    both = tuple(name for name in gpu_types if name in allowed)
    return replace(shape, gpu_types=both) if both and shape.total_gpu_milli else shape


@dataclass(slots=True)
class _Grower:
    """A job that may grow, and the places it was given so far."""

    row: int
    spec: JobSpec
    shapes: dict[str, Shape]
    counts: Counter[str]
    free: dict[str, list[int]]  # indices not taken, by role, least first
    near: Near | None  # how near to its tasks it wants more of them
    added: list[Member] = field(default_factory=list)

    def next_role(self) -> str | None:
        """Return the role to grow by a task: the one with least of what it wants."""
        open_roles = [r for r in self.spec.roles if self.counts[r.name] < r.max_count]
        if not open_roles:
            return None
        return min(open_roles, key=lambda r: fill(self.counts[r.name], r.count)).name

    @property
    def n_tasks(self) -> int:
        return self.counts.total()

    @property
    def fill(self) -> float:
        """How much it has of what it wants; who wants nothing any more grows last."""
        return fill(self.n_tasks, self.spec.n_tasks)


@dataclass(slots=True)
class Grown:
    """What comes of growth in one cycle."""

    instead: dict[JobId, Placement] = field(default_factory=dict)  # of jobs that start
    placements: list[Placement] = field(default_factory=list)  # of services
    resizes: list[Resize] = field(default_factory=list)  # of gangs
    retry_at_s: float = np.inf  # when a job has saved what it would lose by growing now


def grow(
    draft: Draft,
    quotas: Quotas | None,
    levels: Levels,
    started: Mapping[int, list[Member]],
    *,
    short: Rows,
) -> Grown:
    """Let elastic jobs grow, once everybody else has been served.

    `started` are the elastic ones that start in this cycle; `short` are the rows that still
    wait for capacity: what they could use is left alone. Nothing is booked on the draft.
    """
    snapshot, jobs, grown = draft.snapshot, draft.snapshot.jobs, Grown()
    running = snapshot.running_rows(jobs.is_elastic)
    running = running[jobs.may_resize_at_s[running] <= snapshot.now_s]
    running = running[snapshot.tree.is_started[jobs.queue[running]]]
    if not len(running) and not started:
        return grown
    growth = _Growth(draft, quotas, _wanted_nodes(draft, short))
    growth.add_running(running)
    for row, members in started.items():
        growth.add_starting(row, members)
    for row, added in growth.run().items():
        job = snapshot.job_at(row)
        if row in started:
            grown.instead[job.id] = placement_of(snapshot, row, started[row] + added, levels)
        elif job.spec.kind is JobKind.INFERENCE:
            grown.placements.append(placement_of(snapshot, row, added, levels))
        else:
            grown.resizes.append(growth.resize(row, added))
    grown.retry_at_s = growth.retry_at_s
    return grown


def _wanted_nodes(draft: Draft, short: Rows) -> BoolColumn:
    """Return the nodes that a job which waits for capacity could use."""
    snapshot = draft.snapshot
    gangs = dict.fromkeys(snapshot.jobs.gang[short].tolist())
    shapes = {role.shape: None for gang in gangs for role in snapshot.gangs[gang]}
    wanted = np.zeros(len(snapshot.nodes.nodes), np.bool_)
    for shape in shapes:
        wanted |= draft.now.could_take(shape)
    return wanted


class _Growth:
    """The jobs that may grow, and what each is given."""

    def __init__(self, draft: Draft, quotas: Quotas | None, closed: BoolColumn) -> None:
        self._snapshot = draft.snapshot
        self._quotas = quotas
        draft.enter(np.inf)
        self._space = draft.now.fork()
        self._space.close(set(np.flatnonzero(closed).tolist()))
        self._draft = draft
        self._growers: dict[int, _Grower] = {}
        self._is_room: dict[int, bool] = {}  # by the number of a gang
        self.retry_at_s = np.inf  # when a job that would lose too much now has saved its work

    def add_running(self, rows: Rows) -> None:
        """Let running jobs grow whose cool-down is over."""
        snapshot, jobs = self._snapshot, self._snapshot.jobs
        for row in rows.tolist():
            tasks = jobs.tasks[row]
            spec = snapshot.job_at(row).spec
            is_service = spec.kind is JobKind.INFERENCE
            is_whole = bool(tasks) and tasks[0].world_size == len(tasks)
            if jobs.n_stopping[row] or self._draft.is_evicted[row]:
                continue
            if is_service and (jobs.n_missing[row] or jobs.eligible_at_s[row] > snapshot.now_s):
                continue
            if (is_service or is_whole) and self._could_grow(int(jobs.gang[row])):
                taken = [(task.id.role, task.id.index) for task in tasks]
                row_of = snapshot.nodes.row_of
                places = [(row_of[task.node], task.devices) for task in tasks]
                self._add(row, taken, self._on_same_type(row), places=places)

    def add_starting(self, row: int, members: Sequence[Member]) -> None:
        """Let a job grow that starts in this cycle."""
        nodes = self._snapshot.nodes.nodes
        types = {nodes[m.spot.row].gpu_type for m in members if m.want.shape.total_gpu_milli}
        taken = [(member.want.role, member.index) for member in members]
        places = [(member.spot.row, member.spot.devices) for member in members]
        self._add(row, taken, tuple(sorted(types)), places=places)

    def _could_grow(self, gang: int) -> bool:
        """Return whether there is a place for a task of such jobs, on whatever type."""
        if gang not in self._is_room:
            shapes = {role.shape for role in self._snapshot.gangs[gang]}
            self._is_room[gang] = any(self._space.n_fit(shape) for shape in shapes)
        return self._is_room[gang]

    def _on_same_type(self, row: int) -> tuple[str, ...]:
        nodes = self._snapshot.nodes
        tasks = self._snapshot.jobs.tasks[row]
        types = {
            nodes.nodes[nodes.row_of[task.node]].gpu_type for task in tasks if task.devices
        }
        return tuple(sorted(types))

    def _add(
        self,
        row: int,
        taken: Sequence[tuple[str, int]],
        gpu_types: tuple[str, ...],
        *,
        places: Sequence[Place],
    ) -> None:
        spec = self._snapshot.job_at(row).spec
        shapes = {role.name: _staying_on(role.shape, gpu_types) for role in spec.roles}
        has = set(taken)
        free = {
            role.name: [i for i in range(role.max_count) if (role.name, i) not in has]
            for role in spec.roles
        }
        counts = Counter(role for role, _ in taken)
        near = self._snapshot.gangs[int(self._snapshot.jobs.gang[row])][0].near
        if near is not None:
            near = beside(near, self._snapshot.nodes.nodes, places)
        self._growers[row] = _Grower(row, spec, shapes, counts, free, near)

    def run(self) -> dict[int, list[Member]]:
        """Return the members that each job gets besides; those that do not pay are left out."""
        while True:
            self._share_out()
            in_vain = [row for row, g in self._growers.items() if g.added and not self._pays(g)]
            if not in_vain:
                return {row: g.added for row, g in self._growers.items() if g.added}
            # What they cannot use goes to the others.
            for grower in self._growers.values():
                self._take_back(grower)
            for row in in_vain:
                del self._growers[row]

    def _share_out(self) -> None:
        sequence = self._snapshot.jobs.sequence
        heap = [(g.fill, int(sequence[row]), row) for row, g in self._growers.items()]
        heapq.heapify(heap)
        while heap:
            row = heapq.heappop(heap)[-1]
            grower = self._growers[row]
            if self._grow(grower):
                heapq.heappush(heap, (grower.fill, int(sequence[row]), row))

    def _take_back(self, grower: _Grower) -> None:
        for member in reversed(grower.added):
            self._space.give(member.spot.row, member.want.shape, member.spot.devices)
            grower.counts[member.want.role] -= 1
            grower.free[member.want.role].insert(0, member.index)
        if self._quotas is not None:
            self._quotas.book(grower.row, grower.added, is_now=True, sign=-1)
        grower.added.clear()

    def _grow(self, grower: _Grower) -> bool:
        """Give a job one more task, if it is any faster with it."""
        role = grower.next_role()
        n_tasks, spec = grower.n_tasks, grower.spec
        if role is None or spec.speed_up(n_tasks + 1) <= spec.speed_up(n_tasks):
            return False
        index = grower.free[role][0]
        want = Want(role, grower.shapes[role], must=(), may=(index,), near=grower.near)
        if self._quotas is not None:
            admitted = self._quotas.admit(grower.row, (want,), is_now=True)
            if isinstance(admitted, Excess):
                return False
            (want,) = admitted
        placed = place_gang(self._space, (want,))
        if isinstance(placed, Shortfall):
            return False
        want = replace(want, shape=self._shape(grower.row, role))
        member = Member(want, index, placed[0].spot)
        if self._quotas is not None:
            self._quotas.book(grower.row, [member], is_now=True)
        grower.free[role].pop(0)
        grower.added.append(member)
        grower.counts[role] += 1
        return True

    def _shape(self, row: int, role: str) -> Shape:
        roles = self._snapshot.job_at(row).spec.roles
        return next(r.shape for r in roles if r.name == role)

    def _pays(self, grower: _Grower) -> bool:
        """Return whether the job gets more done with what it would be given."""
        jobs, row, spec = self._snapshot.jobs, grower.row, grower.spec
        if jobs.phase[row] != RUNNING or spec.kind is JobKind.INFERENCE:
            return True
        before = spec.speed_up(grower.n_tasks - len(grower.added))
        after = spec.speed_up(grower.n_tasks)
        horizon_s = spec.resize_cooldown_s
        left_s = float(self._snapshot.expected_end_s(np.array([row], np.intp))[0])
        horizon_s = min(horizon_s, max(left_s - self._snapshot.now_s, 0.0))
        unsaved_s = float(self._snapshot.unsaved_s(np.array([row], np.intp))[0])
        gained = after * (horizon_s - RESTART_S) - before * horizon_s
        interval_s = spec.checkpoint_interval_s
        if 0 < gained <= before * unsaved_s and interval_s:
            saved_at_s = self._snapshot.now_s + interval_s - unsaved_s
            self.retry_at_s = min(self.retry_at_s, saved_at_s)
        return gained > before * unsaved_s

    def resize(self, row: int, added: Sequence[Member]) -> Resize:
        """Return the resize of a running gang that gets these members besides."""
        nodes = self._snapshot.nodes.nodes
        seats = [_seat(task) for task in self._snapshot.jobs.tasks[row]]
        seats += [
            Seat(role=m.want.role, node=nodes[m.spot.row].name, devices=m.spot.devices)
            for m in added
        ]
        return _resize(self._snapshot, row, seats, "GPUs are idle")
