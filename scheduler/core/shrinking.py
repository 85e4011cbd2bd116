"""Making room by shrinking: elastic jobs and services give tasks up before anybody is stopped.

What a job holds beyond the number of tasks it wants, it grew into while nobody else could use
it: any waiting job may have that back, once the cool-down is over and if that gains more GPU
time than the restart of a gang costs. Who may stop the job may shrink it instead, down to its
min, at any time. A service is never taken below its min, so it is never stopped for others.

Tasks are let go in the order in which room is cheapest (`holdings.exodus`); then whatever turns
out not to be needed is spared: jobs as a whole, dearest first, then task by task.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from scheduler.core import capacity
from scheduler.core.draft import Draft
from scheduler.core.holdings import AMOUNTS, Holdings, exodus
from scheduler.core.model import MILLI, JobKind, Shape, Task, TaskPhase
from scheduler.core.placement import Shortfall, Want, could_place, hold_later
from scheduler.core.ports import PreemptionRule
from scheduler.core.preemption import CPU_WEIGHT, RESTART_S
from scheduler.core.quotas import Claim, Excess, Quotas, least_of
from scheduler.core.reclaim import MOST_TRIES, Room, of_type
from scheduler.core.snapshot import BoolColumn, FloatColumn, IntColumn, Rows

Spare = dict[int, Counter[str]]
"""By job row, how many tasks of each role may go: at least one."""

_NOTHING = np.empty((0, AMOUNTS), np.int64)


@dataclass(slots=True)
class Cut:
    """Tasks that a running job gives up in this cycle."""

    tasks: list[Task] = field(default_factory=list)
    is_surplus: bool = True  # nothing of what the job wants


@dataclass(frozen=True, slots=True)
class _Holder:
    """A running job as it stands in this cycle, and what each of its T tasks holds."""

    tasks: list[Task]  # who goes first, first
    node: Rows  # [T]
    amount: IntColumn  # [T, 3]
    width: FloatColumn  # [T] in GPUs
    n_roles: int
    surplus: Counter[str]  # tasks beyond what it wants, by role
    spare: Counter[str]  # tasks beyond what it needs
    cost_gpu_s: float  # of shrinking it

    def only(self, roles: Container[str]) -> "_Holder":
        """Return it with the tasks of these roles alone."""
        going = [i for i, task in enumerate(self.tasks) if task.id.role in roles]
        return replace(
            self,
            tasks=[self.tasks[i] for i in going],
            node=self.node[going],
            amount=self.amount[going],
            width=self.width[going],
        )


@dataclass(frozen=True, slots=True)
class _Right:
    """What a waiting job may ask others to give up, for one way of placing it."""

    wants: tuple[Want, ...]
    surplus: Spare
    spare: Spare  # with the surplus
    claim: Claim | None = None  # of a queue; None: the policy alone decides
    by_policy: BoolColumn | None = None


class Shrinking:
    """Who gives tasks up in one cycle."""

    def __init__(
        self,
        draft: Draft,
        quotas: Quotas | None,
        rule: PreemptionRule,
        *,
        services_only: bool = False,
    ) -> None:
        self.draft = draft
        self._quotas = quotas
        self._rule = rule
        jobs, running = draft.snapshot.jobs, draft.snapshot.running_rows()
        rows: Rows = running[jobs.is_divisible[running]]
        if services_only:
            kinds = [draft.snapshot.job_at(row).spec.kind for row in rows.tolist()]
            rows = rows[np.array([kind is JobKind.INFERENCE for kind in kinds], np.bool_)]
        self._rows = rows
        self.cuts: dict[int, Cut] = {}  # by job row
        self._holders: dict[int, _Holder] = {}  # by job row, those looked at so far

    @property
    def is_idle(self) -> bool:
        """Whether nobody could give anything up."""
        return not len(self._rows)

    def make_room(self, row: int, wants: tuple[Want, ...]) -> dict[int, Cut]:
        """Have the job of a row fit later by shrinking alone, and hold its places.

        Returns what each job gives up for it, booked as gone; nothing if that does not suffice.
        """
        if self.is_idle:
            return {}
        for right in self._rights(row, wants):
            search = _Search(self, row, right)
            for _ in range(MOST_TRIES):
                if not search.run():
                    break
                if not search.leave_who_comes_back():
                    return self._settle(row, right.wants, search.taken)
                search.undo()
        return {}

    def make_room_besides(
        self,
        row: int,
        wants: tuple[Want, ...],
        evict: Callable[[Sequence[int]], Room | None],
    ) -> dict[int, Cut] | None:
        """Shrink whom the job may shrink, and let `evict` find who must stop besides.

        `evict` is told which services give up what they want, and holds the places. Returns
        what of the shrinking it takes; None if in vain.
        """
        if self.is_idle or self.draft.promises:
            return None
        rights = list(self._rights(row, wants))
        if not rights:
            return None
        search = _Search(self, row, rights[-1])
        search.take_all()
        search.leave_who_comes_back()
        shrunk = [other for other in search.taken if other not in self.cuts]
        self.draft.is_evicted[shrunk] = True  # others are looked for
        room = evict(search.missed()) if search.taken else None
        if room is None:
            search.undo()
            self.draft.is_evicted[shrunk] = False
            return None
        search.spare_what_fits(room)
        self.draft.is_evicted[shrunk] = False
        return self._note(search.taken)

    # Whom a job may shrink

    def _rights(self, row: int, wants: tuple[Want, ...]) -> Iterator[_Right]:
        """Yield what the job may ask for, the least first."""
        surplus = self._surplus(row, wants)
        if surplus:
            yield _Right(wants, surplus, surplus)
        evictable = self._evictable(row)
        if self._quotas is None:
            allowed = self._rule(self.draft.snapshot, row, evictable)
            if len(allowed):
                spare = surplus | self._spare(allowed, is_surplus=False)
                yield _Right(wants, surplus, spare)
            return
        by_policy = np.zeros(len(self.draft.is_evicted), np.bool_)
        by_policy[self._rule(self.draft.snapshot, row, evictable)] = True
        for need, gpu_type in self._quotas.options(row):
            claim = self._quotas.claim(row, need)
            if gpu_type is not None and not claim.is_entitled:
                continue
            allowed = claim.allowed(evictable[by_policy[evictable]], evictable)
            if len(allowed):
                spare = surplus | self._spare(allowed, is_surplus=False)
                asked = wants if gpu_type is None else of_type(wants, gpu_type)
                yield _Right(asked, surplus, spare, claim, by_policy)

    def _surplus(self, row: int, wants: tuple[Want, ...]) -> Spare:
        """Return what jobs hold beyond what they want and can give back with a gain."""
        snapshot, jobs, rows = self.draft.snapshot, self.draft.snapshot.jobs, self._able(row)
        has_cooled = jobs.is_elastic[rows] & (jobs.may_resize_at_s[rows] <= snapshot.now_s)
        is_cut = np.array([other in self.cuts for other in rows.tolist()], np.bool_)
        spare = self._spare(rows[has_cooled | is_cut], is_surplus=True)
        width = sum(_width(w.shape) * len(w.must) for w in least_of(wants))
        return {
            other: roles
            for other, roles in spare.items()
            if self.cost_gpu_s(other)
            < width * snapshot.job_at(other).spec.resize_cooldown_s + 1e-9
        }

    def _evictable(self, row: int) -> Rows:
        """Return who may be shrunk by somebody who may stop them."""
        snapshot, rows = self.draft.snapshot, self._able(row)
        may = np.array([snapshot.job_at(r).spec.preemptible for r in rows.tolist()], np.bool_)
        jobs = snapshot.jobs
        ran_s = snapshot.now_s - jobs.started_at_s[rows]
        evictable: Rows = rows[may & (ran_s >= jobs.min_runtime_s[rows])]
        return evictable

    def _able(self, row: int) -> Rows:
        """Return divisible jobs of which nothing is going yet, but for what is cut here."""
        jobs, draft, rows = self.draft.snapshot.jobs, self.draft, self._rows
        is_able = (jobs.n_stopping[rows] == 0) & ~draft.is_evicted[rows]
        is_able |= np.array([other in self.cuts for other in rows.tolist()], np.bool_)
        able: Rows = rows[is_able & (rows != row) & draft.is_clear()[rows]]
        return able

    def _spare(self, rows: Rows, *, is_surplus: bool) -> Spare:
        """Return how many tasks may go: beyond what is wanted, or beyond what is needed."""
        spare: Spare = {}
        for row in rows.tolist():
            holder = self.holder(row)
            if more := holder.surplus if is_surplus else holder.spare:
                spare[row] = more
        return spare

    def holder(self, row: int) -> _Holder:
        """Return how a job stands that may give tasks up."""
        if row not in self._holders:
            self._holders[row] = self._look_at(row)
        return self._holders[row]

    def _look_at(self, row: int) -> _Holder:
        snapshot = self.draft.snapshot
        spec, shapes = snapshot.job_at(row).spec, self.shapes(row)
        tasks = self.staying(row)[::-1]
        n_of = Counter(task.id.role for task in tasks)
        may_give = spec.kind is JobKind.INFERENCE or self._is_whole(row)
        surplus = Counter({role.name: n_of[role.name] - role.count for role in spec.roles})
        spare = Counter({role.name: n_of[role.name] - role.min_count for role in spec.roles})
        asks = {
            role: (shape.cpu_milli, shape.memory_mib, shape.total_gpu_milli)
            for role, shape in shapes.items()
        }
        width = {role: _width(shape) for role, shape in shapes.items()}
        row_of = snapshot.nodes.row_of
        amount = np.array([asks[task.id.role] for task in tasks], np.int64)
        return _Holder(
            tasks=tasks,
            node=np.array([row_of[task.node] for task in tasks], np.intp),
            amount=amount.reshape(-1, AMOUNTS),
            width=np.array([width[task.id.role] for task in tasks], np.float64),
            n_roles=len(spec.roles),
            surplus=+surplus if may_give else Counter(),
            spare=+spare if may_give else Counter(),
            cost_gpu_s=self._cost_gpu_s(row, width),
        )

    def _is_whole(self, row: int) -> bool:
        """Return whether no member of a gang has ended: one that is ending is left alone."""
        tasks = self.draft.snapshot.jobs.tasks[row]
        return bool(tasks) and tasks[0].world_size == len(tasks)

    def comes_back(self, row: int, other: int) -> bool:
        """Return whether a service would take what it gave up again, before the job."""
        quotas = self._quotas
        return quotas is not None and bool(quotas.back_before(row, [other], is_replica=True))

    def is_owed(self, row: int, room: Room, missed: Sequence[int]) -> bool:
        """Return whether a job may still have the room that was made, as the ledger stands.

        Within all limits; by a claim on every queue that gives; before all who give, services
        in `missed` with them.
        """
        quotas = self._quotas
        if quotas is None or room.need is None:
            return True
        victims = [victim.row for victim in room.victims]
        quotas.book(row, room.members, is_now=False, sign=-1)
        claim = quotas.claim(row, room.need)
        is_owed = (
            quotas.may_have(row, room.members)
            and all(claim.reaches(other) for other in (*victims, *missed))
            and not quotas.back_before(row, victims)
            and not quotas.back_before(row, missed, is_replica=True)
        )
        quotas.book(row, room.members, is_now=False)
        return is_owed

    # What it costs

    def staying(self, row: int) -> list[Task]:
        """Return the tasks that a job has left."""
        gone = self.cuts[row].tasks if row in self.cuts else []
        return [
            task
            for task in self.draft.snapshot.jobs.tasks[row]
            if task.phase is not TaskPhase.STOPPING and task not in gone
        ]

    def cost_gpu_s(self, row: int) -> float:
        """Return what shrinking a job costs: a gang its restart and the work not saved."""
        return self.holder(row).cost_gpu_s

    def _cost_gpu_s(self, row: int, width_of: Mapping[str, float]) -> float:
        snapshot = self.draft.snapshot
        if row in self.cuts or snapshot.job_at(row).spec.kind is JobKind.INFERENCE:
            return 0.0
        width = sum(width_of[task.id.role] for task in snapshot.jobs.tasks[row])
        return width * (float(snapshot.unsaved_s(np.array([row], np.intp))[0]) + RESTART_S)

    def shapes(self, row: int) -> dict[str, Shape]:
        """Return what the tasks of each role take."""
        gang = self.draft.snapshot.gangs[self.draft.snapshot.jobs.gang[row]]
        return {role.name: role.shape for role in gang}

    # Books

    def release(self, row: int, tasks: Sequence[Task], *, sign: int = -1) -> None:
        """Book tasks as gone from the later books and ledger; with sign 1 undo that."""
        space = self.draft.open_later()
        move = self.draft.release if sign < 0 else self.draft.restore
        move(space, row, tasks)
        if self._quotas is not None:
            self._quotas.release(row, tasks, sign=sign)

    def fits(self, row: int, wants: tuple[Want, ...]) -> bool:
        """Return whether what the job needs at least would fit later."""
        needs = least_of(wants)
        if self._quotas is not None:
            admitted = self._quotas.admit(row, needs, is_now=False)
            if isinstance(admitted, Excess):
                return False
            needs = admitted
        return could_place(self.draft.open_later(), needs)

    def can_restore(self, row: int, task: Task) -> bool:
        """Return whether nobody holds the place of a task later."""
        nodes = self.draft.open_later().nodes
        shape = self.shapes(row)[task.id.role]
        return capacity.can_take(nodes, nodes.row_of[task.node], shape, task.devices)

    def _settle(
        self, row: int, wants: tuple[Want, ...], taken: dict[int, list[Task]]
    ) -> dict[int, Cut]:
        self.draft.note_ends(taken.items())
        admitted: tuple[Want, ...] | Excess = wants
        if self._quotas is not None:
            admitted = self._quotas.admit(row, wants, is_now=False)
        assert not isinstance(admitted, Excess)
        members = hold_later(self.draft, row, admitted)
        assert not isinstance(members, Shortfall)
        if self._quotas is not None:
            self._quotas.book(row, members, is_now=False)
        return self._note(taken)

    def _note(self, taken: dict[int, list[Task]]) -> dict[int, Cut]:
        """Remember who gives what up; return it."""
        found = {}
        for row, tasks in taken.items():
            cut = self.cuts.setdefault(row, Cut())
            cut.tasks += tasks
            roles = self.draft.snapshot.job_at(row).spec.roles
            wanted = Counter({role.name: role.count for role in roles})
            left = Counter(task.id.role for task in self.staying(row))
            is_surplus = not wanted - left
            cut.is_surplus &= is_surplus
            self.draft.is_evicted[row] = True
            self._holders.pop(row, None)
            found[row] = Cut(tasks, is_surplus)
        return found


class _Search:
    """The search for one job; books hypotheses on the later books and in the later ledger."""

    def __init__(self, shrinking: Shrinking, row: int, right: _Right) -> None:
        self._shrinking = shrinking
        self._row = row
        self._right = right
        self._left: Spare = {other: roles.copy() for other, roles in right.spare.items()}
        self.taken: dict[int, list[Task]] = {}
        self._owners, self._tasks, self._held = self._units()

    def _units(self) -> tuple[list[int], list[Task], Holdings]:
        """Return every task that could go, its job row, and what it holds, cheapest first."""
        jobs = self._shrinking.draft.snapshot.jobs
        holders: list[_Holder] = []
        wholes: list[float] = []
        rows = sorted(self._left)
        for row in rows:
            holder, roles = self._shrinking.holder(row), self._left[row]
            holders.append(holder if len(roles) == holder.n_roles else holder.only(roles))
            wholes.append(holder.cost_gpu_s / roles.total())
        tasks = list(chain.from_iterable(holder.tasks for holder in holders))
        n_units, n_of = len(tasks), [len(holder.tasks) for holder in holders]
        held = Holdings(
            row=np.arange(n_units),
            node=np.concatenate([np.empty(0, np.intp), *(h.node for h in holders)]),
            amount=np.concatenate([_NOTHING, *(h.amount for h in holders)]),
            cost=np.zeros(n_units),
            share=np.ones(n_units),
        )
        of = np.repeat(np.array(rows, np.intp), n_of)
        whole = np.repeat(np.array(wholes, np.float64), n_of)
        alone = np.concatenate([np.empty(0), *(h.width for h in holders)]) * RESTART_S
        cost = np.where(whole > 0, whole, alone)
        order = np.lexsort((np.arange(n_units), -jobs.sequence[of], jobs.priority[of], cost))
        rank = np.empty(n_units, np.intp)
        rank[order] = np.arange(n_units)
        return of.tolist(), tasks, held.ordered(rank, cost)

    def run(self) -> bool:
        """Take what the job needs to fit; return whether it does, else nothing is taken."""
        space = self._shrinking.draft.open_later()
        orders = [
            exodus(self._held, space, want.shape, len(want.must))
            for want in least_of(self._right.wants)
        ]
        found = [order for order in orders if order is not None]
        if len(found) < len(orders):
            return False
        likely = dict.fromkeys(unit for order in found for unit in order.rows[: order.n_likely])
        rest = dict.fromkeys(unit for order in found for unit in order.rows)
        for unit in likely:
            self._take(unit)
        if not self._fits():
            for unit in rest:
                if unit not in likely and self._take(unit) and self._fits():
                    break
            else:
                self.undo()
                return False
        self._reprieve()
        return bool(self.taken)

    def take_all(self) -> None:
        """Take everything that may go."""
        for unit in range(len(self._tasks)):
            self._take(unit)

    def leave_who_comes_back(self) -> bool:
        """Spare services that would have it all again before the job; return whether any."""
        first = [row for row in self.missed() if self._shrinking.comes_back(self._row, row)]
        for row in first:
            self._give(row, self.taken[row])
            self._left[row] = self._right.surplus.get(row, Counter()).copy()
        return bool(first)

    def missed(self) -> list[int]:
        """Return the services that give up replicas which they want."""
        found = []
        for row, tasks in self.taken.items():
            spec = self._shrinking.draft.snapshot.job_at(row).spec
            surplus = self._right.surplus.get(row, Counter())
            is_missed = Counter(task.id.role for task in tasks) - surplus
            if is_missed and spec.kind is JobKind.INFERENCE:
                found.append(row)
        return found

    def undo(self) -> None:
        """Give back all that was taken."""
        for row in list(self.taken):
            self._give(row, self.taken[row])

    def spare_what_fits(self, room: Room) -> None:
        """Give back what nobody holds by now and the job is owed its places without."""
        for row in self._dearest_first():
            for task in reversed(self.taken[row].copy()):
                if not self._shrinking.can_restore(row, task):
                    continue
                self._give(row, [task])
                if not self._shrinking.is_owed(self._row, room, self.missed()):
                    self._take_again(row, task)

    def _fits(self) -> bool:
        return self._shrinking.fits(self._row, self._right.wants)

    def _take(self, unit: int) -> bool:
        row, task = self._owners[unit], self._tasks[unit]
        if not self._left[row][task.id.role] or not self._may_give(row, task):
            return False
        self._take_again(row, task)
        return True

    def _take_again(self, row: int, task: Task) -> None:
        self._left[row][task.id.role] -= 1
        self._shrinking.release(row, [task])
        self.taken.setdefault(row, []).append(task)

    def _may_give(self, row: int, task: Task) -> bool:
        claim, by_policy = self._right.claim, self._right.by_policy
        if claim is None or by_policy is None:
            return True
        surplus = self._right.surplus.get(row, Counter())[task.id.role]
        is_surplus = surplus > sum(t.id.role == task.id.role for t in self.taken.get(row, ()))
        return is_surplus or claim.may_give(row, [task], by_policy)

    def _give(self, row: int, tasks: list[Task]) -> None:
        self._shrinking.release(row, tasks, sign=1)
        self._left[row].update(task.id.role for task in tasks)
        self.taken[row] = [task for task in self.taken[row] if task not in tasks]
        if not self.taken[row]:
            del self.taken[row]

    def _reprieve(self) -> None:
        """Give back what is not needed: of whole jobs, dearest first, then task by task."""
        for row in self._dearest_first():
            tasks = self.taken[row]
            self._shrinking.release(row, tasks, sign=1)
            is_needed = not self._fits()
            self._shrinking.release(row, tasks)
            if not is_needed:
                self._give(row, tasks)
        for row in self._dearest_first():
            for task in reversed(self.taken[row].copy()):
                self._shrinking.release(row, [task], sign=1)
                is_needed = not self._fits()
                self._shrinking.release(row, [task])
                if not is_needed:
                    self._give(row, [task])

    def _dearest_first(self) -> list[int]:
        sequence = self._shrinking.draft.snapshot.jobs.sequence
        cost = self._shrinking.cost_gpu_s
        return sorted(self.taken, key=lambda row: (-cost(row), int(sequence[row])))


def _width(shape: Shape) -> float:
    """Return what a task takes, in GPUs."""
    return (shape.total_gpu_milli + CPU_WEIGHT * shape.cpu_milli) / MILLI
