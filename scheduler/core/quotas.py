"""What queues use on a draft, and what the rules of their tree let a job have.

Two ledgers, like the two books of a draft: what is used now, and what will be once everything
asked to stop is gone. Three questions: may this job start (`admit`), how much is it owed
(`rank`), and who is over which limit (`why_over`). What it asks for is sized up by `needs`;
whose tasks may be stopped for it is left to `claims`.

A queue that does not lend is charged upwards with what it is guaranteed even while it uses
less, so that nobody above it hands the difference out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.core.ledger import Ledger, capacity_of, ceilings
from scheduler.core.model import Task, TaskPhase
from scheduler.core.needs import (
    PENDING,
    Amounts,
    Needs,
    Option,
    least_of,
    least_of_gang,
    replicas_of_gang,
)
from scheduler.core.node_columns import BoolColumn, FloatColumn
from scheduler.core.placement import Member, Want
from scheduler.core.plan import Cause, Unplaced
from scheduler.core.queue_tree import FIRST_TYPE, UNBOUNDED, figure
from scheduler.core.snapshot import Snapshot

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

    def distinct(self, options: list[Option]) -> list[Amounts]:
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
        self.needs = Needs(snapshot, self.capacity > 0)
        bounds = tree.ceiling[:, FIRST_TYPE:] < UNBOUNDED
        bounds_types: BoolColumn = np.logical_or.reduce(bounds, axis=1)
        kept = tree.guaranteed[tree.is_reserve(), FIRST_TYPE:]
        bounds_types[tree.root] |= bool(kept.any())
        for rows in tree.levels:
            bounds_types[rows] |= bounds_types[tree.parent[rows]]
        # Whether the queue of a row, or any above it, may have only so much of a GPU type.
        self._bounds_types: list[bool] = bounds_types.tolist()
        self._unused: Ledger | None = None  # if nobody ran; made when somebody asks
        self._lines: dict[int, _Line] = {}
        self._distinct: dict[tuple[int, tuple[int, ...]], list[Amounts]] = {}
        for row in np.flatnonzero(snapshot.jobs.n_stopping > 0).tolist():
            tasks = snapshot.jobs.tasks[row]
            self.release(row, [task for task in tasks if task.phase is TaskPhase.STOPPING])

    def open_later(self) -> None:
        """Keep what will be used apart from what is used now."""
        if self.later is self.now:
            self.later = self.now.copy()

    # What jobs are owed

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
            options = [option for wants in least for option in self.needs.options_of(wants)]
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
            return self._rank(line, self.needs.options(row))
        kind = int(jobs.gang[row]), line.columns
        needs = self._distinct.get(kind)
        if needs is None:
            needs = self._distinct[kind] = line.distinct(self.needs.options(row))
        return line.rank(needs, self.later.rows)

    def _rank(self, line: "_Line", options: list[Option]) -> Rank:
        return line.rank(line.distinct(options), self.later.rows)

    def _line(self, queue: int) -> "_Line":
        known = self._lines.get(queue)
        if known is None:
            path = self.tree.paths[queue][-2::-1]
            promised = [_promised(row) for row in self.tree.guaranteed[path].tolist()]
            known = self._lines[queue] = _Line.of(path.tolist(), promised)
        return known

    # Booking

    def book(self, row: int, members: Iterable[Member], *, is_now: bool, sign: int = 1) -> None:
        """Charge a job's queue with the places it is given; with sign -1 undo that."""
        queue, total = int(self.snapshot.jobs.queue[row]), self.needs.of_members(members)
        if sign < 0:
            total = [-amount for amount in total]
        if is_now:
            self.now.add(queue, total)
        if not is_now or self.later is not self.now:
            self.later.add(queue, total)

    def may_have(self, row: int, members: Iterable[Member]) -> bool:
        """Return whether these places, not booked yet, are within all limits later."""
        queue = int(self.snapshot.jobs.queue[row])
        return self.later.over(queue, self.needs.of_members(members)) is None

    def release(self, row: int, tasks: Sequence[Task], *, sign: int = -1) -> None:
        """Book tasks of a job as gone from the later ledger; with sign 1 undo that."""
        self.open_later()
        is_all = len(tasks) == len(self.snapshot.jobs.tasks[row])
        held = self.needs.held(row) if is_all else self.needs.of_tasks(row, tasks)
        self.later.add(int(self.snapshot.jobs.queue[row]), [sign * amount for amount in held])

    def keep_for(self, row: int, wants: tuple[Want, ...], excess: Excess) -> bool:
        """Charge a job that waits with the least it needs, up to where that goes too far.

        So nobody who is served after it takes what is left there. Not for one that would go
        too far if nobody else ran: return whether it was charged.
        """
        queue = int(self.snapshot.jobs.queue[row])
        need, _ = self.needs.total(least_of(wants))
        if self._unused is None:
            nothing = np.zeros_like(self.snapshot.queue_used)
            self._unused = Ledger(self.tree, nothing, ceilings(self.tree, self.capacity))
        if self._unused.over(queue, need) is not None:
            return False
        self.now.add(queue, need, up_to=excess.row)
        return True

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
        need, is_open = self.needs.of_wants(wants)
        queue = int(self.snapshot.jobs.queue[row])
        is_bound = is_open and self._bounds_types[queue]
        if is_bound and self._excess(queue, self.needs.at_most(wants), is_now=is_now) is None:
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
        need, is_open = self.needs.total(wants)
        excess = self._excess(queue, need, is_now=is_now)
        if excess is not None or not is_open:
            return wants if excess is None else excess
        open_milli = sum(
            want.shape.total_gpu_milli * (len(want.must) + len(want.may))
            for want in wants
            if len(self.needs.type_columns(want.shape)) > 1
        )
        full: dict[int, Excess] = {}
        for column in {c for want in wants for c in self.needs.type_columns(want.shape)}:
            with_all = need.copy()
            with_all[column] += open_milli
            found = self._excess(queue, with_all, is_now=is_now)
            if found is not None:
                full[column] = found
        admitted = []
        for want in wants:
            columns = self.needs.type_columns(want.shape)
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


def _with_may(wants: tuple[Want, ...], n_may: int) -> tuple[Want, ...]:
    """Return the wants with so many of the tasks that may be placed, the first ones."""
    kept = []
    for want in wants:
        may = want.may[:n_may]
        n_may -= len(may)
        kept.append(want if may == want.may else replace(want, may=may))
    return tuple(kept)
