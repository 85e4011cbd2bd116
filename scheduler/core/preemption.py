"""Making room: whom to stop so that a waiting gang fits, at the least lost work.

First among those of the lowest priority, then of the next, too, until it fits: task by task the
cheapest offer is taken on the later books until the gang fits; then there is a
reprieve: from the dearest on, every victim that turns out not to be needed is spared. For a job
of one task the first offer is the optimum. What does not help is never stopped.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.draft import Draft
from scheduler.core.holdings import Holdings, holdings_of, most_tasks, subtree_prices
from scheduler.core.model import MILLI, NVLINK, Shape, Task
from scheduler.core.needs import least_of
from scheduler.core.node_columns import CPU, BoolColumn, FloatColumn, IntColumn, Rows
from scheduler.core.offers import Offers
from scheduler.core.placement import (
    Shortfall,
    Want,
    could_place,
    hold_later,
    place_gang,
    undo,
)
from scheduler.core.ports import PreemptionRule
from scheduler.core.snapshot import Snapshot
from scheduler.core.space import Space, Spot
from scheduler.core.subtrees import subtrees

RESTART_S = 30.0
"""What a restart costs a job besides the work it lost: start-up and loading a checkpoint."""

CPU_WEIGHT = 1 / 16
"""A CPU against a GPU when lost work is weighed (GPU nodes have about 16 CPUs a GPU)."""

LOOKS_PER_CYCLE = 20_000
"""Looks at single nodes in one cycle, about a second; who comes later asks in the next one."""

OFFERS_KEPT = 128
"""Sets of offers remembered within a cycle; at 10,000 nodes 20 MiB."""

SUBTREES_TRIED = 8
"""Subtrees in which room is looked for, the cheapest by estimate first."""

ANYWHERE = -1
ANY_PRIORITY = 1 << 62

MOST_CEILINGS = 16
"""Priorities up to which victims are looked for, one after the other; if there are more, some
are taken together."""

Right = tuple[int, int, int, int, int]
"""Gang, queue and priority: jobs of equal right may stop the same others for the same need.
Then the priority up to which they are looked for, and the number of the subtree."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A job that might make room: all its tasks go, at this cost."""

    row: int
    tasks: tuple[Task, ...]
    cost_gpu_s: float
    sequence: int  # breaks ties; rows are of no meaning outside one snapshot


class Preemption:
    """Whom the jobs of one cycle may stop, and the search among them."""

    def __init__(
        self, draft: Draft, rule: PreemptionRule, *, are_equals_alike: bool = True
    ) -> None:
        self._are_equals_alike = are_equals_alike  # else the rule looks at jobs
        self._draft = draft
        self._rule = rule
        self._fair_game: Rows | None = None  # made when somebody asks
        self._held: Holdings | None = None  # by fair game, made when somebody asks
        self._cost_gpu_s = np.zeros(0)  # by job row
        self._n_looks = 0
        self._ceiling = ANY_PRIORITY  # of those who are looked at
        self._lowest: dict[tuple[int, int, int], int] = {}  # ceiling that helped, by right
        self._priorities: dict[tuple[int, int, int], list[int]] = {}  # of the game, by right
        self._offers: dict[tuple[Right, str, tuple[int, int]], Offers | None] = {}

    def make_room(self, row: int, wants: tuple[Want, ...]) -> list[Victim]:
        """Stop the cheapest jobs that let the gang of `row` fit later, and hold its places.

        Returns the victims, booked as gone on the draft's later books, or none if no set helps.
        """
        gone = self.find(row, wants)
        if gone:
            self._draft.note_ends((victim.row, victim.tasks) for victim in gone)
            held = hold_later(self._draft, row, wants)
            assert not isinstance(held, Shortfall)
        return gone

    def find(self, row: int, wants: tuple[Want, ...]) -> list[Victim]:
        """Return the cheapest jobs without which the gang of `row` fits later, none if none do.

        They are booked as gone on the later books in force, and there only.
        """
        if self._n_looks >= LOOKS_PER_CYCLE or not len(self._game()):
            return []
        jobs = self._draft.snapshot.jobs
        right = (int(jobs.gang[row]), int(jobs.queue[row]), int(jobs.priority[row]))
        if not self._are_equals_alike:
            right = (row, -1, -1)
        ceilings = self._ceilings(row, right)
        if not ceilings:
            return []
        space = self._draft.open_later()
        try:
            for ceiling in ceilings:
                self._ceiling = ceiling
                for number, nodes in self._subtrees(space, row, wants):
                    of_search = (*right, ceiling, number)
                    with space.focused(nodes):
                        gone = self._search(space, row, wants, right=of_search)
                    if gone:
                        self._lowest[right] = ceiling
                        return gone
        finally:
            self._ceiling = ANY_PRIORITY
        return []

    def _ceilings(self, row: int, right: tuple[int, int, int]) -> list[int]:
        """Return up to which priorities to look for victims, the lowest first; none: no game.

        Within a cycle less and less is free: what did not help once will not help again.
        """
        known = self._priorities.get(right)
        if known is None:
            snapshot = self._draft.snapshot
            game = self._rule(snapshot, row, self._game())
            known = ceilings_of(snapshot.jobs.priority[game])
            self._priorities[right] = known
        lowest = self._lowest.get(right)
        return known if lowest is None else [c for c in known if c >= lowest]

    def spare(self, victims: Sequence[Victim]) -> None:
        """Undo `find`; who may be stopped for the same job may be others the next time."""
        self._spare(self._draft.open_later(), list(victims))
        self._offers.clear()

    def _subtrees(
        self, space: Space, row: int, wants: tuple[Want, ...]
    ) -> Iterable[tuple[int, BoolColumn | None]]:
        """Return the nodes among which room may be made, the cheapest subtree first."""
        domain = subtrees(space, wants[0].near) if wants[0].near is not None else None
        if domain is None:
            return [(ANYWHERE, None)]
        allowed = self._allowed(row)
        held = self._holdings().of(allowed)
        return cheapest_subtrees(held, space, _needs(wants), domain)

    def _search(
        self, space: Space, row: int, wants: tuple[Want, ...], *, right: Right
    ) -> list[Victim]:
        """Book the cheapest victims found as gone; none if no set of them helps."""
        needs = _needs(wants)
        markets = [self._market(row, right, want, n_tasks) for want, n_tasks in needs]
        if None in markets:
            return []
        gone = self._accept_offers(space, needs, [m for m in markets if m is not None])
        near = wants[0].near
        if sum(n_tasks for _, n_tasks in needs) > 1 or (near is not None and near.required):
            gone = self._reprieve(space, wants, gone)
        if not gone and near is not None and near.required == NVLINK:
            # Who is cheapest to stop may not be on the devices of one clique.
            gone = self._reprieve(space, wants, self._everybody(space, row, wants[0].shape))
        return gone

    def _everybody(self, space: Space, row: int, shape: Shape) -> list[Victim]:
        """Book everybody who may be stopped on the nodes in focus as gone."""
        is_seen = space.could_take(shape)
        held = self._holdings().of(self._allowed(row))
        victims = [self._victim(r) for r in np.unique(held.row[is_seen[held.node]]).tolist()]
        for victim in victims:
            self._let_go(space, victim)
        return victims

    def forget(self) -> None:
        """Look again: tasks came or went on the later books that no victim gave up."""
        self._offers.clear()
        self._lowest.clear()

    # The market

    def _market(self, row: int, right: Right, want: Want, n_tasks: int) -> Offers | None:
        """Return the offers for a role of the job; None if they cannot suffice."""
        key = (right, want.role, self._draft.sight)
        if key not in self._offers:
            if len(self._offers) == OFFERS_KEPT:
                del self._offers[next(iter(self._offers))]
            self._offers[key] = self._opened(row, want.shape, n_tasks)
        return self._offers[key]

    def _opened(self, row: int, shape: Shape, n_tasks: int) -> Offers | None:
        draft = self._draft
        is_allowed = self._allowed(row)
        if not is_allowed.any():
            return None
        held = self._holdings().of(is_allowed)
        space = draft.open_later()
        if most_tasks(held, space, shape) < n_tasks:
            return None
        return Offers(draft, space, shape, held, self._prices(held, n_tasks))

    def _allowed(self, row: int) -> BoolColumn:
        """Return which job rows may be stopped for that one."""
        draft = self._draft
        allowed = self._rule(draft.snapshot, row, self._game())
        allowed = allowed[draft.snapshot.jobs.priority[allowed] <= self._ceiling]
        allowed = allowed[~draft.is_evicted[allowed]]
        if len(allowed):
            allowed = allowed[draft.is_clear()[allowed]]
        is_allowed = np.zeros(len(draft.is_evicted), np.bool_)
        is_allowed[allowed] = True
        return is_allowed

    def _game(self) -> Rows:
        if self._fair_game is None:
            self._fair_game = self._draft.snapshot.preemptible_rows()
        return self._fair_game

    def _prices(self, held: Holdings, n_tasks: int) -> FloatColumn:
        """Return what stopping each job costs per task placed: a wide one may serve several."""
        part = np.zeros(len(self._cost_gpu_s))
        np.maximum.at(part, held.row, held.share)
        return self._cost_gpu_s * np.maximum(part, 1 / n_tasks)

    def _holdings(self) -> Holdings:
        """Return what fair game holds: cheapest first, then lowest priority, then youngest."""
        if self._held is None:
            jobs = self._draft.snapshot.jobs
            is_game = np.zeros(len(jobs.jobs), np.bool_)
            is_game[self._game()] = True
            held = holdings_of(self._draft).of(is_game)
            self._cost_gpu_s = costs_gpu_s(self._draft.snapshot, held, np.unique(held.row))
            order = np.lexsort((-jobs.sequence, jobs.priority, self._cost_gpu_s))
            rank = np.empty(len(order), np.intp)
            rank[order] = np.arange(len(order))
            self._held = held.ordered(rank, self._cost_gpu_s)
        return self._held

    # Victims

    def _accept_offers(
        self, space: Space, needs: list[tuple[Want, int]], markets: list[Offers]
    ) -> list[Victim]:
        """Book victims as gone until every task has found a place, none if one cannot."""
        n_looks = sum(offers.n_looks for offers in markets)
        gone: list[Victim] = []
        placed: list[tuple[Shape, Spot]] = []
        n_missing = 0
        for (want, n_tasks), offers in zip(needs, markets, strict=True):
            for _ in range(n_tasks):
                spot = space.place(want.shape) or self._accept(space, offers, gone)
                if spot is None:
                    n_missing += 1
                    break
                placed.append((want.shape, spot))
        for shape, spot in reversed(placed):
            space.give(spot.row, shape, spot.devices)
        self._n_looks += sum(offers.n_looks for offers in markets) - n_looks
        for offers in markets:
            # What was found out on books that are no more says nothing about these.
            offers.renew(spot.row for _, spot in placed)
        if n_missing:
            self._spare(space, gone)
            return []
        return gone

    def _accept(self, space: Space, offers: Offers, gone: list[Victim]) -> Spot | None:
        """Stop whom the cheapest offer names, and place one task there."""
        offer = offers.pop()
        if offer is None:
            return None
        node, rows = offer
        touched = {node}
        for row in rows:
            victim = self._victim(row)
            gone.append(victim)
            touched |= self._let_go(space, victim)
        spot = space.place(offers.shape, node)
        assert spot is not None
        offers.renew(touched)
        return spot

    def _victim(self, row: int) -> Victim:
        jobs = self._draft.snapshot.jobs
        cost_gpu_s = float(self._cost_gpu_s[row])
        return Victim(row, jobs.tasks[row], cost_gpu_s, int(jobs.sequence[row]))

    def _let_go(self, space: Space, victim: Victim) -> set[int]:
        """Book a victim as gone; return the nodes where that frees something."""
        self._draft.release(space, victim.row, victim.tasks)
        self._draft.is_evicted[victim.row] = True
        return {space.nodes.row_of[task.node] for task in victim.tasks}

    def _spare(self, space: Space, victims: list[Victim]) -> None:
        for victim in victims:
            self._draft.restore(space, victim.row, victim.tasks)
            self._draft.is_evicted[victim.row] = False

    def _reprieve(
        self, space: Space, wants: tuple[Want, ...], gone: list[Victim]
    ) -> list[Victim]:
        """Spare whom the gang does not need, dearest first; all, if it does not fit at all."""
        row_of = space.nodes.row_of
        members = place_gang(space, wants)
        if isinstance(members, Shortfall):  # roles that got into each other's way
            self._spare(space, gone)
            return []
        used = {member.spot.row for member in members}
        undo(space, members)
        near = [v for v in gone if any(row_of[task.node] in used for task in v.tasks)]
        kept = {victim.row for victim in near}
        self._spare(space, [victim for victim in gone if victim.row not in kept])
        needed: list[Victim] = []
        for victim in sorted(near, key=lambda v: (-v.cost_gpu_s, v.sequence)):
            self._spare(space, [victim])
            if not could_place(space, wants):
                self._let_go(space, victim)
                needed.append(victim)
        return needed


def cheapest_subtrees(
    held: Holdings, space: Space, needs: Sequence[tuple[Want, int]], domain: IntColumn
) -> Iterator[tuple[int, BoolColumn]]:
    """Yield the domains in which the needs may be met, with their nodes, cheapest first."""
    prices = np.sum(
        [subtree_prices(held, space, want.shape, n, domain) for want, n in needs], axis=0
    )
    order = np.argsort(prices, kind="stable")
    for number in order[np.isfinite(prices[order])][:SUBTREES_TRIED].tolist():
        yield number, domain == number


def ceilings_of(priorities: IntColumn) -> list[int]:
    """Return up to which priorities to look for victims, the lowest first.

    So nobody is stopped while the lower ones suffice, who might stop those in turn.
    """
    if not len(priorities):
        return []
    found: list[int] = np.unique(priorities).tolist()
    if len(found) > MOST_CEILINGS:
        places = np.linspace(0, len(found) - 1, MOST_CEILINGS)
        found = [found[place] for place in np.unique(np.round(places).astype(np.intp))]
    return found


def _needs(wants: tuple[Want, ...]) -> list[tuple[Want, int]]:
    """Return how many tasks of each role room is made for: a gang's min, or one replica."""
    return [(want, len(want.must)) for want in least_of(wants)]


def width_milli(shape: Shape) -> float:
    """Return what a task takes, in thousandths of GPUs: CPUs count by their weight."""
    return shape.total_gpu_milli + CPU_WEIGHT * shape.cpu_milli


def costs_gpu_s(snapshot: Snapshot, held: Holdings, rows: Rows) -> FloatColumn:
    """Return by job row what stopping those jobs costs: width times work lost and a restart."""
    jobs = snapshot.jobs
    n_rows = len(jobs.jobs)
    cpu_milli = np.bincount(held.row, held.amount[:, CPU], n_rows)
    width = (jobs.gpu_milli + CPU_WEIGHT * cpu_milli) / MILLI
    cost_gpu_s = np.zeros(n_rows)
    cost_gpu_s[rows] = width[rows] * (snapshot.unsaved_s(rows) + RESTART_S)
    return cost_gpu_s
