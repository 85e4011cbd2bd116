"""What queues use on a draft, and what the rules of their tree let a job have.

Two ledgers, like the two books of a draft: what is used now, and what will be once everything
asked to stop is gone. Three questions: may this job start (`admit`), how much is it owed
(`rank`), and who is over which limit (`why_over`). Whose tasks may be stopped for it is left
to `claims`.

A queue that does not lend is charged upwards with what it is guaranteed even while it uses
less, so that nobody above it hands the difference out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.core.job_columns import PHASE_CODE, Gang
from scheduler.core.ledger import Ledger, capacity_of, ceilings
from scheduler.core.model import JobPhase, Shape, Task, TaskPhase
from scheduler.core.node_columns import BoolColumn, FloatColumn
from scheduler.core.placement import Member, Want, wants_of
from scheduler.core.plan import Cause, Unplaced
from scheduler.core.queue_tree import (
    CPU,
    FIRST_TYPE,
    GPU,
    MEMORY,
    UNBOUNDED,
    figure,
)
from scheduler.core.snapshot import Snapshot

PENDING = PHASE_CODE[JobPhase.PENDING]

Amounts = list[int]
"""By resource, in the columns of the tree."""

Promised = list[tuple[int, int]]
"""Columns of resources and amounts."""

Rank = tuple[int, ...]
"""At each level of the tree, the highest first, what a job is owed; see `Quotas.rank`."""

OWED_NOTHING = 4
END = 5
OWED_NOTHING_AT_ALL: Rank = (END,)


@dataclass(frozen=True, slots=True)
class Excess:
    """Where a job would go over a ceiling."""

    row: int
    column: int
    amount: int  # that it asks for


@dataclass(frozen=True, slots=True)
class _Line:
    """A queue and all above it, the highest first, and what they are guaranteed."""

    levels: list[tuple[int, Promised]]  # rows of the tree; empty: nobody is guaranteed anything
    columns: tuple[int, ...]  # of what any of them is guaranteed

    @classmethod
    def of(cls, path: list[int], promised: list[Promised]) -> "_Line":
        """Return the line of queues of which each is promised something, or nothing."""
        columns = {column for amounts in promised for column, _ in amounts}
        levels = list(zip(path, promised, strict=True)) if columns else []
        return cls(levels, tuple(sorted(columns)))

    def distinct(self, options: list[tuple[Amounts, str | None]]) -> list[Amounts]:
        """Return the options that differ in what is guaranteed."""
        return list(
            {tuple(need[c] for c in self.columns): need for need, _ in options}.values()
        )

    def rank(self, needs: list[Amounts], rows: list[Amounts]) -> Rank:
        """Return `Quotas.rank` of the need that is owed most, given what each row uses."""
        best = OWED_NOTHING_AT_ALL
        for need in needs:
            rank = [_owed(need, rows[row], promised) for row, promised in self.levels]
            # Ranks of queues at different depths compare without the levels that owe nothing.
            while rank and rank[-1] == OWED_NOTHING:
                rank.pop()
            best = min(best, (*rank, END))
        return best


class Quotas:
    """The ledgers of one draft."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.tree = tree = snapshot.tree
        self.capacity = capacity_of(snapshot.nodes, tree)
        self.now = Ledger(tree, snapshot.queue_used, ceilings(tree, self.capacity))
        self.later = self.now
        # What each row used lately, with all below it; None: that does not count.
        self.average: FloatColumn | None = None
        if snapshot.queue_average is not None:
            self.average = tree.rolled_up(snapshot.queue_average)
        self._n_columns = FIRST_TYPE + len(tree.gpu_types)
        self._column_of = {t: FIRST_TYPE + i for i, t in enumerate(tree.gpu_types)}
        self._is_there = self.capacity > 0
        bounds = tree.ceiling[:, FIRST_TYPE:] < UNBOUNDED
        bounds_types: BoolColumn = np.logical_or.reduce(bounds, axis=1)
        kept = tree.guaranteed[tree.is_reserve(), FIRST_TYPE:]
        bounds_types[tree.root] |= bool(kept.any())
        for rows in tree.levels:
            bounds_types[rows] |= bounds_types[tree.parent[rows]]
        # Whether the queue of a row, or any above it, may have only so much of a GPU type.
        self._bounds_types: list[bool] = bounds_types.tolist()
        self._columns: dict[Shape, tuple[int, ...]] = {}
        self._needs: dict[int, tuple[Amounts, bool]] = {}
        self._options: dict[int, list[tuple[Amounts, str | None]]] = {}
        self._most: dict[int, Amounts] = {}
        self._lines: dict[int, _Line] = {}
        self._distinct: dict[tuple[int, tuple[int, ...]], list[Amounts]] = {}
        self._held: dict[int, Amounts] = {}
        for row in np.flatnonzero(snapshot.jobs.n_stopping > 0).tolist():
            tasks = snapshot.jobs.tasks[row]
            self.release(row, [task for task in tasks if task.phase is TaskPhase.STOPPING])

    def open_later(self) -> None:
        """Keep what will be used apart from what is used now."""
        if self.later is self.now:
            self.later = self.now.copy()

    # What jobs ask for and hold

    def _type_columns(self, shape: Shape) -> tuple[int, ...]:
        """Return the columns of the GPU types on which such a task could run."""
        known = self._columns.get(shape)
        if known is None:
            types = shape.gpu_types or self.tree.gpu_types
            columns = [self._column_of[t] for t in types if t in self._column_of]
            there = [column for column in columns if self._is_there[column]]
            if not there and shape.gpu_types:
                there = columns
            known = tuple(there) if shape.total_gpu_milli else ()
            self._columns[shape] = known
        return known

    def _total(self, wants: Sequence[Want]) -> tuple[Amounts, bool]:
        """Return what all tasks take together; whether the type of some GPU is open."""
        total = [0] * self._n_columns
        is_open = False
        for want in wants:
            columns = self._type_columns(want.shape)
            is_open |= len(columns) > 1
            column = columns[0] if len(columns) == 1 else None
            n_tasks = len(want.must) + len(want.may)
            _add(total, want.shape, type_column=column, n_tasks=n_tasks)
        return total, is_open

    def total(self, wants: tuple[Want, ...]) -> Amounts:
        """Return what all tasks wanted take together."""
        return self._total(wants)[0]

    def options(self, row: int) -> list[tuple[Amounts, str | None]]:
        """Return what a waiting job needs at least: one amount, or one per GPU type it may use.

        Which of several types a gang gets is open, so each is an option for all of it.
        """
        jobs = self.snapshot.jobs
        if jobs.phase[row] != PENDING:
            return self._options_of(least_of(wants_of(self.snapshot, row)))
        gang = int(jobs.gang[row])
        known = self._options.get(gang)
        if known is None:
            least = least_of_gang(self.snapshot.gangs[gang])
            known = self._options[gang] = self._options_of(least)
        return known

    def _options_of(self, least: tuple[Want, ...]) -> list[tuple[Amounts, str | None]]:
        total, is_open = self._total(least)
        options: list[tuple[Amounts, str | None]] = [(total, None)]
        if is_open:
            open_wants = [w for w in least if len(self._type_columns(w.shape)) > 1]
            milli = sum(w.shape.total_gpu_milli * len(w.must) for w in open_wants)
            for column in self._type_columns(open_wants[0].shape):
                of_type = total.copy()
                of_type[column] += milli
                options.append((of_type, self.tree.gpu_types[column - FIRST_TYPE]))
        return options

    def back_before(
        self, row: int, others: Iterable[int], *, is_replica: bool = False
    ) -> list[int]:
        """Return which of the others would be served before the job, once they have stopped.

        They would take the places that were freed for it, or others of its queue's, time and
        again. With `is_replica` they are services, of which a single replica has stopped.
        """
        if not self.tree.has_shares:
            return []
        mine, queue_of = self.rank(row), self.snapshot.jobs.queue
        first = []
        for other in others:
            gang = self.snapshot.gangs[self.snapshot.jobs.gang[other]]
            least = replicas_of_gang(gang) if is_replica else [least_of_gang(gang)]
            options = [option for wants in least for option in self._options_of(wants)]
            theirs = self._rank(self._line(int(queue_of[other])), options)
            is_at_home = queue_of[other] == queue_of[row]
            if not (mine < theirs or (is_at_home and mine == theirs)):
                first.append(other)
        return first

    def rank(self, row: int) -> Rank:
        """Return what a waiting job is owed as the later ledger stands: less is more urgent.

        Per level of its queue's path, the highest first: 0 to 3 if the queue there stays
        within its guarantee, by what counts most of what the job asks for and it guarantees: a
        GPU type, GPUs, memory, CPUs; 4 if it would borrow.
        """
        jobs = self.snapshot.jobs
        line = self._line(int(jobs.queue[row]))
        if not line.levels:
            return OWED_NOTHING_AT_ALL
        if jobs.phase[row] != PENDING:
            return self._rank(line, self.options(row))
        kind = int(jobs.gang[row]), line.columns
        needs = self._distinct.get(kind)
        if needs is None:
            needs = self._distinct[kind] = line.distinct(self.options(row))
        return line.rank(needs, self.later.rows)

    def _rank(self, line: "_Line", options: list[tuple[Amounts, str | None]]) -> Rank:
        return line.rank(line.distinct(options), self.later.rows)

    def _line(self, queue: int) -> "_Line":
        known = self._lines.get(queue)
        if known is None:
            path = self.tree.paths[queue][-2::-1]
            promised = [_promised(row) for row in self.tree.guaranteed[path].tolist()]
            known = self._lines[queue] = _Line.of(path.tolist(), promised)
        return known

    def need(self, row: int, wants: tuple[Want, ...]) -> tuple[Amounts, bool]:
        """Return `_total` of a waiting job, remembered for gangs alike."""
        jobs = self.snapshot.jobs
        if jobs.phase[row] != PENDING or row in jobs.seats:
            return self._total(wants)
        gang = int(jobs.gang[row])
        known = self._needs.get(gang)
        if known is None:
            known = self._needs[gang] = self._total(wants)
        return known

    def _at_most(self, row: int, wants: tuple[Want, ...]) -> Amounts:
        """Return what a job takes at most of each type, if its GPUs may be of several."""
        gang = int(self.snapshot.jobs.gang[row])
        jobs = self.snapshot.jobs
        is_whole = jobs.phase[row] == PENDING and row not in jobs.seats
        known = self._most.get(gang) if is_whole else None
        if known is None:
            known, _ = self._total(wants)
            for want in wants:
                columns = self._type_columns(want.shape)
                n_tasks = len(want.must) + len(want.may)
                for column in columns if len(columns) > 1 else ():
                    known[column] += want.shape.total_gpu_milli * n_tasks
            if is_whole:
                self._most[gang] = known
        return known

    def held(self, row: int) -> Amounts:
        """Return what all live tasks of a job hold."""
        known = self._held.get(row)
        if known is None:
            known = self._held[row] = self.of_tasks(row, self.snapshot.jobs.tasks[row])
        return known

    def of_tasks(self, row: int, tasks: Iterable[Task]) -> Amounts:
        """Return what some tasks of a job hold."""
        snapshot = self.snapshot
        shapes = {r.name: r.shape for r in snapshot.gangs[snapshot.jobs.gang[row]]}
        nodes, total = snapshot.nodes, [0] * self._n_columns
        for task in tasks:
            gpu_type = nodes.nodes[nodes.row_of[task.node]].gpu_type
            column = self._column_of.get(gpu_type)
            _add(total, shapes[task.id.role], type_column=column)
        return total

    # Booking

    def book(self, row: int, members: Iterable[Member], *, is_now: bool, sign: int = 1) -> None:
        """Charge a job's queue with the places it is given; with sign -1 undo that."""
        queue, total = int(self.snapshot.jobs.queue[row]), self._of_members(members)
        if sign < 0:
            total = [-amount for amount in total]
        if is_now:
            self.now.add(queue, total)
        if not is_now or self.later is not self.now:
            self.later.add(queue, total)

    def _of_members(self, members: Iterable[Member]) -> Amounts:
        nodes, total = self.snapshot.nodes.nodes, [0] * self._n_columns
        for member in members:
            column = self._column_of.get(nodes[member.spot.row].gpu_type)
            _add(total, member.want.shape, type_column=column)
        return total

    def may_have(self, row: int, members: Iterable[Member]) -> bool:
        """Return whether these places, not booked yet, are within all limits later."""
        queue = int(self.snapshot.jobs.queue[row])
        return self.later.over(queue, self._of_members(members)) is None

    def release(self, row: int, tasks: Sequence[Task], *, sign: int = -1) -> None:
        """Book tasks of a job as gone from the later ledger; with sign 1 undo that."""
        self.open_later()
        is_all = len(tasks) == len(self.snapshot.jobs.tasks[row])
        held = self.held(row) if is_all else self.of_tasks(row, tasks)
        self.later.add(int(self.snapshot.jobs.queue[row]), [sign * amount for amount in held])

    # Admission

    def admit(
        self, row: int, wants: tuple[Want, ...], *, is_now: bool
    ) -> tuple[Want, ...] | Excess:
        """Return what of its wants the job may have, or where it would go too far.

        What starts now must be within the ceilings now and later. Tasks that may be placed are
        dropped, and GPU types left out, as far as quota asks for it; if none of several types
        has room for all, the job waits although a mix of them might do.
        """
        if not self.tree.has_ceilings and not self.tree.has_reserves:
            return wants
        need, is_open = self.need(row, wants)
        queue = int(self.snapshot.jobs.queue[row])
        is_bound = is_open and self._bounds_types[queue]
        if is_bound and self._excess(queue, self._at_most(row, wants), is_now=is_now) is None:
            return wants
        excess = self._excess(queue, need, is_now=is_now)
        if excess is None and not is_bound:
            return wants
        n_may = sum(len(want.may) for want in wants)
        least = 0 if any(want.must for want in wants) else 1
        for n_kept in range(n_may, least - 1, -1):
            kept = _with_may(wants, n_kept)
            fitting = self._admit_all(queue, kept, is_now=is_now)
            if not isinstance(fitting, Excess):
                return fitting
            excess = fitting
        assert excess is not None
        return excess

    def _admit_all(
        self, queue: int, wants: tuple[Want, ...], *, is_now: bool
    ) -> tuple[Want, ...] | Excess:
        need, is_open = self._total(wants)
        excess = self._excess(queue, need, is_now=is_now)
        if excess is not None or not is_open:
            return wants if excess is None else excess
        open_milli = sum(
            want.shape.total_gpu_milli * (len(want.must) + len(want.may))
            for want in wants
            if len(self._type_columns(want.shape)) > 1
        )
        full: dict[int, Excess] = {}
        for column in {c for want in wants for c in self._type_columns(want.shape)}:
            with_all = need.copy()
            with_all[column] += open_milli
            found = self._excess(queue, with_all, is_now=is_now)
            if found is not None:
                full[column] = found
        admitted = []
        for want in wants:
            columns = self._type_columns(want.shape)
            left = [column for column in columns if column not in full]
            if len(columns) > 1 and not left:
                return full[columns[0]]
            if 1 < len(columns) != len(left):
                types = tuple(self.tree.gpu_types[c - FIRST_TYPE] for c in left)
                want = replace(want, shape=replace(want.shape, gpu_types=types))
            admitted.append(want)
        return tuple(admitted)

    def _excess(self, queue: int, need: Amounts, *, is_now: bool) -> Excess | None:
        found = self.now.over(queue, need) if is_now else None
        if found is None and (not is_now or self.later is not self.now):
            found = self.later.over(queue, need)
        return None if found is None else Excess(*found, need[found[1]])

    def why_over(self, excess: Excess, *, is_now: bool) -> Unplaced:
        """Return the reason of a job that waits for quota."""
        tree, row, column = self.tree, excess.row, excess.column
        ledger = self.now if is_now else self.later
        what = tree.label(column)
        used, most = ledger.rows[row][column], ledger.ceiling(row, column)
        asks = f"; the job asks for {figure(column, excess.amount)}"
        asks = asks if ledger.charged(row, column) < most else ""
        queue = tree.queues[row] if row < tree.root else None
        if queue is None:
            kept = ledger.charged(row, column) - used
            detail = (
                f"{figure(column, kept)} of {figure(column, most)} {what} are kept for queues "
                f"that do not lend, {figure(column, used)} are used{asks}"
            )
            return Unplaced(cause=Cause.QUOTA, detail=detail)
        name = tree.resource(column)
        is_guaranteed = name in dict(queue.guaranteed)
        is_limited = most == dict(queue.limit).get(name)
        own = int(tree.guaranteed[row, column]) if is_guaranteed and not is_limited else most
        detail = f"queue {queue.name} uses {figure(column, used)} of its {figure(column, own)} "
        detail += what
        kept = ledger.charged(row, column) - used
        if kept > 0:
            detail += f", {figure(column, kept)} are kept for queues below it that do not lend"
        if most > own:
            detail += f", and may borrow at most {figure(column, most - own)}"
        elif is_guaranteed:
            detail += ", and may borrow none"
        return Unplaced(cause=Cause.QUOTA, detail=detail + asks)


def _promised(guaranteed: list[int]) -> Promised:
    """Return what is guaranteed: what counts most last."""
    return [(column, amount) for column, amount in enumerate(guaranteed) if amount > 0]


def _owed(need: Amounts, used: Amounts, promised: Promised) -> int:
    owed = OWED_NOTHING
    for column, amount in promised:
        if need[column] > 0:
            if used[column] + need[column] > amount:
                return OWED_NOTHING
            owed = 0 if column >= FIRST_TYPE else FIRST_TYPE - column
    return owed


def _add(total: Amounts, shape: Shape, *, type_column: int | None, n_tasks: int = 1) -> None:
    """Add what tasks of a shape take, and of which type of GPU if that is known."""
    gpu_milli = shape.total_gpu_milli * n_tasks
    total[CPU] += shape.cpu_milli * n_tasks
    total[MEMORY] += shape.memory_mib * n_tasks
    total[GPU] += gpu_milli
    if type_column is not None:
        total[type_column] += gpu_milli


def least_of_gang(gang: Gang) -> tuple[Want, ...]:
    """Return what must be placed for a job to start that has nothing yet."""
    wants = [
        Want(r.name, r.shape, must=tuple(range(r.min_count)), may=(), near=r.near) for r in gang
    ]
    return tuple(want for want in wants if want.must)


def replicas_of_gang(gang: Gang) -> list[tuple[Want, ...]]:
    """Return one task of each role: what a service takes back first that gave some up."""
    return [(Want(r.name, r.shape, must=(0,), may=(), near=r.near),) for r in gang]


def least_of(wants: tuple[Want, ...]) -> tuple[Want, ...]:
    """Return what must be placed for the job to gain at all: of a service, one replica."""
    if any(want.must for want in wants):
        return tuple(replace(want, may=()) for want in wants if want.must)
    return tuple(replace(want, must=want.may[:1], may=()) for want in wants if want.may)[:1]


def _with_may(wants: tuple[Want, ...], n_may: int) -> tuple[Want, ...]:
    """Return the wants with so many of the tasks that may be placed, the first ones."""
    kept = []
    for want in wants:
        may = want.may[:n_may]
        n_may -= len(may)
        kept.append(want if may == want.may else replace(want, may=may))
    return tuple(kept)
