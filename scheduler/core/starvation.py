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
        self._held: Holdings | None = None  # made when somebody is due
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
            for row in rows:
                draft.release(space, row, draft.snapshot.jobs.tasks[row])
            members = place_gang(space, wants)
            if not isinstance(members, Shortfall):
                return space, {member.spot.row for member in members}
        return None

    def _holdings(self) -> Holdings:
        """Return what will be free one day, oldest jobs first: every holder weighs the same."""
        if self._held is None:
            snapshot = self._draft.snapshot
            n_rows = len(snapshot.jobs.jobs)
            rank = np.empty(n_rows, np.intp)
            rank[np.argsort(snapshot.jobs.sequence, kind="stable")] = np.arange(n_rows)
            held = holdings_of(snapshot).of(self._will_end())
            self._held = held.ordered(rank, np.ones(n_rows))
        return self._held

    def _will_end(self) -> BoolColumn:
        """Return which job rows end by themselves: all but services without a time limit."""
        draft, jobs = self._draft, self._draft.snapshot.jobs
        rows = draft.snapshot.running_rows()
        is_service = np.array(
            [
                draft.snapshot.job_at(row).spec.kind is JobKind.INFERENCE
                for row in rows.tolist()
            ],
            np.bool_,
        )
        will_end = np.zeros(len(jobs.jobs), np.bool_)
        will_end[rows] = ~is_service | np.isfinite(jobs.deadline_at_s[rows])
        return will_end & ~draft.is_evicted
