"""What divisible jobs could give up, task by task: read once a cycle, for all who may ask.

Jobs are looked at when somebody may ask for what they have, and again once something of theirs
is taken. Everything between is arithmetic on columns: there are as many tasks as the cluster
has GPUs, and jobs may ask one after another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler.core.holdings import AMOUNTS, Holdings, asks_of
from scheduler.core.model import MILLI, JobKind, Shape, Task, TaskPhase
from scheduler.core.node_columns import BoolColumn, FloatColumn, IntColumn, Rows
from scheduler.core.preemption import RESTART_S, width_milli
from scheduler.core.snapshot import Snapshot

_NO_ROLES: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class _Units:
    """U tasks as columns."""

    row: Rows  # [U] of the job
    node: Rows  # [U]
    amount: IntColumn  # [U, 3]
    alone_gpu_s: FloatColumn  # [U] what it costs if the job's work is not lost
    by_age: Rows  # [U] the units, least urgent and youngest jobs first


@dataclass(slots=True)
class Spares:
    """The divisible jobs of a cycle; columns are by job row, and hold for those looked at."""

    snapshot: Snapshot
    n_surplus: IntColumn = field(init=False)  # tasks beyond what it wants
    n_spare: IntColumn = field(init=False)  # tasks beyond what it needs
    cost_gpu_s: FloatColumn = field(init=False)  # of shrinking it
    cooldown_s: FloatColumn = field(init=False)
    tasks: list[Task] = field(default_factory=list)  # unit by unit
    row_of: list[int] = field(default_factory=list)
    _node_of: list[int] = field(default_factory=list)
    _shape_of: list[int] = field(default_factory=list)  # number in `_shapes`
    _shapes: dict[Shape, int] = field(default_factory=dict)
    _gangs: dict[int, tuple[dict[str, int], dict[str, float]]] = field(default_factory=dict)
    _units_of: dict[int, range] = field(default_factory=dict)  # by job row
    _surplus: dict[int, dict[str, int]] = field(default_factory=dict)  # by job row and role
    _spare: dict[int, dict[str, int]] = field(default_factory=dict)
    _units: _Units | None = None
    # Of units, as long as the lists above are:
    _is_surplus: BoolColumn = field(init=False)  # of a role of which there is a surplus
    _is_spare: BoolColumn = field(init=False)

    def __post_init__(self) -> None:
        n_rows = len(self.snapshot.jobs.jobs)
        self.n_surplus, self.n_spare = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64)
        self.cost_gpu_s, self.cooldown_s = np.zeros(n_rows), np.zeros(n_rows)
        self._is_surplus = self._is_spare = np.zeros(0, np.bool_)

    def look_at(self, rows: Rows) -> None:
        """Read how jobs stand, those that are not known."""
        new = [row for row in rows.tolist() if row not in self._units_of]
        if not new:
            return
        unsaved_s = self.snapshot.unsaved_s(np.array(new, np.intp)).tolist()
        is_surplus: list[bool] = []
        is_spare: list[bool] = []
        for row, lost_s in zip(new, unsaved_s, strict=True):
            roles = self._add(row, lost_s)
            surplus, spare = self._surplus[row], self._spare[row]
            is_surplus += [role in surplus for role in roles]
            is_spare += [role in spare for role in roles]
        self._is_surplus = np.append(self._is_surplus, np.array(is_surplus, np.bool_))
        self._is_spare = np.append(self._is_spare, np.array(is_spare, np.bool_))
        self._units = None

    def note_cut(self, row: int, gone: Sequence[Task]) -> None:
        """Read again how a job stands that has given these tasks up: the next cost nothing."""
        is_gone = {task.id for task in gone}
        units = [u for u in self._units_of[row] if self.tasks[u].id not in is_gone]
        self._count(row, [self.tasks[unit].id.role for unit in units])
        self.cost_gpu_s[row] = 0.0
        mine = slice(self._units_of[row].start, self._units_of[row].stop)
        self._is_surplus[mine] = self._is_spare[mine] = False
        for unit in units:
            role = self.tasks[unit].id.role
            self._is_surplus[unit] = role in self._surplus[row]
            self._is_spare[unit] = role in self._spare[row]

    def surplus_of(self, row: int) -> Mapping[str, int]:
        """Return how many tasks of each role a job has beyond what it wants: at least one."""
        return self._surplus.get(row, _NO_ROLES)

    def spare_of(self, row: int) -> Mapping[str, int]:
        """Return how many tasks of each role a job has beyond what it needs: at least one."""
        return self._spare.get(row, _NO_ROLES)

    def shapes(self, row: int) -> dict[str, Shape]:
        """Return what the tasks of each role take."""
        gang = self.snapshot.gangs[self.snapshot.jobs.gang[row]]
        return {role.name: role.shape for role in gang}

    def units(self, *, surplus: BoolColumn, spare: BoolColumn) -> Rows:
        """Return the tasks that could go if jobs (by row) give their surplus, or all spare."""
        of = self._columns().row
        may = np.where(spare[of], self._is_spare, surplus[of] & self._is_surplus)
        found = np.flatnonzero(may)
        return found[np.argsort(of[found], kind="stable")]

    def holdings(self, *, surplus: BoolColumn, spare: BoolColumn) -> Holdings:
        """Return what those tasks hold, cheapest first; rows are units."""
        columns = self._columns()
        row = columns.row[columns.by_age]
        may_spare = spare[row]
        may = np.where(
            may_spare,
            self._is_spare[columns.by_age],
            surplus[row] & self._is_surplus[columns.by_age],
        )
        units, row = columns.by_age[may], row[may]
        whole = self.cost_gpu_s[row]
        whole /= np.where(may_spare[may], self.n_spare[row], self.n_surplus[row])
        cost = np.where(whole > 0, whole, columns.alone_gpu_s[units])
        order = np.argsort(cost, kind="stable")
        order = order[np.argsort(columns.node[units[order]], kind="stable")]
        units = units[order]
        return Holdings(
            row=units,
            node=columns.node[units],
            amount=columns.amount[units],
            cost=cost[order],
            share=np.ones(len(units)),
        )

    def _add(self, row: int, unsaved_s: float) -> list[str]:
        """Add the tasks of a job, who goes first, first; return the role of each."""
        spec, tasks = self.snapshot.job_at(row).spec, self.snapshot.jobs.tasks[row]
        staying = [task for task in tasks if task.phase is not TaskPhase.STOPPING]
        staying.reverse()
        roles = [task.id.role for task in staying]
        number, width = self._asks(int(self.snapshot.jobs.gang[row]))
        node_of = self.snapshot.nodes.row_of
        self._units_of[row] = range(len(self.tasks), len(self.tasks) + len(staying))
        self.tasks += staying
        self.row_of += [row] * len(staying)
        self._node_of += [node_of[task.node] for task in staying]
        self._shape_of += [number[role] for role in roles]
        self._count(row, roles)
        self.cooldown_s[row] = spec.resize_cooldown_s
        if spec.kind is not JobKind.INFERENCE:
            total = sum([width[task.id.role] for task in tasks])
            self.cost_gpu_s[row] = total * (unsaved_s + RESTART_S)
        return roles

    def _asks(self, gang: int) -> tuple[dict[str, int], dict[str, float]]:
        """Return the number of the shape of each role, and its width in GPUs."""
        if gang not in self._gangs:
            shapes = {role.name: role.shape for role in self.snapshot.gangs[gang]}
            for shape in shapes.values():
                self._shapes.setdefault(shape, len(self._shapes))
            self._gangs[gang] = (
                {role: self._shapes[shape] for role, shape in shapes.items()},
                {role: width_milli(shape) / MILLI for role, shape in shapes.items()},
            )
        return self._gangs[gang]

    def _count(self, row: int, staying: list[str]) -> None:
        """Count what a job may give, by the roles of its tasks."""
        spec = self.snapshot.job_at(row).spec
        if spec.kind is not JobKind.INFERENCE and not self._is_whole(row):
            staying = []
        has = {role.name: staying.count(role.name) for role in spec.roles}
        surplus = {role.name: has[role.name] - role.count for role in spec.roles}
        spare = {role.name: has[role.name] - role.min_count for role in spec.roles}
        self._surplus[row] = {role: n for role, n in surplus.items() if n > 0}
        self._spare[row] = {role: n for role, n in spare.items() if n > 0}
        self.n_surplus[row] = sum(self._surplus[row].values())
        self.n_spare[row] = sum(self._spare[row].values())

    def _is_whole(self, row: int) -> bool:
        """Return whether no member of a gang has ended: one that is ending is left alone."""
        tasks = self.snapshot.jobs.tasks[row]
        return bool(tasks) and tasks[0].world_size == len(tasks)

    def _columns(self) -> _Units:
        if self._units is None:
            jobs, shapes = self.snapshot.jobs, list(self._shapes)
            row, shape = np.array(self.row_of, np.intp), np.array(self._shape_of, np.intp)
            amounts = np.array([asks_of(s) for s in shapes], np.int64).reshape(-1, AMOUNTS)
            alone = np.array([width_milli(s) for s in shapes], np.float64) / MILLI * RESTART_S
            self._units = _Units(
                row=row,
                node=np.array(self._node_of, np.intp),
                amount=amounts[shape],
                alone_gpu_s=alone[shape],
                by_age=np.lexsort((-jobs.sequence[row], jobs.priority[row])),
            )
        return self._units
