"""Making room in a tree of queues: whom to stop for a job, if quota or capacity is in its way.

The nodes where a task costs least to fit are freed one after the other, victims by lost work,
each only if its queue may still let go of it (`claims.Claim`); then more go while a ceiling is
in the way; then, from the dearest on, whoever turns out not to be needed is spared. What does
not help is never stopped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.core.claims import Claim
from scheduler.core.draft import Draft
from scheduler.core.holdings import asks_of, free_of, holdings_of, run_starts
from scheduler.core.model import Shape
from scheduler.core.needs import Amounts, least_of
from scheduler.core.node_columns import BoolColumn, Rows
from scheduler.core.placement import Member, Shortfall, Want, could_place, hold_later
from scheduler.core.ports import PreemptionRule
from scheduler.core.preemption import (
    ANY_PRIORITY,
    Victim,
    ceilings_of,
    cheapest_subtrees,
    costs_gpu_s,
)
from scheduler.core.quotas import OWED_NOTHING_AT_ALL, Excess, Quotas
from scheduler.core.space import Space
from scheduler.core.subtrees import in_order, subtrees

MOST_TRIES = 4
"""Searches for one job, each without those who would be served before it."""


@dataclass(frozen=True, slots=True)
class Room:
    """What was found for a job by stopping others."""

    victims: list[Victim]
    members: Sequence[Member] = ()  # the places held for it, where queues rule
    need: Amounts | None = None  # with which it was owed them


class Reclaim:
    """Whom the jobs of one cycle may stop, as far as queues allow."""

    def __init__(
        self,
        draft: Draft,
        quotas: Quotas,
        rule: PreemptionRule,
    ) -> None:
        self._draft = draft
        self._quotas = quotas
        self._rule = rule
        self._fair_game = draft.snapshot.preemptible_rows()
        self._table: _Table | None = None  # made when somebody asks

    def make_room(
        self, row: int, wants: tuple[Want, ...], cut: Sequence[int] = ()
    ) -> Room | None:
        """Stop the cheapest jobs that let the gang of `row` start later, and hold its places.

        Of those whom the policy allows, the lowest priorities go first, as in `preemption`.
        Services in `cut` are booked as having given replicas up for it. Returns the victims,
        booked as gone on the later books and in the later ledger; None if no set helps.
        """
        draft = self._draft
        if self.must_wait(row):
            return None
        by_policy = np.zeros(len(draft.is_evicted), np.bool_)
        by_policy[self._rule(draft.snapshot, row, self._fair_game)] = True
        fair_game = self._fair_game
        fair_game = fair_game[~draft.is_evicted[fair_game] & draft.is_clear()[fair_game]]
        priority = draft.snapshot.jobs.priority
        ceilings = ceilings_of(priority[by_policy]) or [ANY_PRIORITY]
        for ceiling in ceilings:
            is_low = by_policy & (priority <= ceiling)
            room = self._found(row, wants, is_low, fair_game, cut=cut)
            if room is not None:
                return room
        return None

    def _found(
        self,
        row: int,
        wants: tuple[Want, ...],
        by_policy: BoolColumn,
        fair_game: Rows,
        *,
        cut: Sequence[int],
    ) -> Room | None:
        """Return victims among those whom the policy or a claim on other queues allows."""
        draft, quotas = self._draft, self._quotas
        for need, gpu_type in quotas.needs.options(row):
            claim = Claim(quotas, row, need)
            if gpu_type is not None and not claim.is_entitled:
                continue
            allowed = claim.allowed(fair_game[by_policy[fair_game]], fair_game)
            if not len(allowed):
                continue
            asked = wants if gpu_type is None else of_type(wants, gpu_type)
            needs = least_of(asked)
            search = _Search(draft, quotas, row=row, needs=needs, table=self._known(), cut=cut)
            for gone in self._tries(search, claim, allowed, by_policy):
                if gone:
                    draft.note_ends((victim.row, victim.tasks) for victim in gone)
                    return Room(gone, hold_admitted(draft, quotas, row, asked), need)
        return None

    def _tries(
        self, search: "_Search", claim: Claim, allowed: Rows, by_policy: BoolColumn
    ) -> Iterator[list[Victim]]:
        """Yield the victims found in each subtree that may hold the gang, or anywhere."""
        space, needs = self._draft.open_later(), search.needs
        domain = subtrees(space, needs[0].near) if needs[0].near is not None else None
        if domain is None:
            yield search.without_first(claim, allowed, by_policy)
            return
        is_allowed = np.zeros(len(self._draft.is_evicted), np.bool_)
        is_allowed[allowed] = True
        held = self._known().held.of(is_allowed)
        counts = [(want, len(want.must)) for want in needs]
        for _, nodes in cheapest_subtrees(held, space, counts, domain):
            with space.focused(nodes):
                gone = search.without_first(claim, allowed, by_policy)
            yield gone

    def must_wait(self, row: int) -> bool:
        """Return whether a job that is owed nothing meets what others were promised.

        They are other queues' and before it: they would take what is freed for it.
        """
        quotas = self._quotas
        queue_of = quotas.snapshot.jobs.queue
        is_met = any(queue_of[promise.row] != queue_of[row] for promise in self._draft.promises)
        return quotas.tree.has_shares and is_met and quotas.rank(row) == OWED_NOTHING_AT_ALL

    def _known(self) -> "_Table":
        if self._table is None:
            self._table = _Table(self._draft, self._fair_game)
        return self._table


def hold_admitted(
    draft: Draft, quotas: Quotas, row: int, wants: tuple[Want, ...]
) -> list[Member]:
    """Hold places for a gang for which there is room by now, as far as its queue may have it.

    With more tasks than it needs it may have to keep to types that have no room even for those.
    """
    members: list[Member] | Shortfall | None = None
    for asked in (wants, least_of(wants)):
        admitted = quotas.admit(row, asked, is_now=False)
        if not isinstance(admitted, Excess):
            members = hold_later(draft, row, admitted)
            if not isinstance(members, Shortfall):
                break
    assert isinstance(members, list)
    quotas.book(row, members, is_now=False)
    return members


class _Table:
    """What fair game holds on which node, by node and then by cost."""

    def __init__(self, draft: Draft, fair_game: Rows) -> None:
        snapshot = draft.snapshot
        jobs = snapshot.jobs
        is_game = np.zeros(len(jobs.jobs), np.bool_)
        is_game[fair_game] = True
        held = holdings_of(draft).of(is_game)
        self.cost_gpu_s = costs_gpu_s(snapshot, held, fair_game)
        order = np.lexsort(
            (
                -jobs.sequence[held.row],
                jobs.priority[held.row],
                self.cost_gpu_s[held.row],
                held.node,
            )
        )
        rank = np.empty(len(jobs.jobs), np.intp)
        rank[np.lexsort((-jobs.sequence, jobs.priority, self.cost_gpu_s))] = np.arange(
            len(rank)
        )
        self.held = held.ordered(rank, self.cost_gpu_s)
        self.row: Rows = held.row[order]
        self.node: Rows = held.node[order]
        self.amount = [column[order] for column in held.amount.T]
        youth, priority = -jobs.sequence[fair_game], jobs.priority[fair_game]
        cheapest_first = np.lexsort((youth, priority, self.cost_gpu_s[fair_game]))
        self.by_cost: Rows = fair_game[cheapest_first]

    def nodes_for(
        self, shape: Shape, space: Space, is_allowed: BoolColumn
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield where one more such task could fit, cheapest first, and who is there.

        The cost is that of the first holders on a node whose amounts suffice: an estimate.
        """
        kept = is_allowed[self.row] & space.could_take(shape)[self.node]
        row, node = self.row[kept], self.node[kept]
        if not len(row):
            return
        starts = np.flatnonzero(run_starts(node))
        start = np.repeat(starts, np.diff(np.append(starts, len(node))))
        cost = self.cost_gpu_s[row]
        spent = np.cumsum(cost)
        spent -= spent[start] - cost[start]
        free = free_of(space)
        for column, ask in enumerate(asks_of(shape)):
            amount = self.amount[column][kept]
            gone = np.cumsum(amount)
            gone -= gone[start] - amount[start]
            spent[free[:, column][node] + gone < ask] = np.inf
        least = np.minimum.reduceat(spent, starts)
        ends = np.append(starts[1:], len(node))
        possible = np.flatnonzero(np.isfinite(least))
        for i in in_order(possible, [least[possible]]):
            yield int(node[starts[i]]), row[starts[i] : ends[i]].tolist()


class _Search:
    """The search of one job; books hypotheses on the later books and in the later ledger."""

    def __init__(
        self,
        draft: Draft,
        quotas: Quotas,
        *,
        row: int,
        needs: tuple[Want, ...],
        table: _Table,
        cut: Sequence[int],
    ) -> None:
        self._draft = draft
        self._quotas = quotas
        self._cut = cut
        self._row = row
        self.needs = needs
        self._table = table
        self._space = draft.open_later()
        self._gone: dict[int, Victim] = {}

    def without_first(self, claim: Claim, allowed: Rows, by_policy: BoolColumn) -> list[Victim]:
        """Do as `run`, without victims that would be served before the job."""
        for _ in range(MOST_TRIES):
            gone = self.run(claim, allowed, by_policy)
            first = self._quotas.back_before(self._row, [victim.row for victim in gone])
            if not first and not self._quotas.back_before(
                self._row, self._cut, is_replica=True
            ):
                return gone
            self.undo()
            if not first:
                break
            allowed = np.setdiff1d(allowed, first)
        return []

    def run(self, claim: Claim, allowed: Rows, by_policy: BoolColumn) -> list[Victim]:
        """Return the victims, booked as gone; none, and nothing booked, if no set helps."""
        self._claim, self._by_policy = claim, by_policy
        need, _ = self._quotas.needs.total(self.needs)
        blocker = claim.blocker(need)
        if blocker is not None:
            near = allowed[self._is_below(allowed, blocker)]
            if not len(near):
                return []
            if self._free_places(near) and self._free_quota(near, need):
                return self._reprieve()
            self.undo()
        if self._free_places(allowed) and self._free_quota(allowed, need):
            return self._reprieve()
        self.undo()
        return []

    def _is_below(self, rows: Rows, blocker: int) -> BoolColumn:
        tree, queue = self._quotas.tree, self._draft.snapshot.jobs.queue
        below = np.array([blocker in path for path in tree.paths], np.bool_)
        found: BoolColumn = below[queue[rows]]
        return found

    def _fits(self) -> bool:
        admitted = self._quotas.admit(self._row, self.needs, is_now=False)
        return not isinstance(admitted, Excess) and could_place(self._space, admitted)

    def _let_go(self, row: int) -> bool:
        """Book a job as gone, if it may go."""
        if row in self._gone or not self._claim.may_go(row, self._by_policy):
            return False
        jobs = self._draft.snapshot.jobs
        cost_gpu_s = float(self._table.cost_gpu_s[row])
        victim = Victim(row, jobs.tasks[row], cost_gpu_s, int(jobs.sequence[row]))
        self._gone[row] = victim
        self._draft.release(self._space, row, victim.tasks)
        self._quotas.release(row, victim.tasks)
        return True

    def _take_back(self, row: int) -> None:
        victim = self._gone.pop(row)
        self._draft.restore(self._space, row, victim.tasks)
        self._quotas.release(row, victim.tasks, sign=1)

    def undo(self) -> None:
        """Book whoever was let go as there again."""
        for row in list(self._gone):
            self._take_back(row)

    def _free_places(self, allowed: Rows) -> bool:
        """Let go who stands in the way on the cheapest nodes; return whether all would fit."""
        is_allowed = np.zeros(len(self._draft.is_evicted), np.bool_)
        is_allowed[allowed] = True
        placed = []
        is_complete = True
        for want in self.needs:
            shape = want.shape
            n_left = len(want.must)
            while n_left and is_complete:
                before = n_left
                offers: Iterator[tuple[int, list[int]]] = iter(())
                if self._space.best(shape) is None:
                    offers = self._table.nodes_for(shape, self._space, is_allowed)
                while n_left:
                    spot = self._space.place(shape)
                    if spot is not None:
                        placed.append((spot, shape))
                        n_left -= 1
                        continue
                    offer = next(offers, None)
                    if offer is None:
                        break
                    self._free_node(offer[0], shape, offer[1])
                is_complete = n_left < before
        for spot, shape in reversed(placed):
            self._space.give(spot.row, shape, spot.devices)
        return is_complete

    def _free_node(self, node: int, shape: Shape, rows: list[int]) -> None:
        """Let go the first of the rows that suffice for one task, or none of them."""
        went: list[int] = []
        for row in rows:
            if self._let_go(row):
                went.append(row)
                if self._space.fits(node, shape):
                    return
        for row in went:
            self._take_back(row)

    def _free_quota(self, allowed: Rows, need: Amounts) -> bool:
        """Let more go while a ceiling is in the way; return whether none is any more."""
        blocker = self._claim.blocker(need)
        if blocker is None:
            return self._fits()
        is_allowed = np.zeros(len(self._draft.is_evicted), np.bool_)
        is_allowed[allowed] = True
        rows = self._table.by_cost[is_allowed[self._table.by_cost]]
        while blocker is not None:
            below = rows[self._is_below(rows, blocker)].tolist()
            is_stuck = True
            for row in below:
                if self._let_go(row):
                    is_stuck = False
                    if self._claim.blocker(need) != blocker:
                        break
            blocker = self._claim.blocker(need)
            if blocker is not None and is_stuck:
                return False
        return self._fits()

    def _reprieve(self) -> list[Victim]:
        """Spare whom the gang does not need, dearest first."""
        for victim in sorted(self._gone.values(), key=lambda v: (-v.cost_gpu_s, v.sequence)):
            self._take_back(victim.row)
            if not self._fits():
                self._gone[victim.row] = victim
                self._draft.release(self._space, victim.row, victim.tasks)
                self._quotas.release(victim.row, victim.tasks)
        return sorted(self._gone.values(), key=lambda v: v.sequence)


def of_type(wants: tuple[Want, ...], gpu_type: str) -> tuple[Want, ...]:
    """Return the wants with every GPU that may be of this type of no other."""
    return tuple(
        replace(want, shape=replace(want.shape, gpu_types=(gpu_type,)))
        if want.shape.total_gpu_milli and gpu_type in (want.shape.gpu_types or (gpu_type,))
        else want
        for want in wants
    )
