"""One decision: who starts where, who stops, and why the others wait.

`decide` is a pure function of a snapshot and a policy. It works on one draft, so that every
step sees what the steps before it decided:

1. stop what must stop: time limits, drained nodes;
2. let gangs go on that were stopped to be resized (`elastic`);
3. in a tree of queues, let those have their places first for whom others stopped;
4. in the policy's order, for each waiting job: start it on what is free; or hold its place on
   what others are giving up; or shrink others for it (`shrinking`); or stop others; or keep
   places for it until it fits (`backfill`) and say why it waits;
5. let elastic jobs grow into what nobody who waits could use.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scheduler.core.backfill import Backfill
from scheduler.core.books import Books
from scheduler.core.defragmentation import Defragmentation, in_turn, keep_for
from scheduler.core.elastic import go_on_resized, grow, resize_of
from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.leaving import leaving
from scheduler.core.model import (
    Job,
    JobId,
    JobKind,
    JobPhase,
    JobSpec,
    StopCause,
    Task,
)
from scheduler.core.needs import least_of
from scheduler.core.node_columns import FloatColumn, Rows
from scheduler.core.placement import (
    Member,
    Shortfall,
    Want,
    hold_later,
    on_types,
    placement_of,
    shortfall,
    spot_of,
    start_beside,
    start_now,
    wants_of,
)
from scheduler.core.plan import Cause, Eviction, Placement, Plan, Resize, Unplaced
from scheduler.core.ports import Policy
from scheduler.core.preemption import Preemption
from scheduler.core.queue_policies import round_of
from scheduler.core.queue_turns import Turns
from scheduler.core.quotas import Excess, Quotas
from scheduler.core.reasons import why_not_yet, why_unplaced
from scheduler.core.reclaim import Reclaim, Room
from scheduler.core.shrinking import Cut, Shrinking
from scheduler.core.sizes import resized, wants_sized
from scheduler.core.snapshot import Snapshot
from scheduler.core.space import Spot
from scheduler.core.turnout import Turnout, all_running

BEFORE_A_WAVE = 16
"""Who waits longer and must not fit into what a wave frees: so many are looked at."""

FORESEEN = 64
"""How far down the order starts are foreseen on demand."""

Right = tuple[int, int, int]
"""What makes jobs alike: gang, queue and whom they may stop."""

DRY_RUN_ID = JobId("dry-run")
"""The id of the hypothetical job in the plan of a dry run."""


# Looked up once: on its class a member takes five times as long to find (CPython 3.11).
_PENDING = PHASE_CODE[JobPhase.PENDING]
_PREEMPTED = StopCause.PREEMPTED


def decide(
    snapshot: Snapshot,
    policy: Policy,
    *,
    books: Books | None = None,
    gives_reasons: bool = True,
) -> Plan:
    """Return everything to be done now, and a reason for every job that is left waiting.

    Who decides again and again on snapshots of one engine may keep `books`, which spare work
    that was done before. Who does not read reasons may go without: they take as long as the
    decision itself. Neither changes what is decided.
    """
    turnout = Turnout.of(snapshot, policy)
    if not gives_reasons and turnout.is_idle(snapshot):
        return Plan(
            now_s=snapshot.now_s,
            wake_at_s=turnout.wake_at_s(snapshot, all_running(snapshot)),
            granted=turnout.turn.granted if turnout.turn is not None else {},
        )
    return _Cycle(snapshot, policy, turnout, books=books, gives_reasons=gives_reasons).run()


def dry_run(snapshot: Snapshot, policy: Policy, spec: JobSpec) -> Plan:
    """Return the plan that would be made now if the job had just been submitted.

    Its id in the plan is `DRY_RUN_ID`; if it would wait, the plan says when it should start,
    as far as that can be foreseen. An array counts as one element. Raises InvalidInput if the
    queue does not exist.
    """
    hypothesis = as_if_submitted(snapshot, spec)
    cycle = _Cycle(hypothesis, policy, Turnout.of(hypothesis, policy))
    plan = cycle.run()
    start_s = cycle.foresee(DRY_RUN_ID)
    if start_s is not None:
        starts_s = {**plan.expected_start_at_s, DRY_RUN_ID: start_s}
        plan = replace(plan, expected_start_at_s=starts_s)
    if not spec.suspended:
        return plan
    held = why_not_yet(hypothesis, len(hypothesis.jobs.jobs) - 1)
    assert held is not None
    return replace(plan, unplaced={**plan.unplaced, DRY_RUN_ID: held})


def as_if_submitted(snapshot: Snapshot, spec: JobSpec) -> Snapshot:
    """Return a snapshot in which the job `DRY_RUN_ID` waits, too."""
    last = int(snapshot.jobs.sequence.max(initial=0))
    job = Job(id=DRY_RUN_ID, spec=spec, sequence=last + 1, submitted_at_s=snapshot.now_s)
    return snapshot.with_job(job)


def n_ahead(snapshot: Snapshot, policy: Policy, job_id: JobId) -> int:
    """Return how many waiting jobs the policy serves before that one; 0 if it may not start."""
    turn = round_of(snapshot, policy)
    rule = policy.order if turn is None else turn.order
    waiting = snapshot.waiting_rows()
    order = rule(snapshot, waiting[snapshot.may_start(waiting)])
    ahead = np.flatnonzero([snapshot.job_at(row).id == job_id for row in order.tolist()])
    return int(ahead[0]) if len(ahead) else 0


def explain(snapshot: Snapshot, policy: Policy, job_id: JobId) -> Unplaced | None:
    """Return why a job waits, as of this snapshot; None if nothing holds it back."""
    jobs = snapshot.jobs
    suspended = np.flatnonzero(jobs.phase == PHASE_CODE[JobPhase.SUSPENDED])
    for row in [*snapshot.waiting_rows().tolist(), *suspended.tolist()]:
        if snapshot.job_at(row).id == job_id:
            not_yet = why_not_yet(snapshot, row)
            return not_yet or decide(snapshot, policy).unplaced.get(job_id)
    return None


def expected_start(snapshot: Snapshot, policy: Policy, job_id: JobId) -> float | None:
    """Return when a waiting job should start, None if nobody can tell.

    Also for jobs to which no places are promised yet: as if they were served one by one.
    """
    cycle = _Cycle(snapshot, policy, Turnout.of(snapshot, policy))
    cycle.run()
    return cycle.foresee(job_id)


@dataclass(slots=True)
class _Failures:
    """What failed in a cycle, for jobs that see the same books."""

    no_room: dict[int, Unplaced] = field(default_factory=dict)  # by gang
    no_hold: dict[int, int] = field(default_factory=dict)  # stops when that was tried
    no_victims: set[Right] = field(default_factory=set)  # by right


class _Listed:
    """The waiting in the order in which they are served, and who need not be asked."""

    def __init__(
        self, snapshot: Snapshot, rows: Rows, *, ends_s: FloatColumn, joining: Container[int]
    ) -> None:
        jobs = snapshot.jobs
        self._ends_s = ends_s
        self._joining = joining
        self._passed_over: set[tuple[Right, int]] = set()  # with the tier they see
        self.rows: list[int] = rows.tolist()
        self.ends_s: list[float] = ends_s.tolist()
        self.is_pending: list[bool] = (jobs.phase[rows] == _PENDING).tolist()
        # Among equals of a priority some may stop others, and some may not.
        claim = jobs.priority[rows] * 2 + jobs.may_preempt[rows]
        columns = jobs.gang[rows].tolist(), jobs.queue[rows].tolist(), claim.tolist()
        self.rights: list[Right] = list(zip(*columns, strict=True))
        self.tiers = [0] * len(rows)

    def consider_all(self, starts_s: list[float]) -> None:
        """Pass over nobody any more: the books have changed, or what is promised."""
        self._passed_over.clear()
        self.tiers = np.searchsorted(np.array(starts_s), self._ends_s).tolist()

    def pass_over_alike(self, place: int) -> None:
        """Pass over all who come later, are alike and see the same books."""
        self._passed_over.add((self.rights[place], self.tiers[place]))

    def is_passed_over(self, place: int) -> bool:
        """Return whether a job before this one has failed that is alike."""
        is_alike = (self.rights[place], self.tiers[place]) in self._passed_over
        return is_alike and self.is_pending[place] and self.rows[place] not in self._joining


UNTOLD = Unplaced(cause=Cause.GANG)
"""The reason of those whose reason nobody wants to know."""

UNWANTED = Unplaced(
    cause=Cause.SUSPENDED, detail="no tasks of it are wanted: `lepton update` says how many"
)


class _Cycle:
    """One run of `decide`."""

    def __init__(
        self,
        snapshot: Snapshot,
        policy: Policy,
        turnout: Turnout,
        *,
        books: Books | None = None,
        gives_reasons: bool = True,
    ) -> None:
        self._gives_reasons = gives_reasons
        self._turnout, self._round = turnout, turnout.turn
        if self._round is not None:
            order, may_preempt = self._round.order, self._round.may_preempt
            policy = replace(policy, order=order, may_preempt=may_preempt)
        self._snapshot = snapshot
        self._policy = policy
        books = books or Books()
        self._draft = books.draft_of(snapshot, policy.score, policy.levels)
        self._wants, self._narrowed = books.wants_of(snapshot)
        are_alike = self._round is None or self._round.are_equals_alike
        self._preemption = Preemption(
            self._draft, policy.may_preempt, are_equals_alike=are_alike
        )
        self._placements: list[Placement] = []
        self._evictions: list[Eviction] = []
        self._resizes: list[Resize] = []
        self._makes_room_for: dict[JobId, None] = {}
        self._n_stops = 0  # jobs of which anything was asked to stop, time and again
        self._unplaced: dict[JobId, Unplaced] = {}
        # Equal gangs fail alike, and what is free only shrinks within a cycle: what failed once
        # is not tried again. Whether others may be stopped for it depends on who asks, too.
        # What jobs see depends on how many promises to others they meet.
        self._failures: dict[int, _Failures] = {}
        self._failed = self._failures[0] = _Failures()
        # None: no queue is guaranteed anything, limited, bound, or weighs more than another.
        self._quotas = Quotas(snapshot) if snapshot.tree.is_governed else None
        if self._quotas is not None:
            self._reclaim = Reclaim(self._draft, self._quotas, policy.may_preempt)
        self._shrinking = Shrinking(
            self._draft,
            self._quotas,
            policy.may_preempt,
            services_only=self._round is not None and self._round.sizes_jobs,
        )
        self._shrunk_for: dict[int, list[JobId]] = {}  # by the row of a gang
        self._seated: set[int] = set()  # rows that were resized, and have their places
        self._started: dict[int, list[Member]] = {}  # elastic ones
        self._beside = self._round.beside if self._round is not None else {}
        self._hosts = frozenset(self._beside.values())
        self._spots: dict[int, Spot] = {}  # of hosts that were placed
        self._over_quota: dict[tuple[int, int], Unplaced] = {}  # by gang and queue
        self._kept_below: set[int] = set()  # queues whose ceilings are kept free for a gang
        self._lacks_room: set[tuple[int, int]] = set()  # those, where nobody's limit is at work
        self._no_quota: dict[Right, int] = {}  # by right: stops by then
        self._variants: dict[tuple[int, tuple[Want, ...]], int] = {}
        self._variant_on: dict[tuple[int, tuple[str, ...]], int] = {}  # by gang and types
        self._backfill = Backfill(self._draft, policy)
        self._without_room: list[int] = []  # job rows that only capacity holds back
        self._short: list[int] = []  # those, and services that lack replicas
        self._retry_at_s = np.inf  # when a resize that does not pay now may do
        # Turns are taken by stopping jobs anyway: who has one need not move.
        may_move = policy.defragments and self._round is None
        self._defragmentation = Defragmentation(self._draft) if may_move else None
        self._unmoved: set[int] = set()  # gangs for which moving others was tried

    def run(self) -> Plan:
        self._stop_what_must_stop()
        levels = self._policy.levels
        placements, self._seated = go_on_resized(self._draft, self._quotas, levels)
        self._placements += placements
        if self._round is not None and self._round.resizes:
            self._resizes += resized(self._draft, self._quotas, self._round)
            self._n_stops += len(self._resizes)
        turnout = self._turnout
        self._serve(in_turn(self._snapshot, turnout.order))
        held_back = turnout.waiting[~turnout.may_start]
        for row in held_back.tolist() if self._gives_reasons else ():
            reason = why_not_yet(self._snapshot, row)
            assert reason is not None
            self._unplaced[self._snapshot.job_at(row).id] = reason
        self._shrink_gangs()
        self._grow()
        return Plan(
            now_s=self._snapshot.now_s,
            placements=tuple(self._placements),
            evictions=tuple(self._evictions),
            resizes=tuple(self._resizes),
            makes_room_for=tuple(self._makes_room_for),
            unplaced=self._unplaced if self._gives_reasons else {},
            expected_start_at_s=self._backfill.expected_start_at_s(),
            wake_at_s=self._wake_at_s(),
            granted=self._round.granted if self._round is not None else {},
            notes=self._notes(),
        )

    def _notes(self) -> dict[JobId, str]:
        if self._round is None or not self._gives_reasons:
            return {}
        notes = self._round.notes.items()
        return {self._snapshot.job_at(row).id: note for row, note in notes}

    def foresee(self, job_id: JobId) -> float | None:
        """Return when a job that `run` left for want of room should start; None: unknown.

        Promises places to all who are served before it, so the draft is of no more use.
        """
        for row in self._without_room[:FORESEEN]:
            known = self._backfill.expected_start_at_s()
            if job_id in known:
                return known[job_id]
            self._backfill.foresee(row, wants_of(self._snapshot, row))
        return self._backfill.expected_start_at_s().get(job_id)

    # Serving the waiting

    def _serve(self, rows: Rows) -> None:
        if self._quotas is not None:
            for row in rows[self._snapshot.jobs.goes_first[rows]].tolist():
                self._serve_first(row)
        ends_s = self._backfill.ends_s(rows)
        listed = _Listed(self._snapshot, rows, ends_s=ends_s, joining=self._beside)
        if self._quotas is None:
            self._serve_in_order(listed)
            return
        turns = Turns(self._quotas, rows) if self._quotas.tree.has_shares else range(len(rows))
        for place in turns:
            self._serve_one(listed, place)

    def _serve_first(self, row: int) -> None:
        """Give a job the places that others left for it, before anybody else may have them."""
        assert self._quotas is not None
        if self._draft.is_ending[row] or row in self._seated:
            return
        self._draft.enter(float(self._backfill.ends_s(np.array([row]))[0]))
        _, wants = self._wanted(row, int(self._snapshot.jobs.gang[row]))
        admitted = self._quotas.admit(row, wants, is_now=True)
        if not isinstance(admitted, Excess) and self._start(row, admitted) is None:
            self._seated.add(row)
            return
        admitted = self._quotas.admit(row, wants, is_now=False)
        if not isinstance(admitted, Excess) and self._hold(row, admitted):
            self._seated.add(row)

    def _serve_in_order(self, listed: "_Listed") -> None:
        """Serve all, but for those who see what others like them failed on: these are left."""
        n_stopped, n_promises = self._n_stops, len(self._draft.promises)
        for place in range(len(listed.rows)):
            if listed.is_passed_over(place):
                self._leave_alike(listed, place)
                continue
            self._serve_one(listed, place)
            if self._n_stops != n_stopped or len(self._draft.promises) != n_promises:
                n_stopped, n_promises = self._n_stops, len(self._draft.promises)
                listed.consider_all([promise.start_s for promise in self._draft.promises])
            elif listed.is_pending[place] and self._is_hopeless(listed.rights[place]):
                listed.pass_over_alike(place)

    def _leave_alike(self, listed: "_Listed", place: int) -> None:
        """Leave a job for which nothing was tried, as others like it failed."""
        row = listed.rows[place]
        self._without_room.append(row)
        if self._gives_reasons:
            failed = self._failures[listed.tiers[place]]
            reason = failed.no_room[listed.rights[place][0]]
            self._unplaced[self._snapshot.job_at(row).id] = reason

    def _serve_one(self, listed: "_Listed", place: int) -> None:
        row, right = listed.rows[place], listed.rights[place]
        if self._draft.is_ending[row] or row in self._seated:
            return
        tier = self._draft.enter(listed.ends_s[place])
        if self._draft.promises:
            self._failed = self._failures.setdefault(tier, _Failures())
        if self._is_over_quota(right):
            self._unplaced[self._snapshot.job_at(row).id] = self._over_quota[right[:2]]
            if right[:2] in self._lacks_room:
                self._without_room.append(row)
        elif not listed.is_pending[place]:
            self._serve_service(row, right)
        elif row in self._beside and self._join(row, self._beside[row]):
            pass
        elif not self._is_hopeless(right):
            self._serve_gang(row, right)
        else:
            self._leave(row, self._failed.no_room[right[0]])

    def _is_hopeless(self, right: Right) -> bool:
        gang = right[0]
        has_failed = gang in self._failed.no_room and right in self._failed.no_victims
        return has_failed and self._failed.no_hold[gang] == self._n_stops

    def _serve_gang(self, row: int, right: Right) -> None:
        """Start a pending job, hold places for it, make room for it, or say why it waits."""
        admitted = self._admitted(row, right)
        if admitted is None:
            return
        gang, wants = admitted
        right = (gang, *right[1:])
        if gang not in self._failed.no_room:
            short = self._start(row, wants)
            if short is not None and not least_of(wants):
                self._unplaced[self._snapshot.job_at(row).id] = UNWANTED
                return
            if short is None or self._hold(row, wants):
                return
            self._failed.no_room[gang] = self._why(short, wants)
        elif self._failed.no_hold[gang] < self._n_stops and self._hold(row, wants):
            return
        self._failed.no_hold[gang] = self._n_stops
        if right not in self._failed.no_victims:
            if self._preempt(row, wants):
                return
            self._failed.no_victims.add(right)
        if self._migrate(row, gang, wants):
            return
        self._leave_with_places(row, wants, self._failed.no_room[gang])

    def _join(self, row: int, other: int) -> bool:
        """Start a job on the GPUs of another, or let it wait for that one to have them.

        Return False if it cannot be there: then it is served like any job.
        """
        job_id = self._snapshot.job_at(other).id
        spot = self._spots.get(other) or spot_of(self._draft, other)
        if spot is None:
            detail = f"has its turn beside {job_id}, once that one has its GPUs"
            self._unplaced[self._snapshot.job_at(row).id] = Unplaced(
                cause=Cause.RELEASE, detail=detail
            )
            return True
        wants = wants_of(self._snapshot, row)
        if self._quotas is not None:
            there = (self._snapshot.nodes.nodes[spot.row].gpu_type,)
            asked = tuple(on_types(want, there) for want in wants)
            if isinstance(self._quotas.admit(row, asked, is_now=True), Excess):
                return False
        member = start_beside(self._draft, row, wants[0], spot)
        if member is None:
            return False
        self._place(row, [member], beside=job_id)
        return True

    def _serve_service(self, row: int, right: Right) -> None:
        """Replace what replicas a running service lacks, as far as they fit."""
        admitted = self._admitted(row, right)
        if admitted is None:
            return
        _, wants = admitted
        short = self._start(row, wants)
        if short is None or self._hold(row, wants):
            return
        reason = self._why(short, wants)
        if not self._preempt(row, wants):
            self._unplaced[self._snapshot.job_at(row).id] = reason
            self._short.append(row)

    # Quota

    def _admitted(self, row: int, right: Right) -> tuple[int, tuple[Want, ...]] | None:
        """Return the gang and wants of a job as far as its queue lets it have them.

        None: it would go over a limit; it was served as that allows.
        """
        gang, wants = self._wanted(row, right[0])
        if self._quotas is None:
            return gang, wants
        admitted = self._quotas.admit(row, wants, is_now=True)
        if isinstance(admitted, Excess):
            self._serve_over_quota(row, right, wants, excess=admitted)
            return None
        if admitted != wants:
            # Placed and failing unlike gangs that quota does not cut down.
            gang = self._variants.setdefault((gang, admitted), -1 - len(self._variants))
        return gang, admitted

    def _wanted(self, row: int, gang: int) -> tuple[int, tuple[Want, ...]]:
        """Return what a job wants in this round, and its gang or a variant of it."""
        is_pending = self._snapshot.jobs.phase[row] == _PENDING
        wants = self._wants.get(gang) if is_pending else None
        if wants is None:
            wants = wants_of(self._snapshot, row)
            if is_pending:
                self._wants[gang] = wants
        if self._round is None:
            return gang, wants
        gpu_types = self._round.gpu_types.get(row)
        size = self._round.sizes.get(row)
        if size and is_pending:
            wants = wants_sized(self._snapshot, row, size)
        if not gpu_types:
            return gang, wants
        if size or not is_pending:
            return self._variant(gang, wants, tuple(on_types(w, gpu_types) for w in wants))
        key = gang, gpu_types
        narrowed = self._narrowed.get(key)
        if narrowed is None:
            narrowed = self._narrowed[key] = tuple(on_types(w, gpu_types) for w in wants)
        variant = self._variant_on.get(key)
        if variant is None:
            variant, _ = self._variant(gang, wants, narrowed)
            self._variant_on[key] = variant
        return variant, narrowed

    def _variant(
        self, gang: int, wants: tuple[Want, ...], cut: tuple[Want, ...]
    ) -> tuple[int, tuple[Want, ...]]:
        """Return the number of a gang that wants something else, unless it is the same."""
        if cut == wants:
            return gang, wants
        return self._variants.setdefault((gang, cut), -1 - len(self._variants)), cut

    def _serve_over_quota(
        self, row: int, right: Right, wants: tuple[Want, ...], *, excess: Excess
    ) -> None:
        """Hold what others of the queue give up, or stop others, or say which limit it is."""
        assert self._quotas is not None
        later = self._quotas.admit(row, wants, is_now=False)
        if not isinstance(later, Excess) and self._hold(row, later):
            return
        if right not in self._failed.no_victims:
            if self._preempt(row, wants):
                return
            self._failed.no_victims.add(right)
        key, is_pending = right[:2], self._snapshot.jobs.phase[row] == _PENDING
        # Beyond what the cluster has, less what is kept: mostly there is no room, either.
        is_at_root = is_pending and excess.row == self._quotas.tree.root
        short = shortfall(self._draft.now, wants) if is_at_root else None
        if short is not None:
            self._lacks_room.add(key)
            self._over_quota[key] = self._why(short, wants)
        elif key not in self._over_quota:
            self._over_quota[key] = self._quotas.why_over(excess, is_now=True)
        if is_pending:
            self._no_quota[right] = self._n_stops
        if short is None:
            self._unplaced[self._snapshot.job_at(row).id] = self._over_quota[key]
            if is_pending:
                self._without_room.append(row)
                self._keep_quota(row, wants, excess)
            return
        self._leave_with_places(row, wants, self._over_quota[key])

    def _keep_quota(self, row: int, wants: tuple[Want, ...], excess: Excess) -> None:
        """Keep what is left below a ceiling for a gang that waits long: it adds up in time."""
        assert self._quotas is not None
        if excess.row in self._kept_below or not self._backfill.is_overdue(row):
            return
        if self._backfill.could_ever_fit(row, wants) and self._quotas.keep_for(
            row, wants, excess
        ):
            self._kept_below.add(excess.row)

    def _is_over_quota(self, right: Right) -> bool:
        """Return whether equal jobs were found over a limit, and nobody was stopped since.

        Within a cycle, what is used now only grows.
        """
        return self._no_quota.get(right) == self._n_stops

    def _leave(self, row: int, reason: Unplaced) -> None:
        self._unplaced[self._snapshot.job_at(row).id] = reason
        self._without_room.append(row)
        self._short.append(row)

    def _leave_with_places(self, row: int, wants: tuple[Want, ...], reason: Unplaced) -> None:
        """Leave a job for which there is no room, and keep places for it if it is its turn."""
        self._leave(row, reason)
        if self._backfill.keep_places(row, wants):
            # For those behind it there is less room now, for this reason.
            self._failures.clear()

    def _why(self, short: Shortfall, wants: tuple[Want, ...]) -> Unplaced:
        if not self._gives_reasons:
            return UNTOLD
        reason = why_unplaced(self._draft.now, short)
        excuse = self._round.excuse if self._round is not None else ""
        more = "; ".join(filter(None, (reason.detail, self._backfill.why(wants), excuse)))
        return replace(reason, detail=more) if more != reason.detail else reason

    def _start(self, row: int, wants: tuple[Want, ...]) -> Shortfall | None:
        """Start the job on what is free; return what was missing if it does not fit."""
        members = start_now(self._draft, row, wants)
        if isinstance(members, Shortfall):
            return members
        self._place(row, members)
        jobs = self._snapshot.jobs
        if jobs.is_elastic[row] and jobs.phase[row] == _PENDING:
            self._started[row] = members
        return None

    def _place(self, row: int, members: list[Member], *, beside: JobId | None = None) -> None:
        placement = placement_of(self._snapshot, row, members, self._policy.levels)
        self._placements.append(replace(placement, beside=beside) if beside else placement)
        if row in self._hosts:
            self._spots[row] = members[0].spot
        if self._quotas is not None:
            self._quotas.book(row, members, is_now=True)

    def _hold(self, row: int, wants: tuple[Want, ...]) -> bool:
        """Hold places that others are giving up; return whether they suffice."""
        if self._draft.later is None:
            return False
        members = hold_later(self._draft, row, wants)
        if isinstance(members, Shortfall):
            return False
        if self._quotas is not None:
            self._quotas.book(row, members, is_now=False)
        keep_for(self._draft, row)
        self._wait_for_release(row)
        return True

    def _migrate(self, row: int, gang: int, wants: tuple[Want, ...]) -> bool:
        """Move others together so that the gang fits, if that is worth it."""
        search = self._defragmentation
        if search is None or search.is_idle or gang in self._unmoved:
            return False
        before = {wants_of(self._snapshot, r): r for r in self._without_room[:BEFORE_A_WAVE]}
        wave = search.move_for(
            row,
            wants,
            saved_s=self._backfill.waits_s(row, wants),
            before=[(r, others) for others, r in before.items()],
        )
        if wave is None:
            self._unmoved.add(gang)
            return False
        if self._quotas is not None:
            self._quotas.book(row, wave.members, is_now=False)
        job_id = self._snapshot.job_at(row).id
        why = (
            f"moves so that {job_id} fits: saves {wave.saved_gpu_s:.0f} GPU-seconds of waiting "
            f"for {wave.cost_gpu_s:.0f} of work and restarts"
        )
        for move in wave.moves:
            self._evict(move.row, move.tasks, StopCause.MIGRATED, why, for_job=job_id)
        self._wait_for_release(row)
        return True

    def _preempt(self, row: int, wants: tuple[Want, ...]) -> bool:
        """Shrink others for a job, or else stop others, at the least cost; hold its places."""
        if not self._snapshot.jobs.may_preempt[row]:
            return False
        if self._quotas is not None and self._reclaim.must_wait(row):
            return False
        cuts = self._shrinking.make_room(row, wants) or self._shrinking.make_room_besides(
            row, wants, lambda cut: self._evict_besides(row, wants, cut)
        )
        if cuts is None:
            return self._evict_for(row, wants) is not None
        for other, cut in cuts.items():
            self._cut(other, cut, self._snapshot.job_at(row).id)
        self._await_room(row)
        return True

    def _cut(self, row: int, cut: Cut, asker: JobId) -> None:
        """Take replicas from a service; a gang is resized once, for all who ask."""
        self._n_stops += 1
        job = self._snapshot.job_at(row)
        if job.spec.kind is not JobKind.INFERENCE:
            self._shrunk_for.setdefault(row, []).append(asker)
            return
        self._evictions.append(
            Eviction(
                job_id=job.id,
                tasks=tuple(task.id for task in cut.tasks),
                cause=StopCause.SCALED_DOWN if cut.is_surplus else _PREEMPTED,
                grace_s=job.spec.grace_s,
                detail=f"makes room for {asker}",
            )
        )

    def _evict_besides(
        self, row: int, wants: tuple[Want, ...], cut: Sequence[int]
    ) -> Room | None:
        self._preemption.forget()
        room = self._evict_for(row, wants, cut)
        self._preemption.forget()
        return room

    def _evict_for(
        self, row: int, wants: tuple[Want, ...], cut: Sequence[int] = ()
    ) -> Room | None:
        room: Room | None
        if self._quotas is None:
            victims = self._preemption.make_room(row, wants)
            room = Room(victims) if victims else None
        else:
            room = self._reclaim.make_room(row, wants, cut)
        if room is None:
            return None
        why = f"makes room for {self._snapshot.job_at(row).id}"
        for victim in room.victims:
            self._evict(victim.row, victim.tasks, _PREEMPTED, why)
        self._await_room(row)
        return room

    def _await_room(self, row: int) -> None:
        """Have a job wait for others to stop, and go first when they have."""
        self._wait_for_release(row)
        if self._quotas is not None:
            self._makes_room_for[self._snapshot.job_at(row).id] = None

    def _wait_for_release(self, row: int) -> None:
        self._unplaced[self._snapshot.job_at(row).id] = Unplaced(
            cause=Cause.RELEASE, detail="its place is held until the tasks there have stopped"
        )

    # Elastic jobs

    def _shrink_gangs(self) -> None:
        for row, askers in self._shrunk_for.items():
            why = f"makes room for {', '.join(dict.fromkeys(askers))}"
            staying = self._shrinking.staying(row)
            self._resizes.append(resize_of(self._snapshot, row, staying, why))

    def _grow(self) -> None:
        """Let elastic jobs have what nobody who waits could use."""
        if self._round is not None and self._round.sizes_jobs:
            return
        short = np.array(self._short, np.intp)
        levels = self._policy.levels
        grown = grow(self._draft, self._quotas, levels, self._started, short=short)
        self._placements = [
            grown.instead.get(placement.job_id, placement) for placement in self._placements
        ]
        self._placements += grown.placements
        self._resizes += grown.resizes
        self._retry_at_s = grown.retry_at_s

    # Stopping

    def _evict(
        self,
        row: int,
        tasks: Iterable[Task],
        cause: StopCause,
        why: str,
        *,
        for_job: JobId | None = None,
    ) -> None:
        tasks = tuple(tasks)
        job = self._snapshot.job_at(row)
        n_staying = sum(t.stop_cause is None for t in self._snapshot.jobs.tasks[row])
        self._n_stops += 1
        self._draft.is_evicted[row] = True
        self._draft.is_ending[row] = len(tasks) == n_staying
        self._evictions.append(
            Eviction(
                job_id=job.id,
                tasks=tuple(task.id for task in tasks),
                cause=cause,
                grace_s=job.spec.grace_s,
                detail=why,
                for_job=for_job,
            )
        )

    def _stop_what_must_stop(self) -> None:
        snapshot, jobs = self._snapshot, self._snapshot.jobs
        is_running = jobs.phase == PHASE_CODE[JobPhase.RUNNING]
        if (is_running & (jobs.deadline_at_s <= snapshot.now_s)).any():
            running = snapshot.running_rows()
            for row in running[jobs.deadline_at_s[running] <= snapshot.now_s].tolist():
                why = "reached its time limit"
                self._stop(row, jobs.tasks[row], StopCause.TIME_LIMIT, why)
        for row in self._round.moves if self._round is not None else ():
            # In a stopped queue it could not go on.
            if snapshot.tree.is_started[jobs.queue[row]] and not self._draft.is_evicted[row]:
                why = "goes on where it is faster"
                self._stop(row, jobs.tasks[row], _PREEMPTED, why)
        for row, tasks, why in leaving(snapshot):
            if not self._draft.is_evicted[row]:
                self._stop(row, tasks, StopCause.DRAINED, why)

    def _stop(self, row: int, tasks: Iterable[Task], cause: StopCause, why: str) -> None:
        asked = [task for task in tasks if task.stop_cause is None]
        if asked:
            self._evict(row, asked, cause, why)
            self._draft.release_later(row, asked)
            if self._quotas is not None:
                self._quotas.release(row, asked)

    def _wake_at_s(self) -> float | None:
        """Return the next moment at which time alone changes the decision."""
        snapshot, jobs = self._snapshot, self._snapshot.jobs
        running = all_running(snapshot)
        others = [
            self._backfill.moments_s(np.array(self._without_room, np.intp)),
            jobs.may_resize_at_s[running[jobs.is_elastic[running]]],
            np.array([self._retry_at_s]),
        ]
        if self._without_room:
            others.append((jobs.started_at_s + jobs.min_runtime_s)[running])
        return self._turnout.wake_at_s(snapshot, running, others)
