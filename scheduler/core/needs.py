"""What jobs ask for and hold, in the columns of the tree of queues.

A waiting job is sized up before it has a place, so the type of a GPU may be open; a task that
runs takes the type of its node. What is allowed of it is left to `quotas`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from scheduler.core.job_columns import PHASE_CODE, Gang
from scheduler.core.model import JobPhase, Shape, Task
from scheduler.core.node_columns import BoolColumn
from scheduler.core.placement import Member, Want, wants_of
from scheduler.core.queue_tree import CPU, FIRST_TYPE, GPU, MEMORY
from scheduler.core.snapshot import Snapshot

PENDING = PHASE_CODE[JobPhase.PENDING]

Amounts = list[int]
"""By resource, in the columns of the tree."""

Option = tuple[Amounts, str | None]
"""What a job needs at least, and the type that its GPUs then have; None: that stays open."""


class Needs:
    """What the jobs of one snapshot ask for and hold, remembered for jobs alike."""

    def __init__(self, snapshot: Snapshot, is_there: BoolColumn) -> None:
        """Take of which columns, [R], the cluster has anything."""
        self._snapshot = snapshot
        tree = self._tree = snapshot.tree
        self._is_there = is_there
        self._n_columns = FIRST_TYPE + len(tree.gpu_types)
        self._column_of = {t: FIRST_TYPE + i for i, t in enumerate(tree.gpu_types)}
        self._columns: dict[Shape, tuple[int, ...]] = {}
        # By the identity of wants, which alike gangs share; they are kept, so it stays theirs.
        self._needs: dict[int, tuple[tuple[Want, ...], tuple[Amounts, bool]]] = {}
        self._options: dict[int, list[Option]] = {}
        self._most: dict[int, tuple[tuple[Want, ...], Amounts]] = {}
        self._held: dict[int, Amounts] = {}

    def type_columns(self, shape: Shape) -> tuple[int, ...]:
        """Return the columns of the GPU types on which such a task could run."""
        known = self._columns.get(shape)
        if known is None:
            types = shape.gpu_types or self._tree.gpu_types
            columns = [self._column_of[t] for t in types if t in self._column_of]
            there = [column for column in columns if self._is_there[column]]
            if not there and shape.gpu_types:
                there = columns
            known = tuple(there) if shape.total_gpu_milli else ()
            self._columns[shape] = known
        return known

    def total(self, wants: Sequence[Want]) -> tuple[Amounts, bool]:
        """Return what all tasks take together; whether the type of some GPU is open."""
        total = [0] * self._n_columns
        is_open = False
        for want in wants:
            columns = self.type_columns(want.shape)
            is_open |= len(columns) > 1
            column = columns[0] if len(columns) == 1 else None
            n_tasks = len(want.must) + len(want.may)
            _add(total, want.shape, type_column=column, n_tasks=n_tasks)
        return total, is_open

    def options(self, row: int) -> list[Option]:
        """Return what a waiting job needs at least: one amount, or one per GPU type it may use.

        Which of several types a gang gets is open, so each is an option for all of it.
        """
        jobs = self._snapshot.jobs
        if jobs.phase[row] != PENDING:
            return self.options_of(least_of(wants_of(self._snapshot, row)))
        gang = int(jobs.gang[row])
        known = self._options.get(gang)
        if known is None:
            least = least_of_gang(self._snapshot.gangs[gang])
            known = self._options[gang] = self.options_of(least)
        return known

    def options_of(self, least: tuple[Want, ...]) -> list[Option]:
        """Return the options of what must be placed."""
        total, is_open = self.total(least)
        options: list[Option] = [(total, None)]
        if is_open:
            open_wants = [w for w in least if len(self.type_columns(w.shape)) > 1]
            milli = sum(w.shape.total_gpu_milli * len(w.must) for w in open_wants)
            for column in self.type_columns(open_wants[0].shape):
                of_type = total.copy()
                of_type[column] += milli
                options.append((of_type, self._tree.gpu_types[column - FIRST_TYPE]))
        return options

    def of_wants(self, wants: tuple[Want, ...]) -> tuple[Amounts, bool]:
        """Return `total`, remembered for all who share these very wants."""
        known = self._needs.get(id(wants))
        if known is None:
            known = self._needs[id(wants)] = wants, self.total(wants)
        return known[1]

    def at_most(self, wants: tuple[Want, ...]) -> Amounts:
        """Return what all tasks take at most of each type, if GPUs may be of several."""
        known = self._most.get(id(wants))
        if known is None:
            most, _ = self.total(wants)
            for want in wants:
                columns = self.type_columns(want.shape)
                n_tasks = len(want.must) + len(want.may)
                for column in columns if len(columns) > 1 else ():
                    most[column] += want.shape.total_gpu_milli * n_tasks
            known = self._most[id(wants)] = wants, most
        return known[1]

    def held(self, row: int) -> Amounts:
        """Return what all live tasks of a job hold."""
        known = self._held.get(row)
        if known is None:
            known = self._held[row] = self.of_tasks(row, self._snapshot.jobs.tasks[row])
        return known

    def of_tasks(self, row: int, tasks: Iterable[Task]) -> Amounts:
        """Return what some tasks of a job hold."""
        snapshot = self._snapshot
        shapes = {r.name: r.shape for r in snapshot.gangs[snapshot.jobs.gang[row]]}
        nodes, total = snapshot.nodes, [0] * self._n_columns
        for task in tasks:
            gpu_type = nodes.nodes[nodes.row_of[task.node]].gpu_type
            column = self._column_of.get(gpu_type)
            _add(total, shapes[task.id.role], type_column=column)
        return total

    def of_members(self, members: Iterable[Member]) -> Amounts:
        """Return what tasks take in the places that they are given."""
        nodes, total = self._snapshot.nodes.nodes, [0] * self._n_columns
        for member in members:
            column = self._column_of.get(nodes[member.spot.row].gpu_type)
            _add(total, member.want.shape, type_column=column)
        return total


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
    if all(want.must and not want.may for want in wants):
        return wants
    if any(want.must for want in wants):
        return tuple(replace(want, may=()) for want in wants if want.must)
    return tuple(replace(want, must=want.may[:1], may=()) for want in wants if want.may)[:1]
