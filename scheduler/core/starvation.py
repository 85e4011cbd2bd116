"""Keeping places for a gang that others, smaller ones, would pass by for ever.

The first job in the order that has waited longer than the policy's patience gets a claim: of
the tasks that run now, those that stand in its way on the nodes where fewest do are assumed to
end, and nobody behind it in the order may start where it would. Every end among them brings the
job closer and no start sets it back, so it starts once they have ended. What does not delay it
goes on: on other nodes, and beside its places on the same ones.

Stands in for backfill with reservations, which will know when the tasks end.
"""

import numpy as np

from scheduler.core.draft import Draft, Space
from scheduler.core.holdings import Holdings, exodus, holdings_of
from scheduler.core.model import JobKind
from scheduler.core.placement import Shortfall, Want, place_gang
from scheduler.core.snapshot import BoolColumn, FloatColumn, Rows


class Starving:
    """The one claim of a cycle."""

    def __init__(self, draft: Draft, patience_s: float) -> None:
        self._draft = draft
        self._patience_s = patience_s
        self._without_hope: set[int] = set()  # gangs that no end of tasks would help
        self._running: Holdings | None = None  # made when somebody is due
        self._held: Holdings | None = None  # with the first `n_seen` places of this draft
        self._n_seen = 0
        self.row: int | None = None  # the job that has the claim

    def keep_places(self, row: int, wants: tuple[Want, ...]) -> bool:
        """Keep places for the job of `row` if it is due; return whether there are any."""
        gang = int(self._draft.snapshot.jobs.gang[row])
        if self.row is not None or gang in self._without_hope or not self._is_due(row):
            return False
        musts = tuple(Want(w.role, w.shape, must=w.must, may=()) for w in wants if w.must)
        books = self._after_the_others(musts)
        if books is None:
            self._without_hope.add(gang)
            return False
        self.row = row
        space, rows = books
        self._draft.now.lower_to(space, rows)
        if self._draft.later is not None:
            self._draft.later.lower_to(space, rows)
        return True

    def due_at_s(self, rows: Rows) -> FloatColumn:
        """Return the moments at which the jobs have waited long enough for a claim."""
        jobs = self._draft.snapshot.jobs
        waits_since_s = np.maximum(jobs.pending_since_s[rows], jobs.eligible_at_s[rows])
        due_at_s: FloatColumn = waits_since_s + self._patience_s
        return due_at_s

    def _is_due(self, row: int) -> bool:
        due_at_s = self.due_at_s(np.array([row], np.intp))
        return bool(due_at_s[0] <= self._draft.snapshot.now_s)

    def _after_the_others(self, wants: tuple[Want, ...]) -> tuple[Space, set[int]] | None:
        """Return books on which enough tasks have ended for the gang, and its nodes on them."""
        draft, held = self._draft, self._holdings()
        space = draft.copy_of_later()
        orders = [exodus(held, space, want.shape, len(want.must)) for want in wants]
        found = [order for order in orders if order is not None]
        if len(found) < len(orders):
            return None
        likely = dict.fromkeys(row for order in found for row in order.rows[: order.n_likely])
        others = dict.fromkeys(row for order in found for row in order.rows)
        for rows in (list(likely), [row for row in others if row not in likely]):
            self._release(space, rows)
            members = place_gang(space, wants)
            if not isinstance(members, Shortfall):
                return space, {member.spot.row for member in members}
        return None

    def _release(self, space: Space, rows: list[int]) -> None:
        """Book the jobs as gone, also those that only start now or later."""
        for row in rows:
            self._draft.release(space, row, self._draft.snapshot.jobs.tasks[row])
        gone = set(rows)
        for place in self._draft.booked:
            if place.row in gone:
                space.give(place.node, place.shape, place.devices)

    def _holdings(self) -> Holdings:
        """Return what will be free one day, oldest jobs first: every holder weighs the same."""
        draft, jobs = self._draft, self._draft.snapshot.jobs
        if self._running is None:
            self._running = holdings_of(draft.snapshot)
        if self._held is None or self._n_seen < len(draft.booked):
            n_rows = len(jobs.jobs)
            rank = np.empty(n_rows, np.intp)
            rank[np.argsort(jobs.sequence, kind="stable")] = np.arange(n_rows)
            held = self._running.and_of(draft.booked)
            self._held = held.of(self._will_end(held)).ordered(rank, np.ones(n_rows))
            self._n_seen = len(draft.booked)
        return self._held

    def _will_end(self, held: Holdings) -> BoolColumn:
        """Return which job rows end by themselves: all but services without a time limit."""
        snapshot = self._draft.snapshot
        will_end = np.zeros(len(snapshot.jobs.jobs), np.bool_)
        for row in np.unique(held.row).tolist():
            spec = snapshot.job_at(row).spec
            will_end[row] = spec.kind is not JobKind.INFERENCE or spec.time_limit_s > 0
        return will_end & ~self._draft.is_evicted
