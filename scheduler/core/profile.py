"""The books of the future: from when on a gang fits, if everybody ends as expected.

Running jobs, and those that a draft starts, leave at their expected end; promised places are
taken until the end of whoever gets them. With time the books only get emptier, so the first
moment at which a gang fits is found by bisection, from a bound by arithmetic on columns that is
nearly always exact.
"""

from collections.abc import Sequence

import numpy as np

from scheduler.core.draft import Draft, Promise
from scheduler.core.holdings import (
    MostTasks,
    amounts_by_node,
    asks_of,
    copies_of,
    free_of,
    gains,
)
from scheduler.core.model import Shape
from scheduler.core.node_columns import FloatColumn, IntColumn, Rows
from scheduler.core.placement import Shortfall, Want, could_place, place_gang, places_of
from scheduler.core.space import Booked, Space


class Profile:
    """When what is taken now will be free."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        snapshot = draft.snapshot
        jobs, running = snapshot.jobs, snapshot.running_rows()
        running = running[(jobs.n_stopping[running] == 0) & ~draft.is_evicted[running]]
        ends_s = snapshot.expected_end_s(running)
        order = np.argsort(ends_s, kind="stable")
        order = order[np.isfinite(ends_s[order])]
        job, self._tasks = draft.held.in_order(snapshot, running[order])
        end_s = np.empty(len(jobs.jobs))
        end_s[running] = ends_s
        self._ends_s = end_s[job]
        self._most: MostTasks | None = None  # once all of them are gone

    def promise(self, row: int, wants: tuple[Want, ...], run_s: float) -> Promise | None:
        """Return places for the gang of a job row as soon as there are any; None: never.

        What has been promised is not touched: the gang is done before it starts, or has other
        places, or waits until it is over.
        """
        if not self._could_ever(wants):
            return None
        promises = self._draft.promises
        for n_kept in range(len(promises) + 1):
            before_s = promises[n_kept].start_s if n_kept < len(promises) else np.inf
            if self._draft.snapshot.now_s + run_s > before_s:
                continue
            kept = promises[:n_kept]
            start_s, space = self._first_fit(wants, kept)
            if space is not None and start_s + run_s <= before_s:
                return _promised(row, wants, start_s, run_s, space=space, kept=kept)
        return None

    def _could_ever(self, wants: tuple[Want, ...]) -> bool:
        """Return whether so many tasks fit once all are gone who are ever expected to."""
        space = self._draft.books_of_later()
        if self._most is None or not self._most.is_of(space):
            gone = amounts_by_node(self._tasks.node, self._tasks.amount, len(space.version))
            for place in self._draft.booked:
                if np.isfinite(place.until_s):
                    gone[place.node] += asks_of(place.shape)
            self._most = MostTasks(space, gone)
        return all(self._most.of(want.shape) >= len(want.must) for want in wants)

    def _first_fit(
        self, wants: tuple[Want, ...], kept: Sequence[Promise]
    ) -> tuple[float, Space | None]:
        """Return from when on the gang fits beside these promises, and the books of then."""
        promised = [place for promise in kept for place in promise.places]
        leaving = [p for p in (*self._draft.booked, *promised) if np.isfinite(p.until_s)]
        node, ends_s, amount = self._releases(leaving)
        start = self._draft.copy_of_later()
        start.take_again(promised)
        bounds_s = [
            _earliest(start, want.shape, len(want.must), node, ends_s, amount) for want in wants
        ]
        at_s = max((bound for bound in bounds_s), default=np.inf)
        if at_s == np.inf:
            return np.inf, None
        at_s = max(at_s, self._draft.snapshot.now_s)
        moments_s = np.unique(ends_s[ends_s > at_s])
        space = self._books_at(at_s, kept)
        if could_place(space, wants):
            return at_s, space
        return self._bisect(wants, kept, moments_s)

    def _bisect(
        self, wants: tuple[Want, ...], kept: Sequence[Promise], moments_s: FloatColumn
    ) -> tuple[float, Space | None]:
        """Return the first of the moments at which the gang fits, and the books of then."""
        if not len(moments_s):
            return np.inf, None
        first, last = 0, len(moments_s) - 1
        best = self._books_at(moments_s[last], kept)
        if not could_place(best, wants):
            return np.inf, None
        while first < last:
            middle = (first + last) // 2
            space = self._books_at(moments_s[middle], kept)
            if could_place(space, wants):
                last, best = middle, space
            else:
                first = middle + 1
        return float(moments_s[last]), best

    def _releases(self, leaving: Sequence[Booked]) -> tuple[Rows, FloatColumn, IntColumn]:
        """Return the node, moment and amount of every release, by node, then moment."""
        asks = [asks_of(place.shape) for place in leaving]
        node = np.append(self._tasks.node, np.array([p.node for p in leaving], np.intp))
        ends_s = np.append(self._ends_s, [p.until_s for p in leaving])
        amount = np.vstack([self._tasks.amount, np.array(asks, np.int64).reshape(-1, 3)])
        order = np.lexsort((ends_s, node))
        return node[order], ends_s[order], amount[order]

    def _books_at(self, at_s: float, kept: Sequence[Promise]) -> Space:
        """Return the books of a moment, without the promises of then."""
        space = self._draft.copy_of_later()
        n_tasks = int(np.searchsorted(self._ends_s, at_s, side="right"))
        space.give_all(self._tasks.first(n_tasks))
        space.give_back(place for place in self._draft.booked if place.until_s <= at_s)
        for promise in kept:
            space.take_again(place for place in promise.places if place.until_s > at_s)
        return space


def _earliest(
    space: Space,
    shape: Shape,
    n_wanted: int,
    node: Rows,
    ends_s: FloatColumn,
    amount: IntColumn,
) -> float:
    """Return from when on so many such tasks fit at the earliest; inf: never.

    Never too late: it counts what is free on a node without looking at its devices.
    """
    could = space.could_take(shape)
    free = free_of(space)
    n_free = np.where(could, copies_of(free, shape), 0)
    n_lacking = n_wanted - int(n_free.sum())
    if n_lacking <= 0:
        return -np.inf
    kept = could[node]
    node, ends_s, amount = node[kept], ends_s[kept], amount[kept]
    if not len(node):
        return np.inf
    _, gain = gains(node, amount, free=free, n_free=n_free, shape=shape)
    order = np.argsort(ends_s, kind="stable")
    enough = np.searchsorted(np.cumsum(gain[order]), n_lacking)
    return float(ends_s[order[enough]]) if enough < len(order) else np.inf


def _promised(
    row: int,
    wants: tuple[Want, ...],
    start_s: float,
    run_s: float,
    *,
    space: Space,
    kept: Sequence[Promise],
) -> Promise:
    """Return the promise of places on the books of then, without it and promises of later."""
    members = place_gang(space, wants)
    assert not isinstance(members, Shortfall)
    for promise in kept:
        if promise.start_s > start_s:
            space.give_back(place for place in promise.places if place.until_s > start_s)
    places = [Booked(row, *place, start_s + run_s) for place in places_of(members)]
    return Promise(row, start_s, places, space, {place.node for place in places})
