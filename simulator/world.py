"""The world outside the scheduler: what becomes of jobs once they are told to start or stop.

It takes over what an `Accepted` outcome hands to an executor, and reports what happens as
events, through the engine's one door. How long it takes is the agenda's: between two entries
nothing is touched, and an entry touches only the jobs whose speed it changes.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from math import isnan

from scheduler.core.engine import Engine
from scheduler.core.errors import InvalidInput, InvariantError
from scheduler.core.events import (
    Event,
    JobCancelled,
    JobsSubmitted,
    QueuePut,
    TaskCheckpointed,
    TaskEnded,
    TaskStarted,
)
from scheduler.core.model import (
    JobId,
    JobPhase,
    JobSpec,
    NodeName,
    Queue,
    StopCause,
    TaskId,
)
from scheduler.core.plan import Accepted, Eviction, Outcome, Refusal, Start
from scheduler.core.records import JobRecord
from simulator.accounts import JobRows
from simulator.agenda import ENDS, MACHINES, Agenda
from simulator.gang import LiveJob, Seat, Stage, alone_s, gang_of, seat_on
from simulator.machines import Machine, Machines
from simulator.replicas import ReplicaSteps
from simulator.tally import Tally
from simulator.workload import FOREVER, TraceJob

GIVES_UP_AFTER = 100
"""Attempts in a row that saved nothing, after which a user gives a job up."""

Listen = Callable[[Event, Outcome], None]
"""Hears every event of a simulation in order, and what the scheduler made of it."""

BY_TERM = 15
"""The signal that ends a task that was asked to stop."""


# Looked up once: on its class a member takes five times as long to find (CPython 3.11).
_WORKING = Stage.WORKING
_STARTING = Stage.STARTING
_STOPPING = Stage.STOPPING
_GANG_BROKEN = StopCause.GANG_BROKEN


def _job_of(start: Start) -> JobId:
    return start.job.id


class World:
    """Jobs at work on machines."""

    def __init__(
        self,
        agenda: Agenda,
        machines: Machines,
        *,
        news: Callable[[], None],
        stop_s: float = 0.0,
        image_pull_s: float = 0.0,
        listen: Listen | None = None,
    ) -> None:
        self._listen = listen
        self.engine = Engine()
        self.rows = JobRows()
        self.tally = Tally()
        self.machines = machines
        self.n_progressing = 0  # jobs that will be done, or have stopped, some day
        self.when_free: Callable[[Machine], None] | None = None  # a retiring machine, maybe
        self._agenda = agenda
        self._news = news
        self._stop_s = stop_s
        self._image_pull_s = image_pull_s
        self._live: dict[JobId, LiveJob] = {}
        self._ids: dict[str, JobId] = {}  # by key
        self._twice: set[str] = set()  # keys of more than one job
        self._beside: dict[tuple[NodeName, int], dict[JobId, int]] = {}  # tasks on parts of it
        self._replicas: dict[JobId, ReplicaSteps] = {}

    # Events

    def tell(self, event: Event) -> Outcome:
        """Let the scheduler know, and act on what follows."""
        self.tally.n_events += 1
        outcome = self.engine.observe(event)
        if self._listen is not None:
            self._listen(event, outcome)
        if isinstance(outcome, Accepted):
            self.act(outcome)
        return outcome

    def act(self, accepted: Accepted) -> None:
        """Do what an executor is asked to do, and settle the accounts of who has ended."""
        for eviction in accepted.evictions:
            self._ask_to_stop(self._live[eviction.job_id], eviction)
        if accepted.starts:
            for job_id, starts in groupby(accepted.starts, key=_job_of):
                self._start(self._live[job_id], list(starts))
        for record in accepted.finished:
            self._close(record)

    def submit(self, trace: TraceJob) -> None:
        """Let the user of a job submit it."""
        spec = self._with_ids(trace)
        if self.engine.queue(spec.queue) is None:  # traces name queues that nobody set up
            self.tell(QueuePut(at_s=trace.at_s, queue=Queue(name=spec.queue)))
        outcome = self.tell(
            JobsSubmitted(at_s=trace.at_s, spec=spec, submitter=trace.submitter)
        )
        if not isinstance(outcome, Accepted):
            if outcome.refusal is not Refusal.PRECONDITION:
                field_name = f"job {trace.key or len(self.rows) + 1}: {outcome.field}"
                raise InvalidInput(field_name, outcome.message)
            number = self.rows.open(trace, JobId(""), spec=spec, alone_s=FOREVER)
            self.rows.refuse(number)
            self.tally.n_refused += 1
            return
        (main_id,) = outcome.job_ids
        if trace.key:
            if trace.key in self._ids:
                self._twice.add(trace.key)
            self._ids[trace.key] = main_id
        ids = self.engine.array(main_id) if spec.array_size else (main_id,)
        alone = alone_s(trace, self.machines.widest)
        for job_id in ids:
            number = self.rows.open(trace, job_id, spec=spec, alone_s=alone)
            self._live[job_id] = job = LiveJob(trace, job_id, number)
            if job.is_service:
                self.tally.n_services += 1
                self._replicas[job_id] = ReplicaSteps(trace, job_id)
        self.tally.n_submitted += len(ids)
        self._news()

    def _with_ids(self, trace: TraceJob) -> JobSpec:
        """Return the spec with the ids of this run in place of the keys of the trace."""
        if not trace.spec.dependencies:
            return trace.spec
        for dependency in trace.spec.dependencies:
            if dependency.on not in self._ids:
                rule = f"there is no earlier job with the key {dependency.on!r}"
                raise InvalidInput(f"job {trace.key}: dependencies", rule)
            if dependency.on in self._twice:
                rule = f"several earlier jobs have the key {dependency.on!r}"
                raise InvalidInput(f"job {trace.key}: dependencies", rule)
        dependencies = tuple(replace(d, on=self._ids[d.on]) for d in trace.spec.dependencies)
        return replace(trace.spec, dependencies=dependencies)

    # Starting

    def _start(self, job: LiveJob, starts: list[Start]) -> None:
        now_s = self._agenda.now_s
        is_first = not job.seats
        job.pass_time(now_s)
        pull_s = 0.0
        shapes = {role.name: role.shape for role in starts[0].job.spec.roles}
        for start in starts:
            task = start.task
            machine = self.machines.by_name[task.node]
            self._sit(job, task.id, seat_on(machine, shapes[task.id.role], task.devices))
            if self._image_pull_s:
                pull_s = max(pull_s, self._pull_s(machine, start))
        self.tally.n_starts += len(starts)
        if is_first:
            self.tally.n_running += 1
            job.since_s = now_s
            if isnan(job.account.started_at_s):
                job.account.started_at_s = now_s
            self._wake_at_limits(job)
        tasks = [start.task.id for start in starts]
        if pull_s:
            self._agenda.put(now_s + pull_s, ENDS, self._started, job, tasks)
        else:
            self._started(job, tasks)
        self._get_ready(job, tasks, is_first=is_first, pull_s=pull_s)

    def _get_ready(
        self, job: LiveJob, tasks: list[TaskId], *, is_first: bool, pull_s: float
    ) -> None:
        """Let an attempt, or more of its tasks, start up."""
        now_s, trace = self._agenda.now_s, job.trace
        if job.is_service:
            if is_first:
                job.stage = _WORKING
            ready_at_s = now_s + pull_s + trace.startup_s
            self._agenda.put(ready_at_s, ENDS, self._replicas_ready, job, tasks)
            if not job.version:
                self._open_service(job)
            return
        if is_first:
            job.stage = _STARTING
            job.saved_before = job.saved
            job.will_save = False
            job.version += 1
            startup_s = pull_s + trace.startup_s + (trace.restore_s if job.saved else 0.0)
            self._progress(job, True)
            if startup_s:
                self._agenda.put(now_s + startup_s, ENDS, self._begin, job, job.version)
            else:
                self._begin(job, job.version)
        elif job.stage is _WORKING:
            self._set_speed(job)

    def _pull_s(self, machine: Machine, start: Start) -> float:
        role = start.task.id.role
        launch = next(r.launch for r in start.job.spec.roles if r.name == role)
        if not launch.image or launch.image in machine.images:
            return 0.0
        machine.images.add(launch.image)
        return self._image_pull_s

    def _wake_at_limits(self, job: LiveJob) -> None:
        """Have the scheduler look again when time alone lets, or makes, it stop the job."""
        spec = job.trace.spec
        for after_s in (spec.time_limit_s, spec.min_runtime_s):
            if after_s:
                self._agenda.put(self._agenda.now_s + after_s, ENDS, self._limit, job)

    def _limit(self, job: LiveJob) -> None:
        if job.seats:
            self._news()

    def _started(self, job: LiveJob, tasks: list[TaskId]) -> None:
        for task in tasks:
            if task in job.seats:
                self.tell(TaskStarted(at_s=self._agenda.now_s, task=task))

    def _begin(self, job: LiveJob, version: int) -> None:
        """Let an attempt that has started up work."""
        if version != job.version:
            return
        now_s = self._agenda.now_s
        interval_s = job.trace.spec.checkpoint_interval_s
        if interval_s and job.since_s < now_s:
            # One report tells the core the rhythm of all that follow.
            self._agenda.put(now_s + interval_s, ENDS, self._checkpointed, job, now_s)
        job.pass_time(now_s)
        job.stage = _WORKING
        job.began_at_s = now_s
        self._set_speed(job)

    def _checkpointed(self, job: LiveJob, began_at_s: float) -> None:
        if job.stage is _WORKING and job.began_at_s == began_at_s:
            task = next(iter(job.seats))
            self.tell(TaskCheckpointed(at_s=self._agenda.now_s, task=task))
            self._news()  # less is lost now if it is stopped

    # Working

    def _set_speed(self, job: LiveJob) -> None:
        """Find out how fast the job works from now on, and when that changes next."""
        seats = job.working_seats()
        job.at_work = (
            sum(seat.gpus for seat in seats) if len(seats) < len(job.seats) else job.held
        )
        behaviour = job.trace.behaviour
        per_s, until_done = behaviour.speed(gang_of(seats, self._neighbours(job)), job.done)
        job.per_s = per_s * min([seat.machine.slowness for seat in seats])
        job.target = min(behaviour.work, until_done)
        job.version += 1
        lacks_s = job.lacks()
        self._progress(job, lacks_s < FOREVER)
        if lacks_s < FOREVER:
            due_s = self._agenda.now_s + lacks_s
            self._agenda.put(due_s, ENDS, self._reached, job, job.version)

    def _progress(self, job: LiveJob, is_progressing: bool) -> None:
        """Count the job as one that will be done some day, or no longer."""
        self.n_progressing += is_progressing - job.is_progressing
        job.is_progressing = is_progressing

    def _halt(self, job: LiveJob) -> None:
        """Let the job do nothing more until it is gone; time has been accounted for."""
        self._progress(job, bool(job.seats))
        job.per_s = 0.0
        job.at_work = 0.0
        job.stage = _STOPPING
        job.version += 1

    def _reached(self, job: LiveJob, version: int) -> None:
        """Let a job go on at another speed, or be done."""
        if version != job.version:
            return
        job.pass_time(self._agenda.now_s)
        job.done = job.target
        if job.done < job.trace.behaviour.work:
            self._set_speed(job)
            return
        self._halt(job)
        job.save()
        self._end(job)

    def _end(self, job: LiveJob) -> None:
        """End a job whose work is done in the way it is to end."""
        now_s = self._agenda.now_s
        match job.trace.ends_as:
            case JobPhase.SUCCEEDED:
                job.is_done = True
                self._leave(job, list(job.seats), exit_code=0)
            case JobPhase.FAILED:
                job.account.n_failures += 1
                self._leave(job, [next(iter(job.seats))], exit_code=1)
            case JobPhase.CANCELLED:
                self.tell(JobCancelled(at_s=now_s, job_id=job.id, by=job.trace.submitter))
            case other:
                raise InvalidInput("ends_as", f"is {other}; a job cannot end so by itself")

    # Stopping

    def _ask_to_stop(self, job: LiveJob, eviction: Eviction) -> None:
        now_s = self._agenda.now_s
        job.pass_time(now_s)
        tasks = [task for task in eviction.tasks if task in job.seats]
        job.leaving.update(tasks)
        stop_s = min(self._stop_s, eviction.grace_s)
        if job.is_service or len(job.leaving) < len(job.seats):
            self._agenda.put(now_s + stop_s, ENDS, self._left, job, tasks)
            if job.is_service:
                self._count_replicas(job, tasks, sign=-1)
            elif job.stage is _WORKING:
                self._set_speed(job)
            return
        was_at_work = job.stage is _WORKING
        self._halt(job)
        if was_at_work and eviction.cause is not _GANG_BROKEN:
            job.will_save = job.trace.save_s <= eviction.grace_s
            if job.will_save:
                stop_s = job.trace.save_s
        self._agenda.put(now_s + stop_s, ENDS, self._left, job, list(job.seats))

    def _left(self, job: LiveJob, tasks: list[TaskId]) -> None:
        """Let tasks that were asked to stop be gone."""
        tasks = [task for task in tasks if task in job.seats]
        if not tasks:
            return
        job.pass_time(self._agenda.now_s)
        if job.stage is _STOPPING and not job.is_service:
            self._settle(job)
        self._leave(job, tasks, signal=BY_TERM)

    def _settle(self, job: LiveJob) -> None:
        """Keep or lose what an attempt that is over had not saved."""
        if job.will_save:
            job.save()
        else:
            job.lose()
        job.will_save = False
        job.n_fruitless = 0 if job.saved > job.saved_before else job.n_fruitless + 1

    def _leave(
        self,
        job: LiveJob,
        tasks: list[TaskId],
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        lost: str = "",
    ) -> None:
        """Free the seats of tasks and report their end."""
        now_s = self._agenda.now_s
        for task in tasks:
            self._rise(job, task)
        if not job.seats:
            self.tally.n_running -= 1
            if not job.is_service:
                self._progress(job, False)
        for task in tasks:
            self.tell(
                TaskEnded(
                    at_s=now_s,
                    task=task,
                    exit_code=exit_code,
                    signal=signal,
                    is_lost=bool(lost),
                    reason=lost,
                )
            )
        self._news()
        if job.n_fruitless >= GIVES_UP_AFTER and job.id in self._live and not job.seats:
            self.tally.n_given_up += 1
            self.tell(JobCancelled(at_s=now_s, job_id=job.id, by=job.trace.submitter))

    def lose(self, tasks: Iterable[TaskId], why: str) -> None:
        """Let tasks vanish, and the work of their gangs with them."""
        for job_id, members in groupby(sorted(tasks), key=lambda task: task.job):
            job, gone = self._live[job_id], list(members)
            job.pass_time(self._agenda.now_s)
            job.account.n_failures += 1
            if job.is_service:
                self._count_replicas(job, gone, sign=-1)
                self._leave(job, gone, lost=why)
                continue
            was = job.stage
            self._halt(job)
            job.will_save = False
            self._settle(job)
            self._leave(job, gone, lost=why)
            if was is not _STOPPING and job.seats and not job.leaving:
                # The scheduler lets the others go on: from what was saved.
                job.stage = _STARTING
                self._progress(job, True)
                restart_s = job.trace.startup_s + job.trace.restore_s
                due_s = self._agenda.now_s + restart_s
                self._agenda.put(due_s, ENDS, self._begin, job, job.version)

    def _close(self, record: JobRecord) -> None:
        """Write the row of a job that has ended."""
        job = self._live.pop(record.id)
        if job.seats:
            raise InvariantError(f"job {job.id} ended with tasks", record.history)
        now_s = self._agenda.now_s
        phase = job.trace.ends_as if job.is_service and job.is_done else None
        self.rows.close(job.number, job.account, record, now_s=now_s, phase=phase)
        self._progress(job, False)
        self.tally.n_ended += 1
        self.tally.n_services_ended += job.is_service
        self._news()

    def note_the_rest(self) -> None:
        """Write the rows of the jobs that have not ended, as far as they got by now."""
        now_s = self._agenda.now_s
        for job in self._live.values():
            job.pass_time(now_s)
            record = self.engine.job(job.id)
            assert record is not None
            self.rows.close(job.number, job.account, record, now_s=now_s)

    # Seats

    def _sit(self, job: LiveJob, task: TaskId, seat: Seat) -> None:
        job.sit(task, seat)
        if not seat.gpus:
            return
        self._hold(job, seat, sign=1)
        if self._shares(job, seat):
            for device in seat.devices:
                beside = self._beside.setdefault((seat.machine.node.name, device), {})
                self._slow_down(beside, but=job.id)
                beside[job.id] = beside.get(job.id, 0) + 1
            self._divide(seat)

    def _rise(self, job: LiveJob, task: TaskId) -> None:
        seat = job.rise(task)
        if seat.machine.is_retiring and self.when_free is not None:
            self._agenda.put(self._agenda.now_s, MACHINES, self.when_free, seat.machine)
        if not seat.gpus:
            return
        self._hold(job, seat, sign=-1)
        if self._shares(job, seat):
            for device in seat.devices:
                beside = self._beside[seat.machine.node.name, device]
                beside[job.id] -= 1
                if not beside[job.id]:
                    del beside[job.id]
                self._slow_down(beside, but=job.id)
            self._divide(seat)

    @staticmethod
    def _shares(job: LiveJob, seat: Seat) -> bool:
        """Return whether others may come to the devices of a seat."""
        return seat.shape.gpu_milli > 0 or bool(job.trace.spec.shared_throughputs)

    def _divide(self, seat: Seat) -> None:
        """Count whole devices that jobs share as held in equal parts."""
        if not seat.shape.gpus:
            return
        sharers = self._beside[seat.machine.node.name, seat.devices[0]]
        for job_id in sharers:
            other = self._live[job_id]
            other.pass_time(self._agenda.now_s)
            (task,) = other.seats
            self._hold(other, other.seats[task], sign=-1)
            other.sit_again(task, parts=len(sharers))
            self._hold(other, other.seats[task], sign=1)
            if other.stage is _WORKING:
                other.at_work = other.held

    def _hold(self, job: LiveJob, seat: Seat, *, sign: int) -> None:
        group = seat.machine.group
        group.pass_time(self._agenda.now_s)
        group.gpus_held += sign * seat.gpus
        held = self.tally.gpus_by_queue
        queue = job.trace.spec.queue
        held[queue] = held.get(queue, 0.0) + sign * seat.gpus

    def _slow_down(self, beside: dict[JobId, int], *, but: JobId) -> None:
        """Have the neighbours on a device find their speed anew, once all is said."""
        for job_id in beside:
            if job_id != but:
                job = self._live[job_id]
                self._agenda.put(self._agenda.now_s, ENDS, self._look_around, job)

    def _look_around(self, job: LiveJob) -> None:
        if job.stage is _WORKING and not job.is_service and job.seats:
            job.pass_time(self._agenda.now_s)
            self._set_speed(job)

    def _neighbours(self, job: LiveJob) -> tuple[str, ...]:
        if not self._beside:
            return ()
        found = {
            other: self._live[other].trace.spec.profile or self._live[other].trace.spec.name
            for seat in job.seats.values()
            if self._shares(job, seat)
            for device in seat.devices
            for other in self._beside[seat.machine.node.name, device]
            if other != job.id
        }
        return tuple(sorted(found.values()))

    def touch(self, node: NodeName) -> None:
        """Have all jobs on a node find their speed anew: it became slower, or fast again."""
        for job_id in dict.fromkeys(task.job for task in self.engine.tasks_on(node)):
            self._look_around(self._live[job_id])

    # Services

    def _open_service(self, job: LiveJob) -> None:
        job.version = 1
        work_s = job.trace.behaviour.work
        if work_s < FOREVER:
            self._progress(job, True)
            self._agenda.put(self._agenda.now_s + work_s, ENDS, self._service_over, job)

    def _replicas_ready(self, job: LiveJob, tasks: list[TaskId]) -> None:
        ready = [task for task in tasks if task in job.seats and task not in job.leaving]
        job.pass_time(self._agenda.now_s)
        self._count_replicas(job, ready, sign=1)

    def _count_replicas(self, job: LiveJob, tasks: list[TaskId], *, sign: int) -> None:
        steps = self._replicas[job.id]
        for task in tasks:
            seat = job.seats[task]
            if steps.count(task, seat, sign=sign, now_s=self._agenda.now_s):
                job.at_work += sign * seat.gpus

    def _service_over(self, job: LiveJob) -> None:
        if job.id in self._live:
            job.is_done = True
            now_s = self._agenda.now_s
            self.tell(JobCancelled(at_s=now_s, job_id=job.id, by=job.trace.submitter))
            self._news()

    def replica_steps(self) -> list[ReplicaSteps]:
        """Return what the replicas of every service did, in the order of submission."""
        return list(self._replicas.values())
