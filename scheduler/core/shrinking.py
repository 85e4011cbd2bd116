"""Making room by shrinking: elastic jobs and services give tasks up before anybody is stopped.

What a job holds beyond the number of tasks it wants, it grew into while nobody else could use
it: any waiting job may have that back, once the cool-down is over and if that gains more GPU
time than the restart of a gang costs. Who may stop the job may shrink it instead, down to its
min, at any time. A service is never taken below its min, so it is never stopped for others.

Tasks are let go in the order in which room is cheapest (`holdings.exodus`); then whatever turns
out not to be needed is spared: jobs as a whole, dearest first, then task by task.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler.core import capacity
from scheduler.core.claims import Claim
from scheduler.core.draft import Draft
from scheduler.core.holdings import exodus, in_turn
from scheduler.core.model import MILLI, JobKind, Task, TaskPhase
from scheduler.core.needs import least_of
from scheduler.core.node_columns import BoolColumn, Rows
from scheduler.core.placement import Shortfall, Want, could_place, hold_later
from scheduler.core.ports import PreemptionRule
from scheduler.core.preemption import width_milli
from scheduler.core.quotas import Excess, Quotas
from scheduler.core.reclaim import MOST_TRIES, Room, hold_admitted, of_type
from scheduler.core.spares import Spares

TIED_GPU_S = 1e-9
"""What a loss may exceed a gain by and still count as even: sums lose their last digits."""


@dataclass(slots=True)
class Cut:
    """Tasks that a running job gives up in this cycle."""

    tasks: list[Task] = field(default_factory=list)
    is_surplus: bool = True  # nothing of what the job wants


@dataclass(frozen=True, slots=True)
class _Right:
    """What a waiting job may ask others to give up, for one way of placing it."""

    wants: tuple[Want, ...]
    surplus: BoolColumn  # by job row: who gives what it has beyond what it wants
    spare: BoolColumn  # by job row: who gives what it has beyond what it needs
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
        rows: Rows = draft.snapshot.running_rows(draft.snapshot.jobs.is_divisible)
        if services_only:
            kinds = [draft.snapshot.job_at(row).spec.kind for row in rows.tolist()]
            rows = rows[np.array([kind is JobKind.INFERENCE for kind in kinds], np.bool_)]
        self._rows = rows
        self.spares = Spares(draft.snapshot)
        self.cuts: dict[int, Cut] = {}  # by job row
        self._is_cut = np.zeros(len(draft.is_evicted), np.bool_)

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
        if surplus.any():
            yield _Right(wants, surplus, np.zeros(len(surplus), np.bool_))
        evictable = self._evictable(row)
        if self._quotas is None:
            allowed = self._rule(self.draft.snapshot, row, evictable)
            if len(allowed):
                yield _Right(wants, surplus, self._spare(allowed))
            return
        by_policy = np.zeros(len(self.draft.is_evicted), np.bool_)
        by_policy[self._rule(self.draft.snapshot, row, evictable)] = True
        for need, gpu_type in self._quotas.needs.options(row):
            claim = Claim(self._quotas, row, need)
            if gpu_type is not None and not claim.is_entitled:
                continue
            allowed = claim.allowed(evictable[by_policy[evictable]], evictable)
            if len(allowed):
                asked = wants if gpu_type is None else of_type(wants, gpu_type)
                yield _Right(asked, surplus, self._spare(allowed), claim, by_policy)

    def _surplus(self, row: int, wants: tuple[Want, ...]) -> BoolColumn:
        """Return who holds more than it wants and can give it back with a gain."""
        jobs, spares, rows = self.draft.snapshot.jobs, self.spares, self._able(row)
        now_s = self.draft.snapshot.now_s
        has_cooled = jobs.is_elastic[rows] & (jobs.may_resize_at_s[rows] <= now_s)
        rows = rows[has_cooled | self._is_cut[rows]]
        spares.look_at(rows)
        width = sum(width_milli(w.shape) / MILLI * len(w.must) for w in least_of(wants))
        gains = spares.cost_gpu_s[rows] < width * spares.cooldown_s[rows] + TIED_GPU_S
        surplus = np.zeros(len(self._is_cut), np.bool_)
        surplus[rows[gains & (spares.n_surplus[rows] > 0)]] = True
        return surplus

    def _spare(self, rows: Rows) -> BoolColumn:
        """Return who of these rows holds more than it needs."""
        self.spares.look_at(rows)
        spare = np.zeros(len(self._is_cut), np.bool_)
        spare[rows[self.spares.n_spare[rows] > 0]] = True
        return spare

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
        is_able |= self._is_cut[rows]
        able: Rows = rows[is_able & (rows != row) & draft.is_clear()[rows]]
        return able

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
        claim = Claim(quotas, row, room.need)
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
        shape = self.spares.shapes(row)[task.id.role]
        return capacity.can_take(nodes, nodes.row_of[task.node], shape, task.devices)

    def _settle(
        self, row: int, wants: tuple[Want, ...], taken: dict[int, list[Task]]
    ) -> dict[int, Cut]:
        self.draft.note_ends(taken.items())
        if self._quotas is not None:
            hold_admitted(self.draft, self._quotas, row, wants)
        else:
            assert not isinstance(hold_later(self.draft, row, wants), Shortfall)
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
            self._is_cut[row] = True
            self.spares.note_cut(row, cut.tasks)
            found[row] = Cut(tasks, is_surplus)
        return found


class _Search:
    """The search for one job; books hypotheses on the later books and in the later ledger."""

    def __init__(self, shrinking: Shrinking, row: int, right: _Right) -> None:
        self._shrinking = shrinking
        self._spares = shrinking.spares
        self._row = row
        self._right = right
        self._left: dict[int, Counter[str]] = {}  # of who was asked, by role
        self.taken: dict[int, list[Task]] = {}

    def run(self) -> bool:
        """Take what the job needs to fit; return whether it does, else nothing is taken."""
        space, right = self._shrinking.draft.open_later(), self._right
        held = self._spares.holdings(surplus=right.surplus, spare=right.spare)
        orders = [
            exodus(held, space, want.shape, len(want.must)) for want in least_of(right.wants)
        ]
        found = [order for order in orders if order is not None]
        if len(found) < len(orders):
            return False
        likely, others = in_turn(found)
        for unit in likely:
            self._take(unit)
        if not self._fits():
            for unit in others:
                if self._take(unit) and self._fits():
                    break
            else:
                self.undo()
                return False
        self._reprieve()
        return bool(self.taken)

    def take_all(self) -> None:
        """Take everything that may go."""
        right = self._right
        for unit in self._spares.units(surplus=right.surplus, spare=right.spare).tolist():
            self._take(unit)

    def leave_who_comes_back(self) -> bool:
        """Spare services that would have it all again before the job; return whether any."""
        first = [row for row in self.missed() if self._shrinking.comes_back(self._row, row)]
        for row in first:
            self._give(row, self.taken[row])
            self._left[row] = Counter(self._surplus_of(row))
        return bool(first)

    def missed(self) -> list[int]:
        """Return the services that give up replicas which they want."""
        found = []
        for row, tasks in self.taken.items():
            spec = self._shrinking.draft.snapshot.job_at(row).spec
            surplus = Counter(self._surplus_of(row))
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
        row, task = self._spares.row_of[unit], self._spares.tasks[unit]
        if row not in self._left:
            is_spare = self._right.spare[row]
            self._left[row] = Counter(
                self._spares.spare_of(row) if is_spare else self._surplus_of(row)
            )
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
        surplus = self._surplus_of(row).get(task.id.role, 0)
        is_surplus = surplus > sum(t.id.role == task.id.role for t in self.taken.get(row, ()))
        return is_surplus or claim.may_give(row, [task], by_policy)

    def _surplus_of(self, row: int) -> Mapping[str, int]:
        """Return what the job may give of what it does not want, by role."""
        return self._spares.surplus_of(row) if self._right.surplus[row] else {}

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
        cost = self._spares.cost_gpu_s
        return sorted(self.taken, key=lambda row: (-float(cost[row]), int(sequence[row])))
