"""A small cluster for tests of the core: a real engine, decisions on it, and time by hand.

Jobs are called by the names that the test gives them. Every event is kept, so that `validate`
can replay the story, dump and restore it, and check the books after any scenario.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from policies.registry import policy_named
from scheduler.core import capacity
from scheduler.core.cycle import decide, dry_run, explain
from scheduler.core.dump import Dump
from scheduler.core.engine import Engine
from scheduler.core.events import (
    Event,
    JobCancelled,
    JobResumed,
    JobsSubmitted,
    JobSuspended,
    JobUpdated,
    NodeCordoned,
    NodeHealthChanged,
    NodeRegistered,
    NodeRemoved,
    QueuePut,
    TaskCheckpointed,
    TaskEnded,
    TaskStarted,
    commit_of,
)
from scheduler.core.model import (
    MILLI,
    Dependency,
    DependencyKind,
    Gpu,
    JobId,
    JobKind,
    JobPhase,
    JobSpec,
    Launch,
    Node,
    NodeName,
    Queue,
    QueueName,
    Role,
    Shape,
    StopCause,
    Taint,
    TaintEffect,
    Task,
    TaskPhase,
    Toleration,
)
from scheduler.core.node_columns import CPU, FRACTION, GPUS, MEMORY, NodeColumns
from scheduler.core.plan import Accepted, Granted, Outcome, Plan, Rejected, Unplaced
from scheduler.core.ports import Policy
from scheduler.core.records import JobRecord
from scheduler.core.sharing import may_share
from scheduler.core.snapshot import Snapshot

GIB = 1024
LAUNCH = Launch(command=("true",))


def node_of(
    name: str,
    *,
    gpus: int = 0,
    gpu_type: str = "",
    gpu_memory_mib: int = 80 * GIB,
    cpus: float = 64,
    memory_mib: int = 512 * GIB,
    labels: Mapping[str, str] | None = None,
    taints: Iterable[Taint] = (),
    price_usd_per_h: float = 0.0,
) -> Node:
    return Node(
        name=NodeName(name),
        cpu_milli=int(cpus * MILLI),
        memory_mib=memory_mib,
        gpu_type=gpu_type,
        gpus=tuple(Gpu(uuid=f"{name}-{i}", memory_mib=gpu_memory_mib) for i in range(gpus)),
        labels=tuple(sorted((labels or {}).items())),
        taints=tuple(taints),
        price_usd_per_h=price_usd_per_h,
    )


def role_of(
    name: str = "worker",
    *,
    tasks: int = 1,
    min_tasks: int | None = None,
    max_tasks: int | None = None,
    gpus: float = 0,
    gpu_types: Sequence[str] = (),
    gpu_memory_mib: int = 0,
    cpus: float = 1,
    memory_mib: int = 0,
    node_labels: Mapping[str, str] | None = None,
    tolerates: Sequence[str | Toleration] = (),
) -> Role:
    """Return a role; `gpus` below one is a fraction, `min_tasks` is all unless given."""
    return Role(
        name=name,
        launch=LAUNCH,
        count=tasks,
        min_count=tasks if min_tasks is None else min_tasks,
        max_count=tasks if max_tasks is None else max_tasks,
        shape=Shape(
            cpu_milli=int(cpus * MILLI),
            memory_mib=memory_mib,
            gpus=int(gpus),
            gpu_milli=round(gpus * MILLI) % MILLI,
            gpu_memory_mib=gpu_memory_mib,
            gpu_types=tuple(gpu_types),
            node_labels=tuple(sorted((node_labels or {}).items())),
            tolerations=tuple(
                t if isinstance(t, Toleration) else Toleration(key=t) for t in tolerates
            ),
        ),
    )


def no_execute(key: str) -> Taint:
    return Taint(key=key, effect=TaintEffect.NO_EXECUTE)


@dataclass(frozen=True)
class Decided:
    """One plan and what came of it, by the names of the test."""

    plan: Plan
    outcome: Outcome
    names: dict[JobId, str]

    @property
    def nodes(self) -> dict[str, list[str]]:
        """The nodes that each started job got, task by task."""
        return {
            self.names[p.job_id]: [str(bind.node) for bind in p.binds]
            for p in self.plan.placements
        }

    @property
    def started(self) -> list[str]:
        return [self.names[p.job_id] for p in self.plan.placements]

    @property
    def devices(self) -> dict[str, list[tuple[int, ...]]]:
        return {
            self.names[p.job_id]: [bind.devices for bind in p.binds]
            for p in self.plan.placements
        }

    @property
    def evicted(self) -> dict[str, StopCause]:
        return {self.names[e.job_id]: e.cause for e in self.plan.evictions}

    @property
    def unplaced(self) -> dict[str, Unplaced]:
        return {self.names[job_id]: why for job_id, why in self.plan.unplaced.items()}

    @property
    def sentences(self) -> dict[str, str]:
        return {name: why.sentence() for name, why in self.unplaced.items()}


class Cluster:
    """A cluster under test: commands in, plans out, and what executors would say."""

    def __init__(self, policy: str | Policy = "lepton", *, now_s: float = 1000.0) -> None:
        self.engine = Engine()
        self.policy = policy_named(policy) if isinstance(policy, str) else policy
        self.now_s = now_s
        self.events: list[Event] = []
        self.outcomes: list[Outcome] = []
        self.finished: dict[str, JobRecord] = {}
        self.names: dict[JobId, str] = {}
        self.ids: dict[str, JobId] = {}
        self.granted: Mapping[str, Granted] = {}

    # Time and events

    def observe(self, event: Event) -> Outcome:
        outcome = self.engine.observe(event)
        self.events.append(event)
        self.outcomes.append(outcome)
        if isinstance(outcome, Accepted):
            for record in outcome.finished:
                self.finished[self.names[record.id]] = record
        return outcome

    def accept(self, event: Event) -> Accepted:
        outcome = self.observe(event)
        assert isinstance(outcome, Accepted), outcome
        return outcome

    def refuse(self, event: Event) -> Rejected:
        """Observe an event that must change nothing but the revision."""
        before = self.engine.dump()
        outcome = self.observe(event)
        assert isinstance(outcome, Rejected), outcome
        after = self.engine.dump()
        assert replace(after, revision=0, now_s=0.0) == replace(before, revision=0, now_s=0.0)
        return outcome

    def advance(self, delay_s: float) -> None:
        self.now_s += delay_s

    # Nodes

    def add_nodes(self, n_nodes: int = 1, *, prefix: str = "node", **about: object) -> None:
        n_before = sum(view.node.name.startswith(f"{prefix}-") for view in self.engine.nodes())
        for i in range(n_before, n_before + n_nodes):
            self.add_node(f"{prefix}-{i}", **about)

    def add_node(self, name: str, **about: object) -> Outcome:
        return self.observe(NodeRegistered(at_s=self.now_s, node=node_of(name, **about)))

    def remove_node(self, name: str) -> Accepted:
        return self.accept(NodeRemoved(at_s=self.now_s, name=NodeName(name)))

    def cordon(self, name: str, *, is_cordoned: bool = True, drain: bool = False) -> Accepted:
        return self.accept(
            NodeCordoned(
                at_s=self.now_s,
                name=NodeName(name),
                is_cordoned=is_cordoned,
                is_draining=drain,
            )
        )

    def health(self, name: str, *, up: bool = True, bad_gpus: Sequence[int] = ()) -> Accepted:
        return self.accept(
            NodeHealthChanged(
                at_s=self.now_s,
                name=NodeName(name),
                is_up=up,
                unhealthy_gpus=tuple(bad_gpus),
            )
        )

    def free_gpus(self, name: str) -> tuple[int, ...]:
        view = self.engine.node(NodeName(name))
        assert view is not None
        return view.gpu_milli_free

    # Commands

    def spec(self, name: str, *roles: Role, **about: object) -> JobSpec:
        """Return a spec: whatever is no field of `JobSpec` describes its only role."""
        of_job = {key: about.pop(key) for key in list(about) if key in _SPEC_FIELDS}
        if "after" in about:
            of_job["dependencies"] = tuple(
                Dependency(on=self.ids.get(on, JobId(on)), kind=DependencyKind(kind))
                for on, kind in dict(about.pop("after")).items()
            )
        assert not (roles and about), about
        return JobSpec(name=name, roles=roles or (role_of(**about),), **of_job)

    def submit(self, name: str, *roles: Role, **about: object) -> JobId:
        """Submit a job; the elements of an array are called `name_0`, `name_1`, ..."""
        return self.submit_spec(self.spec(name, *roles, **about))

    def submit_spec(self, spec: JobSpec, *, request_id: str = "") -> JobId:
        event = JobsSubmitted(
            at_s=self.now_s, spec=spec, request_id=request_id, fingerprint=spec.name
        )
        (job_id,) = self.accept(event).job_ids
        self._name(job_id, spec)
        return job_id

    def _name(self, job_id: JobId, spec: JobSpec) -> None:
        self.ids[spec.name], self.names[job_id] = job_id, spec.name
        for index in range(spec.array_size):
            element = JobId(f"{job_id}_{index}")
            self.ids[f"{spec.name}_{index}"] = element
            self.names[element] = f"{spec.name}_{index}"

    def refuse_submit(self, name: str, *roles: Role, **about: object) -> Rejected:
        return self.refuse(
            JobsSubmitted(at_s=self.now_s, spec=self.spec(name, *roles, **about))
        )

    def cancel(self, name: str) -> Accepted:
        return self.accept(JobCancelled(at_s=self.now_s, job_id=self.ids[name]))

    def suspend(self, name: str) -> Accepted:
        return self.accept(JobSuspended(at_s=self.now_s, job_id=self.ids[name]))

    def resume(self, name: str) -> Accepted:
        return self.accept(JobResumed(at_s=self.now_s, job_id=self.ids[name]))

    def update(self, name: str, **changes: object) -> Accepted:
        return self.accept(self.update_event(name, **changes))

    def update_event(
        self, name: str, *, replicas: Mapping[str, int] | None = None, **changes: object
    ) -> JobUpdated:
        return JobUpdated(
            at_s=self.now_s,
            job_id=self.ids[name],
            replicas=tuple((replicas or {}).items()),
            **changes,
        )

    def put_queue(self, name: str, **about: object) -> Accepted:
        return self.accept(
            QueuePut(at_s=self.now_s, queue=Queue(name=QueueName(name), **about))
        )

    # Decisions

    def snapshot(self) -> Snapshot:
        return self.engine.snapshot(self.now_s).with_granted(self.granted)

    def decide(self) -> Plan:
        plan = decide(self.snapshot(), self.policy)
        self.granted = plan.granted
        return plan

    def commit(self, plan: Plan) -> Decided:
        event = commit_of(plan, self.now_s)
        return Decided(plan, self.accept(event), self.names)

    def cycle(self) -> Decided:
        """Decide once and commit; placed tasks are bound, none is running yet."""
        return self.commit(self.decide())

    def settle(self, n_cycles: int = 20) -> list[str]:
        """Cycle, start what is bound and let go what must stop, until nothing happens."""
        started = []
        for _ in range(n_cycles):
            decided = self.cycle()
            started += decided.started
            self.run_all()
            n_stopped = self.let_go()
            if decided.plan.is_empty and not n_stopped:
                return started
        raise AssertionError(f"still restless after {n_cycles} cycles")

    def dry_run(self, *roles: Role, **about: object) -> Plan:
        return dry_run(self.snapshot(), self.policy, self.spec("dry", *roles, **about))

    def explain(self, name: str) -> Unplaced | None:
        return explain(self.snapshot(), self.policy, self.ids[name])

    # What executors say

    def tasks(self, name: str) -> list[Task]:
        """Return the live tasks of a job by role and index."""
        return sorted(self.job(name).live_tasks(), key=lambda task: task.id)

    def run(self, name: str) -> None:
        for task in self.tasks(name):
            if task.phase is TaskPhase.BOUND:
                self.accept(TaskStarted(at_s=self.now_s, task=task.id))

    def run_all(self) -> None:
        for record in list(self.engine.jobs()):
            self.run(self.names[record.id])

    def checkpoint(self, name: str) -> None:
        self.accept(TaskCheckpointed(at_s=self.now_s, task=self.tasks(name)[0].id))

    def end(
        self, name: str, exit_code: int | None = 0, *, only: int | None = None, **how: object
    ) -> None:
        """End the tasks of a job that live now, or the one at position `only`."""
        tasks = self.tasks(name)
        for task in tasks if only is None else [tasks[only]]:
            self.end_task(task, exit_code, **how)

    def end_task(self, task: Task, exit_code: int | None = 0, **how: object) -> Accepted:
        if how:
            exit_code = None
        return self.accept(TaskEnded(at_s=self.now_s, task=task.id, exit_code=exit_code, **how))

    def let_go(self) -> int:
        """End every task that was asked to stop; return how many there were."""
        stopping = [
            task
            for record in self.engine.jobs()
            for task in record.live_tasks()
            if task.phase is TaskPhase.STOPPING
        ]
        for task in stopping:
            self.end_task(task, signal=15)
        return len(stopping)

    # Reading

    def job(self, name: str) -> JobRecord:
        record = self.engine.job(self.ids[name])
        return self.finished[name] if record is None else record

    def phase(self, name: str) -> JobPhase:
        return self.job(name).phase

    def phases(self, *names: str) -> list[JobPhase]:
        return [self.phase(name) for name in names]

    def nodes_of(self, name: str) -> list[str]:
        return [str(task.node) for task in self.tasks(name)]

    # The whole of it

    def validate(self) -> None:
        """Check the books, and that dump and replay both lead to where we are."""
        check_books(self.engine)
        check_jobs(self.engine, self.now_s)
        check_restore(self.engine, self.policy, self.now_s)
        check_replay(self.events, self.outcomes, self.engine.dump())


_SPEC_FIELDS = {field.name for field in fields(JobSpec)}


def check_books(engine: Engine) -> None:
    """Add up what live tasks hold, from the specs alone; the columns must say the same."""
    table = engine.snapshot(0.0).nodes
    used = {name: [0, 0] for name in table.row_of}
    n_tasks = dict.fromkeys(table.row_of, 0)
    devices = {view.node.name: [[0, 0] for _ in view.node.gpus] for view in engine.nodes()}
    for record in engine.jobs():
        shapes = {role.name: role.shape for role in record.job.spec.roles}
        for task in record.live_tasks():
            shape, node = shapes[task.id.role], table.nodes[table.row_of[task.node]]
            used[task.node][0] += shape.cpu_milli
            used[task.node][1] += shape.memory_mib
            n_tasks[task.node] += 1
            whole_mib = min((gpu.memory_mib for gpu in node.gpus), default=0)
            for device in task.devices:
                amounts = devices[task.node][device]
                if shape.gpus:
                    amounts[0] += MILLI
                    amounts[1] += whole_mib
                else:
                    amounts[0] += shape.gpu_milli
                    amounts[1] += shape.gpu_memory_mib or whole_mib * shape.gpu_milli // MILLI
            assert len(task.devices) == (shape.gpus or int(shape.gpu_milli > 0))
            assert len(set(task.devices)) == len(task.devices)
    for name, row in table.row_of.items():
        node = table.nodes[row]
        whole_mib = min((gpu.memory_mib for gpu in node.gpus), default=0)
        cpu_milli, memory_mib = used[name]
        assert 0 <= cpu_milli <= node.cpu_milli
        assert 0 <= memory_mib <= node.memory_mib
        assert table.free[row, CPU] == node.cpu_milli - cpu_milli
        assert table.free[row, MEMORY] == node.memory_mib - memory_mib
        assert table.n_tasks[row] == n_tasks[name] == len(engine.tasks_on(name))
        left = []
        for device, (milli, mib) in enumerate(devices[name]):
            sharing = [engine.job(JobId(id_.job)) for id_ in engine.tasks_on(name)]
            sharing = [r for r in sharing if shares(r, name, device)] if milli > MILLI else []
            assert 0 <= milli <= (2 * MILLI if sharing else MILLI)
            assert 0 <= mib <= (2 * whole_mib if sharing else whole_mib)
            if sharing:
                one, other = (record.job.spec for record in sharing)
                assert may_share(one, other, node.gpu_type)
            assert table.device_used[row, device] == milli
            assert table.device_memory_free[row, device] == whole_mib - mib
            left.append(max(MILLI - milli, 0) if table.is_healthy[row, device] else 0)
        n_devices = len(left)
        assert table.device_free[row, :n_devices].tolist() == left
        assert not table.device_free[row, n_devices:].any()
        assert table.free[row, GPUS] == left.count(MILLI)
        assert table.free[row, FRACTION] == max(left, default=0)


def shares(record: JobRecord, node: NodeName, device: int) -> bool:
    return any(task.node == node and device in task.devices for task in record.live_tasks())


def check_jobs(engine: Engine, now_s: float) -> None:
    """Check what must be true of every live job at any moment."""
    for record in engine.jobs():
        live = record.live_tasks()
        spec = record.job.spec
        is_gang = spec.kind is not JobKind.INFERENCE
        assert not record.phase.is_final
        if record.phase in {JobPhase.PENDING, JobPhase.SUSPENDED}:
            assert not live
            assert record.then is None
        if record.phase in {JobPhase.RUNNING, JobPhase.STOPPING}:
            assert live
        if record.phase is JobPhase.STOPPING:
            assert record.then is not None
            assert all(task.phase is TaskPhase.STOPPING for task in live)
        if record.phase is JobPhase.RUNNING and is_gang:
            assert {task.id.attempt for task in record.tasks.values()} == {record.attempt}
            assert not any(task.phase is TaskPhase.STOPPING for task in live)
            present = {(task.id.role, task.id.index) for task in record.tasks.values()}
            assert len(present) == len(record.tasks)
            for role in spec.roles:
                n_tasks = sum(task.id.role == role.name for task in record.tasks.values())
                assert role.min_count <= n_tasks
            assert sorted(t.rank for t in record.tasks.values()) == list(range(len(present)))
            assert {task.world_size for task in live} == {len(present)}
        places = [(task.id.role, task.id.index) for task in live]
        assert len(set(places)) == len(places)
        for amount in (record.waited_before_s, record.ran_before_s, record.gpu_s_before):
            assert amount >= 0
        assert record.lost_gpu_s >= 0
        assert record.waited_s(now_s) >= 0
        assert record.failures <= spec.max_retries or record.then or not is_gang


def check_restore(engine: Engine, policy: Policy, now_s: float) -> None:
    """Check that a dump loses nothing, neither for readers nor for decisions."""
    dump = engine.dump()
    again = Engine.restore(dump)
    assert again.dump() == dump
    assert again.nodes() == engine.nodes()
    assert again.queues() == engine.queues()
    assert again.figures() == engine.figures()
    assert again.live_starts() == engine.live_starts()
    assert again.evictions_in_flight() == engine.evictions_in_flight()
    assert list(again.jobs()) == list(engine.jobs())
    for view in engine.nodes():
        mine, others = engine.tasks_on(view.node.name), again.tasks_on(view.node.name)
        assert sorted(mine) == sorted(others)
    plan = decide(engine.snapshot(now_s), policy)
    assert decide(engine.snapshot(now_s), policy) == plan
    assert decide(again.snapshot(now_s), policy) == plan


def check_replay(events: Sequence[Event], outcomes: Sequence[Outcome], dump: Dump) -> None:
    """Check that the same events lead to the same verdicts and the same state."""
    again = Engine()
    for event, outcome in zip(events, outcomes, strict=True):
        assert again.observe(event) == outcome
    assert again.dump() == dump


def columns_of(table: object) -> dict[str, object]:
    """Return a deep copy of a table, to see later whether it changed."""
    return {
        field.name: value.copy() if isinstance(value, np.ndarray | list | dict) else value
        for field in fields(table)
        if field.name not in {"fits_statically", "kinds", "misfits_by_kind", "trees"}
        for value in [getattr(table, field.name)]
    }


def assert_same_columns(table: NodeColumns | object, columns: Mapping[str, object]) -> None:
    for name, value in columns.items():
        now = getattr(table, name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(now, value, err_msg=name)
        else:
            assert now == value, name


def take(nodes: NodeColumns, row: int, shape: Shape, devices: tuple[int, ...]) -> None:
    """Book one task on a node, column by column."""
    _book(nodes, row, shape, devices, 1)


def give(nodes: NodeColumns, row: int, shape: Shape, devices: tuple[int, ...]) -> None:
    """Undo `take`."""
    _book(nodes, row, shape, devices, -1)


def _book(
    nodes: NodeColumns, row: int, shape: Shape, devices: tuple[int, ...], sign: int
) -> None:
    nodes.free[row, CPU] -= sign * shape.cpu_milli
    nodes.free[row, MEMORY] -= sign * shape.memory_mib
    nodes.n_tasks[row] += sign
    if devices:
        milli, memory_mib = capacity.per_device(shape, int(nodes.device_memory_mib[row]))
        nodes.n_by_width[row, capacity.width_of(shape)] += sign
        nodes.device_used[row, list(devices)] += sign * milli
        nodes.device_memory_free[row, list(devices)] -= sign * memory_mib
        capacity.count_devices(nodes, row)
