"""What the daemon did, from `lepton journal export`: production, to be replayed.

The events go through the engine that the daemon has, so ids, attempts and endings are as they
were. A job's work is what its last attempt did, plus what earlier ones had saved, in seconds
with all its tasks (fewer count by its `scaling`); it starts up as long as its last attempt took
from its place to its processes. Left out: jobs that never ran.
What still ran at the end is taken to end there, or at its estimate if that is later; services
run on. What users changed later (priorities, holds) is not replayed.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import msgspec

from scheduler.core.dump import Dump
from scheduler.core.engine import Engine
from scheduler.core.events import (
    Event,
    JobsSubmitted,
    NodeHealthChanged,
    NodeRegistered,
    NodeRemoved,
    TaskCheckpointed,
    TaskStarted,
)
from scheduler.core.model import Dependency, JobId, JobKind, JobPhase, JobSpec, Node, Queue
from scheduler.core.plan import Accepted
from scheduler.core.records import JobRecord
from simulator.traces.format import Assumptions, Format
from simulator.traces.source import Opening, Source
from simulator.workload import FOREVER, NodeOutage, Steady, TraceJob, TraceJobs

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    kind.__name__: msgspec.json.Decoder(kind) for kind in get_args(Event)
}
_STATE = "State"
_STATE_DECODER = msgspec.json.Decoder(Dump)


class _Line(msgspec.Struct):
    sequence: int
    kind: str
    event: msgspec.Raw


_LINE = msgspec.json.Decoder(_Line)


@dataclass(slots=True)
class _Truth:
    """A job that was submitted, and what is known of its work."""

    key: JobId
    at_s: float
    spec: JobSpec
    submitter: str
    saved: float = 0.0  # work that earlier attempts saved, in seconds with all tasks
    seen_s: float = 0.0  # running time of attempts that are accounted for
    # Of the attempt that runs, as of the latest event:
    n_tasks: int = 0
    started_s: float = 0.0
    checkpoint_s: float = 0.0
    startup_s: float = 0.0
    ended: TraceJob | None = None
    is_over: bool = False  # ended or left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """All that a journal tells: for `lepton replay`."""

    jobs: tuple[TraceJob, ...]
    nodes: tuple[Node, ...]  # every one that there was, as it was last
    queues: tuple[Queue, ...]  # at the end
    outages: tuple[NodeOutage, ...]
    from_s: float  # the first event
    until_s: float  # the last one


class Listener(Protocol):
    """Hears what a journal tells as it is read."""

    def began(self, at_s: float, engine: Engine) -> None:
        """Hear that the journal begins with a state of its own."""

    def heard(self, event: Event, outcome: Accepted, engine: Engine) -> None:
        """Hear an event that changed something, and what followed."""


def read_recording(path: Path | str, listener: Listener | None = None) -> Recording:
    """Return the jobs, nodes, queues and outages of a journal's export."""
    replay = _Replay(Source(Path(path)), listener)
    jobs = tuple(replay.jobs())
    return Recording(
        jobs=jobs,
        nodes=tuple(replay.machines.nodes.values()),
        queues=tuple(replay.engine.queues()),
        outages=replay.machines.outages(),
        from_s=replay.from_s or 0.0,
        until_s=replay.until_s,
    )


class _Replay:
    """The events of a journal on their way through an engine."""

    def __init__(self, source: Source, listener: Listener | None = None) -> None:
        self.source = source
        self.listener = listener
        self.engine = Engine()
        self.machines = _Machines()
        self.from_s: float | None = None
        self.until_s = 0.0
        self._truths: dict[JobId, _Truth] = {}  # of jobs that are not over
        self._in_order: deque[_Truth] = deque()
        self._elements: dict[JobId, int] = {}  # of arrays
        self._latest: int | None = None  # event
        self._awaits_state = False

    def jobs(self) -> TraceJobs:
        """Yield jobs in the order of submission, each as soon as all before it have ended."""
        for number, text in self.source.lines():
            if text:
                self._read(number, text)
            yield from self._known()
        if self._awaits_state:
            raise self.source.error(
                "the first events are missing, and no line of the kind State stands for them:"
                " export the whole journal, without filters"
            )
        for truth in list(self._truths.values()):
            self._still_live(truth)
        yield from self._known()

    def _read(self, number: int, text: str) -> None:
        try:
            line = _LINE.decode(text)
            if line.kind == _STATE:
                self._begin(_STATE_DECODER.decode(line.event))
                return
            if line.kind not in _DECODERS:
                message = f"{line.kind!r} is no kind of event"
                raise self.source.error(message, line=number, column="kind")
            event: Event = _DECODERS[line.kind].decode(line.event)
        except msgspec.MsgspecError as error:
            raise self.source.error(str(error), line=number) from error
        if self._latest is None:
            self._awaits_state = line.sequence != 1
        elif line.sequence != self._latest + 1:
            message = f"event {line.sequence} comes after {self._latest}"
            raise self.source.error(message, line=number, column="sequence")
        self._latest = line.sequence
        if not self._awaits_state:
            self._observe(event)

    def _begin(self, dump: Dump) -> None:
        """Go on from a state, if the events before it are gone."""
        if not self._awaits_state and self._latest is not None:
            return
        self._awaits_state, self._latest = False, dump.revision
        self.engine = Engine.restore(dump)
        self.from_s = dump.now_s
        for node in dump.nodes:
            self.machines.registered(dump.now_s, node.node)
        for record in sorted(self.engine.jobs(), key=lambda record: record.job.sequence):
            job = record.job
            self._add(record.id, job.submitted_at_s, job.spec, job.submitter)
            truth = self._truths[record.id]
            truth.seen_s = truth.saved = record.ran_before_s  # what was lost is forgotten
            _follow(truth, record)
        if self.listener is not None:
            self.listener.began(dump.now_s, self.engine)

    def _observe(self, event: Event) -> None:
        self.from_s = event.at_s if self.from_s is None else self.from_s
        self.until_s = max(self.until_s, event.at_s)
        outcome = self.engine.observe(event)
        if not isinstance(outcome, Accepted) or outcome.is_repeat:
            return
        self.machines.hear(event)
        if isinstance(event, JobsSubmitted):
            self._submitted(event, outcome.job_ids[0])
        told = (event.task.job,) if isinstance(event, TaskStarted | TaskCheckpointed) else ()
        for job_id in (*outcome.changed, *told):
            record, truth = self.engine.job(job_id), self._truths.get(job_id)
            if record is not None and truth is not None:
                self._attempt_over(truth, record)
                _follow(truth, record)
        for record in outcome.finished:
            self._finished(record)
        if self.listener is not None:
            self.listener.heard(event, outcome, self.engine)

    def _submitted(self, event: JobsSubmitted, job_id: JobId) -> None:
        spec = replace(
            event.spec, array_size=0, suspended=False, dependencies=self._by_key(event.spec)
        )
        if not event.spec.array_size:
            self._add(job_id, event.at_s, spec, event.submitter)
        for index in range(event.spec.array_size):
            self._add(JobId(f"{job_id}_{index}"), event.at_s, spec, event.submitter)
        self._elements[job_id] = event.spec.array_size

    def _by_key(self, spec: JobSpec) -> tuple[Dependency, ...]:
        """Return the dependencies, those on an array as one on each of its elements."""
        found: list[Dependency] = []
        for dependency in spec.dependencies:
            n_elements = self._elements.get(dependency.on, 0)
            names = [JobId(f"{dependency.on}_{index}") for index in range(n_elements)]
            found += [replace(dependency, on=name) for name in names or [dependency.on]]
        return tuple(found)

    def _add(self, key: JobId, at_s: float, spec: JobSpec, submitter: str) -> None:
        truth = _Truth(key, at_s, spec, submitter)
        self._truths[key] = truth
        self._in_order.append(truth)

    def _attempt_over(self, truth: _Truth, record: JobRecord) -> None:
        """Note what an attempt saved that ended, but did not end the job."""
        ran_s = record.ran_before_s - truth.seen_s
        if ran_s > 0:
            saved_s = min(truth.checkpoint_s - truth.started_s, ran_s)
            truth.saved += _work_of(truth, saved_s)
            truth.seen_s = record.ran_before_s

    def _finished(self, record: JobRecord) -> None:
        truth = self._truths.pop(record.id, None)
        if truth is None:
            return
        truth.is_over = True
        if not record.first_started_at_s:
            self.source.skipped["never ran"] += 1
            return
        ends_as = JobPhase.FAILED
        if record.phase in {JobPhase.SUCCEEDED, JobPhase.CANCELLED}:
            ends_as = record.phase
        if record.job.spec.kind is JobKind.INFERENCE:
            work = record.ended_at_s - record.first_started_at_s
        elif record.phase is JobPhase.TIMED_OUT:
            work = FOREVER  # it needs more than its limit, which it has here too
        else:
            work = truth.saved + _work_of(truth, record.ran_before_s - truth.seen_s)
        truth.ended = _trace_job(truth, work, ends_as)

    def _still_live(self, truth: _Truth) -> None:
        record = self.engine.job(truth.key)
        truth.is_over = True
        if record is None or not record.first_started_at_s:
            self.source.skipped["had not run by the end"] += 1
            return
        work = FOREVER
        if record.job.spec.kind is not JobKind.INFERENCE:
            so_far = truth.saved + _work_of(truth, record.ran_s(self.until_s) - truth.seen_s)
            work = max(so_far, truth.spec.expected_run_s)
        truth.ended = _trace_job(truth, work, JobPhase.SUCCEEDED)

    def _known(self) -> Iterator[TraceJob]:
        while self._in_order and self._in_order[0].is_over:
            truth = self._in_order.popleft()
            if truth.ended is not None:
                yield truth.ended


@dataclass(slots=True)
class _Machines:
    """The nodes that there were, and when they, or devices of theirs, were not there."""

    nodes: dict[str, Node] = field(default_factory=dict)
    _since: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)
    _over: list[NodeOutage] = field(default_factory=list)
    _first_s: float | None = None

    def hear(self, event: Event) -> None:
        if self._first_s is None:
            self._first_s = event.at_s
        if isinstance(event, NodeRegistered):
            self.registered(event.at_s, event.node)
        elif isinstance(event, NodeRemoved):
            self._set(event.at_s, event.name, {()})
        elif isinstance(event, NodeHealthChanged):
            gone: set[tuple[int, ...]] = {()} if not event.is_up else set()
            if event.is_up and event.unhealthy_gpus:
                gone = {tuple(sorted(event.unhealthy_gpus))}
            self._set(event.at_s, event.name, gone)

    def registered(self, at_s: float, node: Node) -> None:
        first_s = at_s if self._first_s is None else self._first_s
        if node.name not in self.nodes and at_s > first_s:
            self._over.append(NodeOutage(at_s=first_s, node=node.name, until_s=at_s))
        self.nodes[node.name] = node
        self._set(at_s, node.name, set())

    def _set(self, at_s: float, name: str, gone: set[tuple[int, ...]]) -> None:
        for key in [key for key in self._since if key[0] == name and key[1] not in gone]:
            since_s = self._since.pop(key)
            if at_s > since_s:
                self._over.append(
                    NodeOutage(at_s=since_s, node=name, until_s=at_s, gpus=key[1])
                )
        for gpus in gone:
            self._since.setdefault((name, gpus), at_s)

    def outages(self) -> tuple[NodeOutage, ...]:
        lasting = [
            NodeOutage(at_s=since_s, node=name, gpus=gpus)
            for (name, gpus), since_s in self._since.items()
            if name in self.nodes
        ]
        return tuple(sorted([*self._over, *lasting], key=lambda o: (o.at_s, o.node, o.gpus)))


def _follow(truth: _Truth, record: JobRecord) -> None:
    """Remember the attempt that runs: the event that ends it may begin another one."""
    if record.tasks and record.phase in {JobPhase.RUNNING, JobPhase.STOPPING}:
        waits = [t.started_at_s - t.bound_at_s for t in record.tasks.values() if t.started_at_s]
        truth.n_tasks = len(record.tasks)
        truth.started_s = record.last_started_at_s
        truth.checkpoint_s = record.checkpoint_at_s
        truth.startup_s = max(waits, default=0.0)


def _work_of(truth: _Truth, ran_s: float) -> float:
    """Return what the attempt did in so long, in seconds with all tasks."""
    worked_s = max(0.0, ran_s - truth.startup_s)
    return worked_s * (truth.spec.speed_up(truth.n_tasks) if truth.n_tasks else 1.0)


def _trace_job(truth: _Truth, work: float, ends_as: JobPhase) -> TraceJob:
    spec = truth.spec
    scaling = tuple((n_tasks, spec.speed_up(n_tasks)) for n_tasks, _ in spec.scaling)
    return TraceJob(
        at_s=truth.at_s,
        spec=spec,
        behaviour=Steady(work=work, n_tasks=spec.n_tasks, scaling=scaling),
        key=truth.key,
        submitter=truth.submitter,
        startup_s=truth.startup_s,
        ends_as=ends_as,
    )


def _read(source: Source, assume: Assumptions) -> TraceJobs:
    del assume  # a journal says all
    return _Replay(source).jobs()


def _recognises(shown: Opening) -> bool:
    first = shown.first_object()
    return {"sequence", "at_s", "kind", "event"} <= first.keys()


FORMAT = Format(
    name="journal",
    title="events of the daemon, as `lepton journal export` prints them",
    recognises=_recognises,
    read=_read,
)
