"""One decision: who starts where, who stops, and why the others wait.

`decide` is a pure function of a snapshot and a policy. It works on one draft, so that every
step sees what the steps before it decided:

1. stop what must stop: time limits, drained nodes;
2. in the policy's order, for each waiting job: start it on what is free; or hold its place on
   what others are giving up; or stop others for it; or say why it waits.
"""

from collections.abc import Iterable

import numpy as np

from scheduler.core.draft import Draft
from scheduler.core.model import (
    Job,
    JobId,
    JobKind,
    JobPhase,
    JobSpec,
    NodeName,
    StopCause,
    TaintEffect,
    Task,
)
from scheduler.core.placement import (
    Shortfall,
    Want,
    hold_later,
    placement_of,
    start_now,
    wants_of,
)
from scheduler.core.plan import Cause, Eviction, Placement, Plan, Unplaced
from scheduler.core.ports import Policy
from scheduler.core.preemption import make_room
from scheduler.core.reasons import why_not_yet, why_unplaced
from scheduler.core.snapshot import PHASE_CODE, Snapshot

DRY_RUN_ID = JobId("dry-run")
"""The id of the hypothetical job in the plan of a dry run."""


def decide(snapshot: Snapshot, policy: Policy) -> Plan:
    """Return everything to be done now, and a reason for every job that is left waiting."""
    return _Cycle(snapshot, policy).run()


def dry_run(snapshot: Snapshot, policy: Policy, spec: JobSpec) -> Plan:
    """Return the plan that would be made now if the job had just been submitted.

    Its id in the plan is `DRY_RUN_ID`. An array counts as one element. Raises InvalidInput if
    the queue does not exist.
    """
    last = max((int(s) for s in snapshot.jobs.sequence), default=0)
    job = Job(id=DRY_RUN_ID, spec=spec, sequence=last + 1, submitted_at_s=snapshot.now_s)
    return decide(snapshot.with_job(job), policy)


def explain(snapshot: Snapshot, policy: Policy, job_id: JobId) -> Unplaced | None:
    """Return why a job waits, as of this snapshot; None if nothing holds it back."""
    rows = [row for row, job in enumerate(snapshot.jobs.jobs) if job and job.id == job_id]
    if rows and (reason := why_not_yet(snapshot, rows[0])) is not None:
        return reason
    return decide(snapshot, policy).unplaced.get(job_id)


class _Cycle:
    """One run of `decide`."""

    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self._snapshot = snapshot
        self._policy = policy
        self._draft = Draft(snapshot, policy.score)
        self._placements: list[Placement] = []
        self._evictions: list[Eviction] = []
        self._unplaced: dict[JobId, Unplaced] = {}

    def run(self) -> Plan:
        self._stop_what_must_stop()
        waiting = self._snapshot.waiting_rows()
        may_start = self._snapshot.may_start(waiting)
        self._serve(self._policy.order(self._snapshot, waiting[may_start]).tolist())
        for row in waiting[~may_start].tolist():
            reason = why_not_yet(self._snapshot, row)
            assert reason is not None
            self._unplaced[self._snapshot.job_at(row).id] = reason
        return Plan(
            now_s=self._snapshot.now_s,
            placements=tuple(self._placements),
            evictions=tuple(self._evictions),
            unplaced=self._unplaced,
            wake_at_s=self._wake_at_s(),
        )

    # Serving the waiting

    def _serve(self, rows: list[int]) -> None:
        snapshot = self._snapshot
        jobs = snapshot.jobs
        gangs = jobs.gang[rows].tolist()
        is_pending = (jobs.phase[rows] == PHASE_CODE[JobPhase.PENDING]).tolist()
        rights = list(
            zip(gangs, jobs.queue[rows].tolist(), jobs.priority[rows].tolist(), strict=True)
        )
        # Equal gangs fail alike, and space only shrinks within a cycle: what failed once is
        # not tried again. Whether others may be stopped for it depends on who asks, too.
        no_room: dict[int, Unplaced] = {}
        no_victims: set[tuple[int, int, int]] = set()
        for row, gang, is_whole, right in zip(rows, gangs, is_pending, rights, strict=True):
            if is_whole and gang in no_room and right in no_victims:
                self._unplaced[jobs.jobs[row].id] = no_room[gang]  # type: ignore[union-attr]
                continue
            wants = wants_of(snapshot, row)
            reason = no_room.get(gang) if is_whole else None
            if reason is None:
                short = self._place(row, wants)
                if short is None:
                    continue
                reason = why_unplaced(self._draft.now, short)
                if is_whole:
                    no_room[gang] = reason
            if right not in no_victims and self._preempt(row, wants):
                continue
            if is_whole:
                no_victims.add(right)
            self._unplaced[snapshot.job_at(row).id] = reason

    def _place(self, row: int, wants: tuple[Want, ...]) -> Shortfall | None:
        """Start the job now or hold its place; return what was missing if neither works."""
        members = start_now(self._draft, wants)
        if not isinstance(members, Shortfall):
            self._placements.append(placement_of(self._snapshot, row, members))
            return None
        if self._draft.later is not None:
            held = hold_later(self._draft, wants)
            if not isinstance(held, Shortfall):
                self._wait_for_release(row)
                return None
        return members

    def _preempt(self, row: int, wants: tuple[Want, ...]) -> bool:
        victims = make_room(self._draft, row, wants, self._policy.may_preempt)
        job_id = self._snapshot.job_at(row).id
        for victim in victims:
            self._evict(
                victim.row, victim.tasks, StopCause.PREEMPTED, f"makes room for {job_id}"
            )
        if victims:
            self._wait_for_release(row)
        return bool(victims)

    def _wait_for_release(self, row: int) -> None:
        self._unplaced[self._snapshot.job_at(row).id] = Unplaced(
            cause=Cause.RELEASE, detail="its place is held until the tasks there have stopped"
        )

    # Stopping

    def _evict(self, row: int, tasks: Iterable[Task], cause: StopCause, why: str) -> None:
        job = self._snapshot.job_at(row)
        self._evictions.append(
            Eviction(
                job_id=job.id,
                tasks=tuple(task.id for task in tasks),
                cause=cause,
                grace_s=job.spec.grace_s,
                detail=why,
            )
        )

    def _stop_what_must_stop(self) -> None:
        snapshot, jobs = self._snapshot, self._snapshot.jobs
        running = snapshot.running_rows()
        for row in running[jobs.deadline_at_s[running] <= snapshot.now_s].tolist():
            self._stop(row, jobs.tasks[row], StopCause.TIME_LIMIT, "reached its time limit")
        leaving = self._nodes_to_leave()
        if not leaving:
            return
        for row in running.tolist():
            if row not in self._draft.evicted:
                self._drain(row, leaving)

    def _nodes_to_leave(self) -> set[NodeName]:
        """Return the nodes that some tasks must leave: draining ones, and by taints."""
        nodes = self._snapshot.nodes
        kicking = [
            number
            for number, node in enumerate(nodes.kinds)
            if any(taint.effect is TaintEffect.NO_EXECUTE for taint in node.taints)
        ]
        leave = (nodes.is_draining | np.isin(nodes.kind, kicking)) & ~nodes.is_removed
        return {nodes.nodes[row].name for row in np.flatnonzero(leave)}

    def _drain(self, row: int, leaving: set[NodeName]) -> None:
        job = self._snapshot.job_at(row)
        shapes = {role.name: role.shape for role in job.spec.roles}
        nodes = self._snapshot.nodes

        def must_leave(task: Task) -> bool:
            if task.node not in leaving:
                return False
            node_row = nodes.row_of[task.node]
            if nodes.is_draining[node_row] and job.spec.preemptible:
                return True
            tolerations = shapes[task.id.role].tolerations
            return any(
                taint.effect is TaintEffect.NO_EXECUTE
                and not any(toleration.tolerates(taint) for toleration in tolerations)
                for taint in nodes.nodes[node_row].taints
            )

        tasks = self._snapshot.jobs.tasks[row]
        going = [task for task in tasks if task.stop_cause is None and must_leave(task)]
        if going:
            is_service = job.spec.kind is JobKind.INFERENCE
            names = ", ".join(dict.fromkeys(task.node for task in going))
            self._stop(
                row, going if is_service else tasks, StopCause.DRAINED, f"leaves {names}"
            )

    def _stop(self, row: int, tasks: Iterable[Task], cause: StopCause, why: str) -> None:
        asked = [task for task in tasks if task.stop_cause is None]
        if asked:
            self._evict(row, asked, cause, why)
            self._draft.release(self._draft.open_later(), row, asked)
            self._draft.evicted.add(row)

    def _wake_at_s(self) -> float | None:
        """Return the next moment at which time alone changes the decision."""
        snapshot, jobs = self._snapshot, self._snapshot.jobs
        waiting = snapshot.waiting_rows()
        running = snapshot.running_rows()
        moments = np.concatenate([jobs.eligible_at_s[waiting], jobs.deadline_at_s[running]])
        ahead = moments[(moments > snapshot.now_s) & np.isfinite(moments)]
        return float(ahead.min()) if len(ahead) else None
