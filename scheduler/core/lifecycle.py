"""What happens to a job when its tasks start, end and are asked to stop.

Works on one record at a time and keeps `ClusterState` in step. A gang (training, batch)
lives and dies together; a service (inference) replaces its replicas one by one.
"""

from collections import Counter

from scheduler.core.dependencies import broken_by, count_end
from scheduler.core.dump import OutcomeDump
from scheduler.core.model import (
    MAX_BACKOFF_S,
    MILLI,
    JobId,
    JobKind,
    JobPhase,
    StopCause,
    Task,
    TaskPhase,
)
from scheduler.core.plan import Eviction, Start
from scheduler.core.records import JobRecord, Seat, Stint
from scheduler.core.state import ClusterState
from scheduler.core.transitions import (
    JOB_MOVES,
    TASK_MOVES,
    check_job_move,
    check_task_move,
)

LIVE_OK_S = MAX_BACKOFF_S * 2
"""A replica that ran this long starts its back-off from scratch (Kubernetes: ten minutes)."""


# Looked up once: on its class a member takes five times as long to find (CPython 3.11).
_PENDING = JobPhase.PENDING
_RUNNING = JobPhase.RUNNING
_STOPPING = JobPhase.STOPPING
_TASK_STOPPING = TaskPhase.STOPPING
_TASK_RUNNING = TaskPhase.RUNNING
_TASK_STOPPED = TaskPhase.STOPPED
_TASK_FAILED = TaskPhase.FAILED
_TASK_LOST = TaskPhase.LOST
_INFERENCE = JobKind.INFERENCE
_PREEMPTED = StopCause.PREEMPTED
_MIGRATED = StopCause.MIGRATED
_SCALED_DOWN = StopCause.SCALED_DOWN
_TIME_LIMIT = StopCause.TIME_LIMIT


class Changes:
    """What followed from one event, collected for its outcome."""

    __slots__ = ("evictions", "finished", "is_repeat", "job_ids", "jobs", "stale", "starts")

    def __init__(self) -> None:
        self.job_ids: tuple[JobId, ...] = ()
        self.is_repeat = False
        self.jobs: dict[JobId, None] = {}
        self.finished: list[JobRecord] = []
        self.starts: list[Start] = []
        self.evictions: list[Eviction] = []
        self.stale: list[JobId] = []


class Lifecycle:
    """The moves of jobs and tasks within the observation of one event."""

    __slots__ = ("_at_s", "_changes", "_state")

    def __init__(self, state: ClusterState, changes: Changes, at_s: float) -> None:
        self._state = state
        self._changes = changes
        self._at_s = at_s

    def _moment_s(self, record: JobRecord) -> float:
        """Return when this happens to the job: facts may be late, but time never runs back."""
        return max(self._at_s, record.pending_since_s, record.last_started_at_s)

    # Tasks

    def start(self, record: JobRecord, tasks: list[Task]) -> None:
        """Bind the tasks of one placement, of a pending job or of a service that lacks some."""
        record.attempt += 1
        record.goes_first = False
        if record.phase is _RUNNING and _exceeds_wish(record, tasks):
            self._note_resize(record)
        if record.phase is _PENDING:
            at_s = self._moment_s(record)
            record.waited_before_s += at_s - record.pending_since_s
            record.last_started_at_s = at_s
            record.first_started_at_s = record.first_started_at_s or at_s
            record.checkpoint_at_s = 0.0
            record.tasks.clear()
            record.seats = ()
            record.yields_to = 0
            record.reason = ""
            self._move(record, _RUNNING, "")
        if record.tasks:  # of a service: these take the places of some that ended
            fresh = {(task.id.role, task.id.index) for task in tasks}
            for task_id, old in list(record.tasks.items()):
                if old.phase.is_final and (task_id.role, task_id.index) in fresh:
                    del record.tasks[task_id]
        for task in tasks:
            self._state.bind(record, task)
        nodes = ", ".join(dict.fromkeys(task.node for task in tasks))
        record.note(self._at_s, f"attempt {record.attempt}: {len(tasks)} tasks on {nodes}")
        self._changes.starts.extend(starts_of(self._state, record, tasks))
        self.publish(record)

    def task_started(self, record: JobRecord, task: Task) -> None:
        """Note that a task's process runs."""
        started_at_s = max(self._at_s, task.bound_at_s)
        self._move_task(record, task, task.moved(_TASK_RUNNING, started_at_s=started_at_s))
        record.revision = self._state.revision
        self._state.sync(record)
        self._changes.jobs[record.job.id] = None

    def task_ended(
        self,
        record: JobRecord,
        task: Task,
        *,
        exit_code: int | None,
        signal: int | None,
        is_lost: bool,
        reason: str,
    ) -> None:
        """Release a task's place and let its job go where that leads."""
        if is_lost:
            phase = _TASK_LOST
        elif task.phase is _TASK_STOPPING:
            phase = _TASK_STOPPED
        else:
            phase = TaskPhase.SUCCEEDED if exit_code == 0 else _TASK_FAILED
        ended = task.moved(
            phase,
            ended_at_s=max(self._at_s, task.bound_at_s, task.started_at_s),
            exit_code=exit_code,
            signal=signal,
            reason=reason,
        )
        self._move_task(record, task, ended)
        node = self._state.release(record, task)
        held_s = ended.ended_at_s - ended.bound_at_s
        gpu_s = record.shape_of(task).total_gpu_milli / MILLI * held_s
        if gpu_s:
            record.gpu_s_before += gpu_s
            is_shared = bool(record.job.spec.shared_throughputs)
            stint = Stint(
                gpu_type=node.gpu_type,
                gpu_s=gpu_s,
                from_s=ended.bound_at_s,
                until_s=ended.ended_at_s,
                node=task.node if is_shared else None,
                devices=task.devices if is_shared else (),
            )
            record.received = record.received.plus(stint)
        record.note(self._at_s, f"{task.id} {phase}{_how(ended)}")
        if record.job.spec.kind is _INFERENCE:
            self._after_replica(record, ended)
        else:
            self._after_member(record, ended)

    def _after_member(self, record: JobRecord, task: Task) -> None:
        live = record.live_tasks()
        if record.phase is _STOPPING:
            if live:
                self.publish(record)
            else:
                self._stopped(record)
            return
        if task.phase in {_TASK_FAILED, _TASK_LOST}:
            then = self._after_failure(record, task)
            if live:
                self._stop(record, live, StopCause.GANG_BROKEN, then)
            else:
                self._close_attempt(record, is_work_lost=True)
                self._go(record, then, record.reason)
        elif not live:
            record.exit_code = 0
            self._close_attempt(record, is_work_lost=False)
            self._go(record, JobPhase.SUCCEEDED, "")
        else:
            self.publish(record)

    def _after_replica(self, record: JobRecord, task: Task) -> None:
        live = record.live_tasks()
        if record.phase is _STOPPING:
            if live:
                self.publish(record)
            else:
                self._stopped(record)
            return
        if task.phase in {_TASK_FAILED, TaskPhase.SUCCEEDED}:
            ran_s = task.ended_at_s - (task.started_at_s or task.bound_at_s)
            record.failures += task.phase is _TASK_FAILED
            record.streak = 1 if ran_s >= LIVE_OK_S else record.streak + 1
            record.eligible_at_s = self._at_s + _backoff_s(record)
            record.reason = f"{task.id.role}-{task.id.index} ended{_how(task)}; it is replaced"
        elif task.phase is _TASK_LOST:
            self._delay_after_loss(record, task)
        del record.tasks[task.id]
        if live:
            self.publish(record)
        else:
            self._close_attempt(record, is_work_lost=False)
            self._go(record, _PENDING, record.reason)

    def _delay_after_loss(self, record: JobRecord, task: Task) -> None:
        """Let a job that is lost as soon as it starts, again and again, wait in between."""
        if task.ended_at_s - task.bound_at_s >= record.job.spec.backoff_s:
            return
        record.streak += 1
        if record.streak > 1:
            record.eligible_at_s = self._at_s + _backoff_s(record)

    def _after_failure(self, record: JobRecord, task: Task) -> JobPhase:
        """Return where a gang goes after a member ended badly: another try, or the end."""
        who = f"{task.id.role}-{task.id.index}"
        if task.phase is _TASK_LOST:  # not the job's own fault: it costs no retry
            record.reason = f"{who} was lost{_how(task)}"
            self._delay_after_loss(record, task)
            return _PENDING
        record.failures += 1
        record.streak += 1
        record.reason = f"{who} failed{_how(task)}"
        spec = record.job.spec
        if record.failures <= spec.max_retries:
            record.eligible_at_s = self._at_s + _backoff_s(record)
            record.reason += f"; retry {record.failures} of {spec.max_retries}"
            return _PENDING
        code = task.exit_code if task.exit_code is not None else 128 + (task.signal or 0)
        record.exit_code = code if task.exit_code is not None or task.signal else None
        return JobPhase.FAILED

    # Stopping

    def evict(
        self,
        record: JobRecord,
        tasks: list[Task],
        cause: StopCause,
        why: str,
        *,
        yields_to: int = 0,
    ) -> None:
        """Ask running tasks to stop; a gang goes as a whole and `then` follows the cause."""
        record.yields_to = yields_to
        if cause is _PREEMPTED or cause is _MIGRATED:
            record.preemptions += 1
        if cause is _SCALED_DOWN:
            self._note_resize(record)
        live = record.live_tasks()
        if record.job.spec.kind is _INFERENCE and cause is not _TIME_LIMIT:
            going = {task.id for task in tasks} | {
                t.id for t in live if t.phase is _TASK_STOPPING
            }
            if any(task.id not in going for task in live):
                self._ask(record, tasks, cause, why)
                self.publish(record)
                return
        then = JobPhase.TIMED_OUT if cause is _TIME_LIMIT else _PENDING
        record.reason = why or f"{cause}".replace("_", " ")
        self._stop(record, live, cause, then, why)

    def await_room(self, record: JobRecord) -> None:
        """Note that others make room for a job: it goes first until it starts."""
        record.goes_first = True
        self.publish(record)

    def stop(self, record: JobRecord, cause: StopCause, then: JobPhase, reason: str) -> None:
        """End whatever the job does and take it to `then`, at once if it holds nothing."""
        record.reason = reason
        record.seats = ()
        live = record.live_tasks()
        if record.phase is _STOPPING:
            record.stop_cause, record.then = cause, then
            record.note(self._at_s, f"{cause}: {then} follows")
            self.publish(record)
        elif live:
            self._stop(record, live, cause, then, reason)
        else:
            self._go(record, then, reason)

    def restart(self, record: JobRecord, seats: tuple[Seat, ...], why: str) -> None:
        """Stop a running gang so that it goes on with another number of tasks."""
        self._note_resize(record)
        record.seats = seats
        record.reason = why
        self._stop(record, record.live_tasks(), StopCause.RESIZED, _PENDING, why)

    def _note_resize(self, record: JobRecord) -> None:
        record.resizes += 1
        record.resized_at_s = self._at_s

    def resize(self, record: JobRecord) -> None:
        """Bring a running job to the counts that its spec now has."""
        counts = {role.name: role.count for role in record.job.spec.roles}
        live = [t for t in record.live_tasks() if t.phase is not _TASK_STOPPING]
        record.seats = ()
        if record.phase is not _RUNNING:
            self.publish(record)
        elif record.job.spec.kind is _INFERENCE:
            surplus = [task for task in live if task.id.index >= counts[task.id.role]]
            if surplus:
                self._ask(record, surplus, _SCALED_DOWN, "")
            self.publish(record)
        else:
            record.reason = "restarts with another number of tasks"
            self._stop(record, live, StopCause.RESIZED, _PENDING)

    def _stop(
        self,
        record: JobRecord,
        live: list[Task],
        cause: StopCause,
        then: JobPhase,
        why: str = "",
    ) -> None:
        record.stop_cause, record.then = cause, then
        self._move(record, _STOPPING, f"{cause}: {then} follows")
        self._ask(record, live, cause, why)
        self.publish(record)

    def _ask(self, record: JobRecord, tasks: list[Task], cause: StopCause, why: str) -> None:
        asked = [task for task in tasks if task.phase is not _TASK_STOPPING]
        for task in asked:
            self._move_task(record, task, task.moved(_TASK_STOPPING, stop_cause=cause))
        if asked:
            self._changes.evictions.append(
                Eviction(
                    job_id=record.id,
                    tasks=tuple(task.id for task in asked),
                    cause=cause,
                    grace_s=record.job.spec.grace_s,
                    detail=why,
                )
            )

    def _stopped(self, record: JobRecord) -> None:
        then = record.then
        assert then is not None
        record.stop_cause = record.then = None
        is_service = record.job.spec.kind is _INFERENCE
        self._close_attempt(record, is_work_lost=not is_service)
        self._go(record, then, record.reason)

    def _close_attempt(self, record: JobRecord, *, is_work_lost: bool) -> None:
        at_s = self._moment_s(record)
        record.ran_before_s += at_s - record.last_started_at_s
        if is_work_lost:
            saved_at_s = max(record.checkpoint_at_s, record.last_started_at_s)
            gpu_milli = record.gpu_milli_of(record.tasks.values())
            record.lost_gpu_s += gpu_milli / MILLI * max(at_s - saved_at_s, 0.0)

    # Phases

    def _go(self, record: JobRecord, phase: JobPhase, reason: str) -> None:
        """Take a job that holds nothing to another phase."""
        at_s = self._moment_s(record)
        if phase is not record.phase:
            if record.phase is _PENDING:
                record.waited_before_s += at_s - record.pending_since_s
            self._move(record, phase, reason)
        if phase is _PENDING:
            record.pending_since_s = at_s
        else:
            record.goes_first = False
        record.reason = reason
        if phase.is_final:  # its row goes, so there is nothing to write there
            record.revision = self._state.revision
            self._changes.jobs[record.job.id] = None
            self._finish(record)
        else:
            self.publish(record)

    def resume(self, record: JobRecord) -> None:
        """Let a suspended job wait again, or one that is on its way there."""
        if record.phase is _STOPPING:
            record.then = _PENDING
            self.publish(record)
        else:
            self._go(record, _PENDING, "")

    def _finish(self, first: JobRecord) -> None:
        """Bury a job, and every job whose dependency on it can never hold now."""
        state = self._state
        doomed = [first]
        while doomed:
            record = doomed.pop()
            record.ended_at_s = self._moment_s(record)
            self._changes.finished.append(record)
            state.drop_job(record)
            for ended in count_end(state, record, self._at_s):
                for waiting in state.dependents.pop(ended.job_id, ()):
                    dependent = state.records.get(waiting)
                    if dependent is None or dependent.phase.is_final:
                        continue
                    if not self._goes_on(dependent, ended):
                        doomed.append(dependent)

    def _goes_on(self, record: JobRecord, ended: OutcomeDump) -> bool:
        """Let a job wait on without what has ended, or cancel it; return which."""
        broken = broken_by(record, ended)
        if broken is None:
            self._state.n_unmet[record.id] -= 1
        else:
            if record.phase is _PENDING:
                record.waited_before_s += self._moment_s(record) - record.pending_since_s
            record.reason = f"its dependency {broken.kind} {broken.on} cannot hold"
            self._move(record, JobPhase.CANCELLED, record.reason)
        self.publish(record)
        return broken is None

    def _move(self, record: JobRecord, phase: JobPhase, why: str) -> None:
        if phase not in JOB_MOVES[record.phase]:
            check_job_move(record.id, record.phase, phase, history=record.history)
        record.phase = phase
        record.note(self._at_s, f"{phase}: {why}" if why else str(phase))

    @staticmethod
    def _move_task(record: JobRecord, task: Task, moved: Task) -> None:
        if moved.phase not in TASK_MOVES[task.phase]:
            check_task_move(task.id, task.phase, moved.phase, history=record.history)
        record.tasks[task.id] = moved

    def publish(self, record: JobRecord) -> None:
        """Publish the record: its revision, its row, and that its view changed."""
        record.revision = self._state.revision
        self._state.sync(record)
        self._changes.jobs[record.job.id] = None


def starts_of(state: ClusterState, record: JobRecord, tasks: list[Task]) -> list[Start]:
    """Return what an executor needs to start the tasks, or to find them again."""
    masters = {t.id.attempt: t.node for t in record.tasks.values() if t.rank == 0}
    starts = []
    for task in tasks:
        master = state.node(masters.get(task.id.attempt, task.node))
        address = master.address if master is not None else ""
        starts.append(Start(task, record.job, address))
    return starts


def _exceeds_wish(record: JobRecord, tasks: list[Task]) -> bool:
    """Return whether a service gets more replicas with these tasks than it wants."""
    counts = Counter(task.id.role for task in [*record.live_tasks(), *tasks])
    return any(counts[role.name] > role.count for role in record.job.spec.roles)


def _backoff_s(record: JobRecord) -> float:
    doublings = min(max(record.streak - 1, 0), 32)
    return min(record.job.spec.backoff_s * 2.0**doublings, MAX_BACKOFF_S)


def _how(task: Task) -> str:
    if task.exit_code is not None:
        how = f" with exit code {task.exit_code}"
    elif task.signal is not None:
        how = f" by signal {task.signal}"
    else:
        how = ""
    return f"{how} ({task.reason})" if task.reason else how
