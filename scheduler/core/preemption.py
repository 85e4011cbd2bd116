"""Making room: whom to stop so that a waiting gang fits, at the least lost work.

Victims are tried in the order of `holdings.exodus` until the gang fits on the later books, then
reprieved: from the dearest on, every victim that turns out not to be needed is spared. For a
job of one task the cheapest set on one node is then searched for exactly, within a budget.
What does not help is never stopped.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scheduler.core.draft import Draft, Space
from scheduler.core.holdings import Exodus, Holdings, exodus, holdings_of, least_cost
from scheduler.core.model import MILLI, Shape, Task
from scheduler.core.placement import (
    Shortfall,
    Want,
    could_place,
    hold_later,
    place_gang,
    undo,
)
from scheduler.core.ports import PreemptionRule
from scheduler.core.snapshot import CPU, FloatColumn, Snapshot

RESTART_S = 30.0
"""What a restart costs a job besides the work it lost: start-up and loading a checkpoint."""

CPU_WEIGHT = 1 / 16
"""A CPU against a GPU when lost work is weighed (GPU nodes have about 16 CPUs a GPU)."""

SETS_PER_NODE = 256
"""Sets of victims tried on one node: all of eight, the tasks on a node of eight GPUs."""

SETS_PER_CYCLE = 8_192
"""Sets of victims tried in one cycle, about 0.3 s; then estimates have to do."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A job that might make room: all its tasks go, at this cost."""

    row: int
    tasks: tuple[Task, ...]
    cost_gpu_s: float
    sequence: int  # breaks ties; rows are of no meaning outside one snapshot


class Preemption:
    """Whom the jobs of one cycle may stop, cheapest first, and the search among them."""

    def __init__(self, draft: Draft, rule: PreemptionRule) -> None:
        self._draft = draft
        self._rule = rule
        self._n_sets_left = SETS_PER_CYCLE
        snapshot = draft.snapshot
        jobs, running = snapshot.jobs, snapshot.running_rows()
        is_game = jobs.is_preemptible[running] & (jobs.n_stopping[running] == 0)
        self._fair_game = running[is_game]
        self._held: Holdings | None = None  # made when somebody asks
        self._cost_gpu_s = np.zeros(0)

    def make_room(self, row: int, wants: tuple[Want, ...]) -> list[Victim]:
        """Stop the cheapest jobs that let the gang of `row` fit later, and hold its places.

        Returns the victims, booked as gone on the draft's later books, or none if no set helps.
        """
        draft = self._draft
        allowed = self._rule(draft.snapshot, row, self._fair_game)
        allowed = allowed[~draft.is_evicted[allowed]]
        if not len(allowed):
            return []
        is_allowed = np.zeros(len(draft.is_evicted), np.bool_)
        is_allowed[allowed] = True
        held = self._holdings().of(is_allowed)
        space = draft.open_later()
        best = self._fewest(space, wants, _order(held, space, wants))
        if best is None:
            return []
        alone = _only_task(wants)
        if alone is not None:
            best = self._cheapest_on_one_node(space, alone, held, best)
        for victim in best:
            draft.release(space, victim.row, victim.tasks)
        held_places = hold_later(draft, row, wants)
        assert not isinstance(held_places, Shortfall)
        return best

    def _holdings(self) -> Holdings:
        """Return what fair game holds: cheapest first, then lowest priority, then youngest."""
        if self._held is None:
            jobs = self._draft.snapshot.jobs
            is_game = np.zeros(len(jobs.jobs), np.bool_)
            is_game[self._fair_game] = True
            held = holdings_of(self._draft.snapshot).of(is_game)
            cost_gpu_s = _costs(self._draft.snapshot, held)
            order = np.lexsort((-jobs.sequence, jobs.priority, cost_gpu_s))
            rank = np.empty(len(order), np.intp)
            rank[order] = np.arange(len(order))
            self._held = held.ordered(rank, cost_gpu_s)
            self._cost_gpu_s = cost_gpu_s
        return self._held

    def _victim(self, row: int) -> Victim:
        jobs = self._draft.snapshot.jobs
        cost_gpu_s = float(self._cost_gpu_s[row])
        return Victim(row, jobs.tasks[row], cost_gpu_s, int(jobs.sequence[row]))

    def _fewest(
        self, space: Space, wants: tuple[Want, ...], order: Exodus | None
    ) -> list[Victim] | None:
        """Return the victims needed among the first that suffice; leave the books as found."""
        if order is None:
            return None
        gone: list[Victim] = []
        n_more = max(order.n_likely, 1)
        while len(gone) < len(order.rows):
            for row in order.rows[len(gone) : len(gone) + n_more]:
                gone.append(self._victim(row))
                self._draft.release(space, row, gone[-1].tasks)
            if could_place(space, wants):
                return self._reprieve(space, wants, gone)
            n_more = len(gone)
        for victim in gone:
            self._draft.restore(space, victim.row, victim.tasks)
        return None

    def _reprieve(
        self, space: Space, wants: tuple[Want, ...], gone: list[Victim]
    ) -> list[Victim]:
        """Spare whom the gang does not need, dearest first; leave the books as they were."""
        draft, row_of = self._draft, space.nodes.row_of
        members = place_gang(space, wants)
        assert not isinstance(members, Shortfall)
        used = {member.spot.row for member in members}
        undo(space, members)
        needed: list[Victim] = []
        near: list[Victim] = []
        for victim in gone:
            if any(row_of[task.node] in used for task in victim.tasks):
                near.append(victim)
            else:
                draft.restore(space, victim.row, victim.tasks)
        for victim in sorted(near, key=lambda v: (-v.cost_gpu_s, v.sequence)):
            draft.restore(space, victim.row, victim.tasks)
            if not could_place(space, wants):
                draft.release(space, victim.row, victim.tasks)
                needed.append(victim)
        for victim in needed:
            draft.restore(space, victim.row, victim.tasks)
        return needed

    def _cheapest_on_one_node(
        self, space: Space, shape: Shape, held: Holdings, best: list[Victim]
    ) -> list[Victim]:
        """Return the cheapest set that frees one node for a single task, `best` if none is."""
        least = _total_cost(best)
        nodes, bounds = least_cost(held, space, shape)
        for node, bound in zip(nodes.tolist(), bounds.tolist(), strict=True):
            if bound >= least or self._n_sets_left <= 0:
                break
            first, last = np.searchsorted(held.node, [node, node + 1])
            there = [self._victim(row) for row in held.row[first:last].tolist()]
            for victims in _by_total_cost(there, least):
                self._n_sets_left -= 1
                if self._would_fit(space, node, shape, victims):
                    best, least = victims, _total_cost(victims)
                    break
        return best

    def _would_fit(self, space: Space, node: int, shape: Shape, victims: list[Victim]) -> bool:
        for victim in victims:
            self._draft.release(space, victim.row, victim.tasks)
        would_fit = space.fits(node, shape)
        for victim in victims:
            self._draft.restore(space, victim.row, victim.tasks)
        return would_fit


def _total_cost(victims: list[Victim]) -> float:
    return sum(victim.cost_gpu_s for victim in victims)


def _costs(snapshot: Snapshot, held: Holdings) -> FloatColumn:
    """Return what stopping each job row costs: its width times the work lost, and a restart."""
    jobs = snapshot.jobs
    n_rows = len(jobs.jobs)
    cpu_milli = np.bincount(held.row, held.amount[:, CPU], n_rows)
    width = (jobs.gpu_milli + CPU_WEIGHT * cpu_milli) / MILLI
    cost_gpu_s = np.zeros(n_rows)
    rows = np.unique(held.row)
    cost_gpu_s[rows] = width[rows] * (snapshot.unsaved_s(rows) + RESTART_S)
    return cost_gpu_s


def _order(held: Holdings, space: Space, wants: tuple[Want, ...]) -> Exodus | None:
    """Return in which order victims go for the gang, role by role; None: it cannot fit."""
    likely: dict[int, None] = {}
    others: dict[int, None] = {}
    is_gang = any(want.must for want in wants)
    for want in wants:
        n_wanted = len(want.must) if is_gang else min(len(want.may), 1)
        if not n_wanted:
            continue
        order = exodus(held, space, want.shape, n_wanted)
        if order is None:
            if is_gang:
                return None
        else:
            likely |= dict.fromkeys(order.rows[: order.n_likely])
            others |= dict.fromkeys(order.rows)
    return Exodus(list(likely | others), len(likely))


def _only_task(wants: tuple[Want, ...]) -> Shape | None:
    """Return the shape of a job of one task, or of a service that lacks one replica."""
    n_tasks = sum(len(want.must) or len(want.may) for want in wants)
    if n_tasks != 1:
        return None
    return next(want.shape for want in wants if want.must or want.may)


def _by_total_cost(victims: list[Victim], below_gpu_s: float) -> Iterator[list[Victim]]:
    """Yield sets of victims, cheapest first, while they cost less than that."""
    victims = sorted(victims, key=lambda v: (v.cost_gpu_s, v.sequence))
    costs = [victim.cost_gpu_s for victim in victims]
    heap: list[tuple[float, tuple[int, ...]]] = [(costs[0], (0,))]
    for _ in range(SETS_PER_NODE):
        if not heap or heap[0][0] >= below_gpu_s:
            return
        cost, chosen = heapq.heappop(heap)
        yield [victims[i] for i in chosen]
        last = chosen[-1] + 1
        if last < len(victims):
            heapq.heappush(heap, (cost + costs[last], (*chosen, last)))
            heapq.heappush(heap, (cost - costs[last - 1] + costs[last], (*chosen[:-1], last)))
