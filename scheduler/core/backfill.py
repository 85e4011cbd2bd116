"""Backfill: who is short enough, or far enough away, may start before those who wait longer.

A gang that fits nowhere gets a promise of places: those where it fits first if everybody ends
as expected (`profile`). A job behind it in the order may start if it is expected to be gone by
then, or where it takes none of these places. EASY promises to one gang, the first in the order
that can be given a promise; conservative to as many as the policy's depth. Promises are derived
anew in every cycle: whoever ends early brings them forward, whoever ends late puts them off.
Without backfill, nobody starts on nodes that a gang before it in the order could use.

Two bounds keep a gang from waiting for ever on jobs whose end nobody knows, or lied about:
after the policy's patience it gets a claim if no promise can be made to it, after the
starvation bound in any case. A claim is a promise from now on: of the tasks that run, those
that stand in its way on the nodes where fewest do are assumed to end, and nobody behind it
may start where it will. Every end among them brings the job closer and no start sets it back.
"""

import numpy as np

from scheduler.core.draft import Draft, Promise
from scheduler.core.holdings import (
    Holdings,
    MostTasks,
    amounts_by_node,
    exodus,
    holdings_of,
    in_turn,
)
from scheduler.core.model import JobId, JobKind, TaskPhase
from scheduler.core.needs import least_of
from scheduler.core.node_columns import BoolColumn, FloatColumn, Rows
from scheduler.core.placement import (
    Member,
    Shortfall,
    Want,
    could_place,
    place_gang,
    places_of,
)
from scheduler.core.ports import Backfilling, Policy
from scheduler.core.preemption import cheapest_subtrees
from scheduler.core.profile import Profile
from scheduler.core.space import Booked, Space
from scheduler.core.subtrees import subtrees

TRIES = 64
"""Gangs for which a cycle looks into the future, about 10 ms each on 5,000 nodes."""


class Backfill:
    """The promises of one cycle."""

    def __init__(self, draft: Draft, policy: Policy) -> None:
        self._draft = draft
        self._policy = policy
        depths = {
            Backfilling.NONE: 0,
            Backfilling.EASY: 1,
            Backfilling.CONSERVATIVE: policy.backfill_depth,
        }
        self._n_left = depths[policy.backfill]
        self._n_tries = TRIES
        self._never: set[tuple[Want, ...]] = set()  # fit at no moment that can be foreseen
        self._profile: Profile | None = None  # made when somebody is blocked
        self._n_gone = 0  # evictions that it knows of
        self._claims = _Claims(draft)
        self.claimed: int | None = None  # the job row that has the claim

    def ends_s(self, rows: Rows) -> FloatColumn:
        """Return when jobs that start now should be gone, with the spread of the estimate."""
        ends_s: FloatColumn = (
            self._draft.snapshot.now_s + self._draft.snapshot.jobs.longest_run_s[rows]
        )
        return ends_s

    def keep_places(self, row: int, wants: tuple[Want, ...]) -> bool:
        """Promise places to the job of a row, which fits nowhere; return whether there are any.

        Also if nobody who comes later in the order is kept from anything by it.
        """
        if self._policy.backfill is Backfilling.NONE:
            return self._close(row, least_of(wants))
        if self.claimed is not None and not self._n_left:
            return False
        musts = least_of(wants)
        waited_s = self._waited_s(row)
        promise = None
        if waited_s >= self._policy.starvation_s:
            promise = self._claim(row, musts)
        promise = promise or self._promise(row, musts)
        if promise is None and waited_s >= self._policy.patience_s:
            promise = self._claim(row, musts)
        if promise is not None:
            self._draft.promise(promise)
        return promise is not None

    def waits_s(self, row: int, wants: tuple[Want, ...]) -> float:
        """Return how long a job that fits nowhere has to wait, if nobody makes room for it.

        If nobody knows, as long again as it has waited already.
        """
        promise = self._profiled(row, least_of(wants))
        if promise is not None:
            return promise.start_s - self._draft.snapshot.now_s
        return self._waited_s(row)

    def is_overdue(self, row: int) -> bool:
        """Return whether a job has waited for longer than the policy has patience."""
        return self._waited_s(row) >= self._policy.patience_s

    def could_ever_fit(self, row: int, wants: tuple[Want, ...]) -> bool:
        """Return whether a gang fits, or would if enough of those who run had ended.

        False, too, once a cycle has looked at enough of them.
        """
        musts = least_of(wants)
        if could_place(self._draft.now, musts):
            return True
        if not self._n_tries:
            return False
        self._n_tries -= 1
        return self._claims.claim(row, musts) is not None

    def foresee(self, row: int, wants: tuple[Want, ...]) -> None:
        """Promise places to the job of a row, if it has none, however many others have some."""
        if all(promise.row != row or not promise.places for promise in self._draft.promises):
            self._n_left += 1
            promise = self._promise(row, least_of(wants))
            if promise is not None:
                self._draft.promise(promise)

    def expected_start_at_s(self) -> dict[JobId, float]:
        """Return when the jobs with promises should start, as far as that is known."""
        job_at = self._draft.snapshot.job_at
        return {
            job_at(promise.row).id: promise.start_s
            for promise in self._draft.promises
            if promise.places and promise.row != self.claimed
        }

    def why(self, wants: tuple[Want, ...]) -> str:
        """Return for whom places are kept that the job, which fits nowhere, could have."""
        promises = self._draft.met()
        if not promises or not could_place(self._draft.as_if_unpromised(), wants):
            return ""
        first = min(promises, key=lambda promise: promise.row != self.claimed)
        job_id = self._draft.snapshot.job_at(first.row).id
        if not first.places:
            return f"job {job_id} goes first"
        if first.row == self.claimed:
            return f"places are kept for job {job_id}, which waits longest"
        wait_s = first.start_s - self._draft.snapshot.now_s
        return f"places are kept for job {job_id}, expected to start in {wait_s:.0f} s"

    def moments_s(self, rows: Rows) -> FloatColumn:
        """Return when time alone may change what is kept for these rows, which fit nowhere."""
        jobs = self._draft.snapshot.jobs
        waits_since_s = np.maximum(jobs.pending_since_s[rows], jobs.eligible_at_s[rows])
        return np.concatenate(
            [
                waits_since_s + self._policy.patience_s,
                waits_since_s + self._policy.starvation_s,
                [promise.start_s for promise in self._draft.promises],
            ]
        )

    def _waited_s(self, row: int) -> float:
        snapshot = self._draft.snapshot
        pending_since_s = float(snapshot.jobs.pending_since_s[row])
        return snapshot.now_s - max(pending_since_s, float(snapshot.jobs.eligible_at_s[row]))

    def _claim(self, row: int, wants: tuple[Want, ...]) -> Promise | None:
        """Return the claim of this cycle, if nobody has it."""
        claim = self._claims.claim(row, wants) if self.claimed is None else None
        if claim is not None:
            self.claimed = row
        return claim

    def _close(self, row: int, wants: tuple[Want, ...]) -> bool:
        """Close the nodes that the gang could use, unless it can never have enough of them."""
        draft = self._draft
        closed = {node for promise in draft.promises for node in promise.nodes}
        could = np.logical_or.reduce([draft.now.could_take(want.shape) for want in wants])
        nodes = set(np.flatnonzero(could).tolist()) - closed
        if not nodes or self._claims.claim(row, wants) is None:
            return False
        books = draft.copy_of_later()
        books.close(nodes)
        draft.promise(Promise(row, draft.snapshot.now_s, [], books, nodes))
        return True

    def _promise(self, row: int, wants: tuple[Want, ...]) -> Promise | None:
        if not self._n_left or not self._n_tries or wants in self._never:
            return None
        self._n_tries -= 1
        promise = self._profiled(row, wants)
        if promise is None:
            self._never.add(wants)
        else:
            self._n_left -= 1
        return promise

    def _profiled(self, row: int, wants: tuple[Want, ...]) -> Promise | None:
        """Return the places that the job gets first if everybody ends as expected."""
        draft = self._draft
        n_gone = int(np.count_nonzero(draft.is_evicted))
        if self._profile is None or self._n_gone != n_gone:
            self._profile, self._n_gone = Profile(draft), n_gone
        run_s = float(draft.snapshot.jobs.longest_run_s[row])
        return self._profile.promise(row, wants, run_s)


class _Claims:
    """Places for gangs that no foreseeable end makes room for."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._without_hope: set[tuple[Want, ...]] = set()  # no end of tasks would help them
        self._running: Holdings | None = None  # made when somebody is due
        self._held: Holdings | None = None  # with the first `n_seen` places of this draft
        self._n_seen = 0
        self._most: MostTasks | None = None
        self._most_without: Holdings | None = None

    def claim(self, row: int, wants: tuple[Want, ...]) -> Promise | None:
        """Return a promise from now on; None: not even all ends would make room."""
        draft = self._draft
        if wants in self._without_hope:
            return None
        others = [place for promise in draft.promises for place in promise.places]
        found = self._after_the_others(wants, others) if self._could_fit(wants) else None
        if found is None:
            self._without_hope.add(wants)
            return None
        space, members = found
        now_s = draft.snapshot.now_s
        for promise in draft.promises:
            if promise.start_s > now_s:
                space.give_back(promise.places)
        places = [Booked(row, *place) for place in places_of(members)]
        return Promise(row, now_s, places, space, {place.node for place in places})

    def _could_fit(self, wants: tuple[Want, ...]) -> bool:
        """Return whether there is room once all tasks have ended, as far as counting tells."""
        held, space = self._holdings(), self._draft.books_of_later()
        if self._most is None or self._most_without is not held or not self._most.is_of(space):
            gone = amounts_by_node(held.node, held.amount, len(space.version))
            self._most, self._most_without = MostTasks(space, gone), held
        return all(self._most.of(want.shape) >= len(want.must) for want in wants)

    def _after_the_others(
        self, wants: tuple[Want, ...], others: list[Booked]
    ) -> tuple[Space, list[Member]] | None:
        """Return books on which enough tasks have ended, and the places of the gang there."""
        space = self._draft.copy_of_later()
        space.take_again(others)
        domain = subtrees(space, wants[0].near) if wants[0].near is not None else None
        if domain is None:
            return self._on_books(wants, space)
        needs = [(want, len(want.must)) for want in wants]
        for _, nodes in cheapest_subtrees(self._holdings(), space, needs, domain):
            space = self._draft.copy_of_later()
            space.take_again(others)
            with space.focused(nodes):
                found = self._on_books(wants, space)
            if found is not None:
                return found
        return None

    def _on_books(
        self, wants: tuple[Want, ...], space: Space
    ) -> tuple[Space, list[Member]] | None:
        """Return the books once enough tasks there have ended, and the places of the gang."""
        held = self._holdings()
        orders = [exodus(held, space, want.shape, len(want.must)) for want in wants]
        found = [order for order in orders if order is not None]
        if len(found) < len(orders):
            return None
        for rows in in_turn(found):
            self._release(space, list(rows))
            members = place_gang(space, wants)
            if not isinstance(members, Shortfall):
                return space, members
        return None

    def _release(self, space: Space, rows: list[int]) -> None:
        """Book the jobs as gone, also those that only start now or later."""
        for row in rows:
            # What stops already is gone from the later books.
            tasks = self._draft.snapshot.jobs.tasks[row]
            staying = [task for task in tasks if task.phase is not TaskPhase.STOPPING]
            self._draft.release(space, row, staying)
        gone = set(rows)
        space.give_back([place for place in self._draft.booked if place.row in gone])

    def _holdings(self) -> Holdings:
        """Return what will be free one day, oldest jobs first: every holder weighs the same."""
        draft, jobs = self._draft, self._draft.snapshot.jobs
        if self._running is None:
            self._running = holdings_of(draft)
        if self._held is None or self._n_seen < len(draft.booked):
            n_rows = len(jobs.jobs)
            rank = np.empty(n_rows, np.intp)
            rank[np.argsort(jobs.sequence, kind="stable")] = np.arange(n_rows)
            held = self._running.and_of(draft.booked)
            self._held = held.of(self._will_end(held)).ordered(rank, np.ones(n_rows))
            self._n_seen = len(draft.booked)
        return self._held

    def _will_end(self, held: Holdings) -> BoolColumn:
        """Return which job rows end by themselves: all but services without an end in sight."""
        snapshot = self._draft.snapshot
        will_end = np.isfinite(snapshot.jobs.run_s)
        for row in np.unique(held.row[~will_end[held.row]]).tolist():
            will_end[row] = snapshot.job_at(row).spec.kind is not JobKind.INFERENCE
        return will_end & ~self._draft.is_evicted
