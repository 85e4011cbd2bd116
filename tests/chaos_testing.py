"""A cluster to which anything may happen, and what must hold through all of it.

`Chaos` does one random thing at a time; where its choices come from (Hypothesis, or a seeded
generator) is up to the caller, who hands in `pick`.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster_testing import Cluster, check_books, check_jobs, check_restore, node_of, role_of

from policies.registry import policy_named
from scheduler.core.cycle import decide
from scheduler.core.engine import Engine
from scheduler.core.events import (
    Event,
    HalfLifeSet,
    JobCancelled,
    JobResumed,
    JobsSubmitted,
    JobSuspended,
    JobUpdated,
    NodeCordoned,
    NodeHealthChanged,
    NodeRegistered,
    NodeRemoved,
    QueueDeleted,
    QueuePut,
    QueueStateSet,
    RetentionPassed,
    TaskCheckpointed,
    TaskEnded,
    TaskStarted,
    commit_of,
)
from scheduler.core.model import (
    DEFAULT_LEVELS,
    Amounts,
    Dependency,
    DependencyKind,
    JobId,
    JobKind,
    JobPhase,
    JobSpec,
    Node,
    NodeName,
    Queue,
    QueueName,
    Role,
    Taint,
    TaintEffect,
    TaskId,
)
from scheduler.core.plan import Accepted, Outcome, Plan
from scheduler.core.ports import Backfilling
from scheduler.core.records import JobRecord

Pick = Callable[[Sequence[Any]], Any]

NODES = [f"n{i}" for i in range(6)]
MAYBE = [False, False, False, True]


def random_node(pick: Pick, name: str) -> Node:
    taint = Taint(key=pick(["a", "b"]), effect=pick(list(TaintEffect)))
    return node_of(
        name,
        gpus=pick([3, 2, 4, 1, 0]),
        gpu_type=pick(["T4", "A100"]),
        gpu_memory_mib=pick([1000, 999]),
        cpus=pick([8, 4, 1]),
        memory_mib=pick([1000, 100]),
        labels=pick([{}, {"zone": "x"}]) | random_place(pick),
        taints=[taint] if pick(MAYBE) and pick(MAYBE) else [],
    )


def random_place(pick: Pick) -> dict[str, str]:
    zone, rack = (level.label for level in DEFAULT_LEVELS if level.name in {"zone", "rack"})
    in_rack = {zone: "a", rack: pick("001")}
    return pick([{}, in_rack, in_rack, {zone: pick("ab")}])


def random_role(pick: Pick, name: str) -> Role:
    most = pick([1, 2, 3, 4])
    tasks = pick(range(1, most + 1))
    gpus = pick([1, 2, 0, 0.25, 0.333, 0.5, 0.999])
    return role_of(
        name,
        tasks=tasks,
        min_tasks=pick(range(1 if name == "worker" else 0, tasks + 1)),
        max_tasks=most,
        gpus=gpus,
        gpu_types=pick([(), (), (), ("T4",), ("A100", "T4")]),
        gpu_memory_mib=pick([0, 0, 0, 400, 1000]) if gpus else 0,
        cpus=pick([0.5, 1, 2]),
        memory_mib=pick([0, 30, 90]),
        node_labels=pick([{}, {}, {}, {"zone": "x"}]),
        tolerates=pick([(), ("a",)]),
    )


def random_spec(pick: Pick, others: Sequence[JobId]) -> JobSpec:
    names = pick([("worker",), ("worker",), ("worker", "ps")])
    n_dependencies = pick([0, 0, 0, 1, 2]) if others else 0
    return JobSpec(
        name="job",
        roles=tuple(random_role(pick, name) for name in names),
        kind=pick(list(JobKind)),
        queue=QueueName(pick(["default", "default", "other"])),
        priority=pick([0, -1, 1, 2]),
        preemptible=pick([True, True, True, False]),
        checkpoint_interval_s=pick([0.0, 30.0]),
        max_retries=pick([0, 1, 3]),
        backoff_s=pick([0.0, 5.0]),
        time_limit_s=pick([0.0, 0.0, 40.0]),
        expected_run_s=pick([0.0, 0.0, 20.0, 300.0]),
        expected_run_spread=pick([0.0, 0.5]),
        min_runtime_s=pick([0.0, 0.0, 10.0]),
        start_after_s=pick([0.0, 0.0, 0.0, 1030.0]),
        array_size=pick([0, 0, 0, 0, 1, 3]),
        suspended=pick(MAYBE) and pick(MAYBE),
        topology_required=pick(["", "", "", "", "", "", "rack", "zone", "host"]),
        topology_preferred=pick(["", "", "rack"]),
        topology_balanced=pick(MAYBE),
        dependencies=tuple(
            Dependency(on=pick(others), kind=pick(list(DependencyKind)))
            for _ in range(n_dependencies)
        ),
    )


class Chaos:
    """An engine with decisions in the loop, and users and executors who may do anything."""

    def __init__(self, pick: Pick, *, policy: str = "priority") -> None:
        self.pick = pick
        # So little patience that gangs claim places all the time.
        self.cluster = Cluster(
            replace(
                policy_named(policy),
                backfill=pick([Backfilling.EASY, Backfilling.CONSERVATIVE, Backfilling.NONE]),
                backfill_depth=3,
                defragments=pick(MAYBE),
                patience_s=20.0,
                starvation_s=100.0,
            )
        )
        self.engine = self.cluster.engine
        self.jobs: list[JobId] = []
        self.plans: list[Plan] = []
        self.ended: list[TaskEnded] = []
        self.bound: set[TaskId] = set()
        self.final: dict[JobId, tuple[JobRecord, bytes]] = {}
        self.waits_for: dict[JobId, tuple[Dependency, ...]] = {}
        self.elements: dict[JobId, tuple[JobId, ...]] = {}
        self.counts: Counter[str] = Counter()  # what happened: chaos should not be calm

    def now_s(self, late_s: float = 0.0) -> float:
        return self.cluster.now_s - late_s

    def observe(self, event: Event) -> Outcome:
        before = self.engine.dump()
        outcome = self.engine.observe(event)
        self.cluster.events.append(event)
        # By value: what the outcome says of finished jobs is checked against it later.
        self.cluster.outcomes.append(pickle.loads(pickle.dumps(outcome)))
        self.counts[type(event).__name__] += isinstance(outcome, Accepted)
        if not isinstance(outcome, Accepted):
            after = self.engine.dump()
            assert (after.jobs, after.nodes, after.queues) == (
                before.jobs,
                before.nodes,
                before.queues,
            )
            assert (after.outcomes, after.requests) == (before.outcomes, before.requests)
            return outcome
        for record in outcome.finished:
            self._bury(record)
        self._check_starts(outcome)
        for eviction in outcome.evictions:
            self.counts[eviction.cause] += 1
            assert eviction.tasks
        self.counts["stale"] += len(outcome.stale)
        return outcome

    def _bury(self, record: JobRecord) -> None:
        assert record.id not in self.final
        assert record.phase.is_final
        assert not record.live_tasks()
        assert self.engine.job(record.id) is None
        assert min(record.waited_before_s, record.ran_before_s, record.gpu_s_before) >= 0
        self.counts[record.phase] += 1
        self.final[record.id] = (record, pickle.dumps(record))

    def _check_starts(self, outcome: Accepted) -> None:
        for job in {start.job.id: start.job for start in outcome.starts}.values():
            nodes = {s.task.node for s in outcome.starts if s.job.id == job.id}
            self._check_topology(job.spec.topology_required, nodes)
        for start in outcome.starts:
            assert start.task.id not in self.bound
            self.bound.add(start.task.id)
            self.counts["starts"] += 1
            assert start.master_address
            for dependency in self.waits_for[start.job.id]:
                self._check_dependency(dependency)

    def _check_topology(self, level: str, names: set[NodeName]) -> None:
        """Tasks that start together are in one domain of the level that is required."""
        if not level:
            return
        self.counts["required"] += 1
        if level == "host":
            assert len(names) == 1
            return
        views = [self.engine.node(name) for name in names]
        labels = [dict(view.node.labels) for view in views if view is not None]
        above = [other.label for other in DEFAULT_LEVELS]
        above = above[: [other.name for other in DEFAULT_LEVELS].index(level) + 1]
        assert len({tuple(labels_of.get(key) for key in above) for labels_of in labels}) == 1
        assert all(above[-1] in labels_of for labels_of in labels)

    def _check_dependency(self, dependency: Dependency) -> None:
        elements = self.elements.get(dependency.on, (dependency.on,))
        phases = [self.final[element][0].phase for element in elements]  # all have ended
        is_ok = all(phase is JobPhase.SUCCEEDED for phase in phases)
        assert dependency.kind is DependencyKind.AFTER_ANY or is_ok == (
            dependency.kind is DependencyKind.AFTER_OK
        )

    # Nodes

    def nodes_change(self) -> None:
        pick, name = self.pick, NodeName(self.pick(NODES))
        at_s = self.now_s()
        what = pick(["register", "register", "health", "health", "cordon", "cordon", "remove"])
        if what == "register":
            self.observe(NodeRegistered(at_s=at_s, node=random_node(pick, name)))
        elif what == "health":
            bad = tuple(device for device in range(3) if pick(MAYBE))
            event = NodeHealthChanged(
                at_s=at_s, name=name, is_up=not pick(MAYBE), unhealthy_gpus=bad
            )
            self.observe(event)
        elif what == "cordon":
            event = NodeCordoned(
                at_s=at_s, name=name, is_cordoned=pick(MAYBE), is_draining=pick(MAYBE)
            )
            self.observe(event)
        else:
            self.observe(NodeRemoved(at_s=at_s, name=name))

    # Users

    def begin(self) -> None:
        self.observe(QueuePut(at_s=self.now_s(), queue=Queue(name=QueueName("other"))))
        for name in NODES[: self.pick([2, 3, 5])]:
            node = random_node(self.pick, name)
            self.observe(NodeRegistered(at_s=self.now_s(), node=node))
        for _ in range(self.pick([2, 4, 8])):
            self.submit()

    def submit(self) -> None:
        spec = random_spec(self.pick, self.jobs)
        request_id = self.pick(["", "", "", "r1", "r2"])
        n_before = len(list(self.engine.jobs()))
        outcome = self.observe(
            JobsSubmitted(
                at_s=self.now_s(),
                spec=spec,
                request_id=request_id,
                fingerprint=self.pick(["same", "same", "other"]),
            )
        )
        if not isinstance(outcome, Accepted):
            return
        (job_id,) = outcome.job_ids
        if outcome.is_repeat:
            assert len(list(self.engine.jobs())) == n_before
            return
        elements = tuple(JobId(f"{job_id}_{i}") for i in range(spec.array_size)) or (job_id,)
        self.elements[job_id] = elements
        self.jobs += {job_id: None} | dict.fromkeys(elements)
        for element in elements:
            self.waits_for[element] = spec.dependencies

    def command(self) -> None:
        if not self.jobs:
            return
        pick, at_s = self.pick, self.now_s()
        job_id = pick(self.jobs)
        what = pick([JobCancelled, JobSuspended, JobResumed, JobUpdated, JobUpdated])
        if what is JobUpdated:
            count = pick([None, None, 0, 1, 2, 3, 4])
            event = JobUpdated(
                at_s=at_s,
                job_id=job_id,
                priority=pick([None, -1, 0, 2]),
                time_limit_s=pick([None, None, 0.0, 10.0]),
                replicas=() if count is None else ((pick(["worker", "worker", "ps"]), count),),
            )
            self.observe(event)
        else:
            self.observe(what(at_s=at_s, job_id=job_id))

    def administer(self) -> None:
        pick, at_s, name = self.pick, self.now_s(), QueueName("other")
        what = pick(["put", "state", "remember", "put", "delete", "forget"])
        if what == "state":
            event = QueueStateSet(
                at_s=at_s,
                name=pick([name, name, QueueName("nobody's")]),
                is_open=pick([None, True, True, False]),
                is_started=pick([None, True, True, False]),
            )
            self.observe(event)
        elif what == "remember":
            self.observe(HalfLifeSet(at_s=at_s, half_life_s=pick([0.0, 5.0, 50.0, 50.0])))
        elif what == "put":
            most = pick([None, None, 0, 1000, 3000])
            queue = Queue(
                name=name,
                is_open=not pick(MAYBE),
                is_started=not pick(MAYBE),
                default_time_limit_s=pick([0.0, 0.0, 40.0]),
                max_time_limit_s=pick([0.0, 0.0, 0.0, 50.0]),
                default_min_runtime_s=pick([0.0, 10.0]),
                is_preemptible=not pick(MAYBE),
                max_jobs_per_submitter=pick([0, 0, 0, 5]),
                limit=() if most is None else ((pick(["gpu_milli", "cpu_milli"]), most),),
            )
            self.observe(QueuePut(at_s=at_s, queue=queue))
        elif what == "delete":
            self.observe(QueueDeleted(at_s=at_s, name=name))
        else:
            before_s = at_s - pick([0.0, 30.0])
            self.observe(RetentionPassed(at_s=at_s, before_s=before_s))

    # Decisions

    def decide(self) -> Plan:
        snapshot = self.engine.snapshot(self.now_s())
        plan = decide(snapshot, self.cluster.policy)
        assert decide(snapshot, self.cluster.policy) == plan
        placed = {placement.job_id for placement in plan.placements}
        for record in self.engine.jobs():
            if record.phase is JobPhase.PENDING:
                assert (record.id in placed) != (record.id in plan.unplaced)
        for why in plan.unplaced.values():
            assert why.sentence()
        return plan

    def cycle(self) -> None:
        plan = self.decide()
        outcome = self._commit(plan)
        assert not outcome.stale  # nothing happened in between
        n_asked = sum(len(eviction.tasks) for eviction in outcome.evictions)
        assert n_asked == sum(len(eviction.tasks) for eviction in plan.evictions)

    def think(self) -> None:
        self.plans.append(self.decide())

    def commit_late(self) -> None:
        if self.plans:
            self._commit(self.pick(self.plans))

    def _commit(self, plan: Plan) -> Accepted:
        before = self.engine.queue_used()
        outcome = self.observe(commit_of(plan, self.now_s()))
        assert isinstance(outcome, Accepted)
        self._check_queues(outcome, before)
        return outcome

    def _check_queues(self, outcome: Accepted, before: Mapping[QueueName, Amounts]) -> None:
        """Check that what a plan started is within the limits of now, not of its snapshot."""
        after = self.engine.queue_used()
        for queue in self.engine.queues():
            for resource, most in queue.limit:
                amount = dict(after[queue.name]).get(resource, 0)
                assert amount <= max(most, dict(before[queue.name]).get(resource, 0))
        for start in outcome.starts:
            queue = self.engine.queue(start.job.spec.queue)
            assert queue is not None
            assert queue.is_started

    # Executors

    def _a_live_task(self) -> TaskId | None:
        tasks = [task.id for record in self.engine.jobs() for task in record.live_tasks()]
        return self.pick(tasks) if tasks else None

    def start_tasks(self) -> None:
        for record in list(self.engine.jobs()):
            for task in record.live_tasks():
                if not self.pick(MAYBE):
                    self.observe(TaskStarted(at_s=self.now_s(), task=task.id))

    def end_task(self) -> None:
        task = self._a_live_task()
        if task is None:
            return
        ways = [{"exit_code": 0}] * 4
        ways += [{"exit_code": 1}, {"signal": 9}, {"is_lost": True}, {"reason": "no such file"}]
        late_s = self.pick([0.0, 0.0, 7.0])
        event = TaskEnded(at_s=self.now_s(late_s), task=task, **self.pick(ways))
        self.ended.append(event)
        self.observe(event)

    def let_go(self) -> None:
        for eviction in self.engine.evictions_in_flight():
            for task in eviction.tasks:
                if not self.pick(MAYBE):
                    self.observe(TaskEnded(at_s=self.now_s(), task=task, signal=15))

    def repeat(self) -> None:
        if not self.ended:
            return
        event = self.pick(self.ended)
        for again in (event, TaskStarted(at_s=self.now_s(), task=event.task)):
            outcome = self.observe(again)
            if isinstance(outcome, Accepted):
                assert outcome.is_repeat
                assert not outcome.changed

    def checkpoint(self) -> None:
        if (task := self._a_live_task()) is not None:
            late_s = self.pick([0.0, 7.0])
            self.observe(TaskCheckpointed(at_s=self.now_s(late_s), task=task))

    def unknown_task(self) -> None:
        job = self.pick(self.jobs or [JobId("99")])
        task = TaskId(job, self.pick(["worker", "x"]), 7, self.pick([0, 1, 99]))
        outcome = self.observe(TaskStarted(at_s=self.now_s(), task=task))
        assert not getattr(outcome, "changed", ())

    # Time

    def advance(self) -> None:
        self.cluster.advance(self.pick([0.5, 5.0, 30.0, 700.0]))

    STEPS = (
        *("cycle", "cycle", "cycle", "start_tasks", "let_go", "let_go", "end_task", "end_task"),
        *("submit", "submit", "submit", "command", "nodes_change", "advance", "think"),
        *("commit_late", "repeat", "checkpoint", "administer", "unknown_task", "restart"),
    )

    def step(self) -> None:
        getattr(self, self.pick(self.STEPS))()

    def restart(self) -> None:
        """Go on from a dump; the replay at the end tells whether that made a change."""
        check_restore(self.engine, self.cluster.policy, self.now_s())
        self.engine = self.cluster.engine = Engine.restore(self.engine.dump())

    def check(self) -> None:
        check_books(self.engine)
        check_jobs(self.engine, self.now_s())
        for record, image in self.final.values():
            assert pickle.dumps(record) == image

    def finish(self) -> None:
        self.check()
        self.cluster.validate()
