"""Whatever tenants do: limits hold, guarantees are met, nobody gives too much, and it settles.

Random trees of queues, jobs and cycles on a small cluster; what must hold is computed here from
specs and places alone. A Hypothesis state machine finds small stories, seeded soaks long ones.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from cluster_testing import Cluster
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from scheduler.core.events import HalfLifeSet
from scheduler.core.model import (
    JobId,
    JobKind,
    JobPhase,
    Queue,
    QueueName,
    QueuePreemption,
    StopCause,
    Task,
    TaskId,
)
from scheduler.core.plan import Accepted, Eviction, Plan
from scheduler.core.records import JobRecord

Pick = Callable[[Sequence[Any]], Any]
Use = Counter[str]
SMALL = {"T4": 2, "A100": 6}
CLASSES = ("gpu_milli", "memory_mib", "cpu_milli")


class Tenants:
    """A cluster, a tree of queues, and what they do to each other."""

    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        self.cluster = Cluster(pick(["priority", "fifo"]))
        self.n_jobs = 0
        self.plans: list[Plan] = []
        self.counts: Counter[str] = Counter()
        self.cluster.add_nodes(1, gpus=2, gpu_type="T4", prefix="t", cpus=16)
        self.cluster.add_nodes(2, gpus=3, gpu_type="A100", prefix="a", cpus=12)
        self.put_queues()
        half_life_s = pick([0.0, 0.0, 60.0])
        self.cluster.accept(HalfLifeSet(at_s=self.cluster.now_s, half_life_s=half_life_s))

    # The tree

    def put_queues(self) -> None:
        pick = self.pick
        names = [f"q{i}" for i in range(pick([3, 2, 4, 6]))]
        for i, name in enumerate(names):
            parent = pick(["", *names[:i]]) if i else ""
            self.put_queue(name, parent)

    def put_queue(self, name: str, parent: str) -> None:
        pick = self.pick
        resource = pick(["gpu_milli", "gpu_milli", "gpu_milli:A100", "cpu_milli"])
        guaranteed = pick([0, 1, 2, 3, 4])
        limit = pick([None, None, None, 2, 4, 6])
        queue = Queue(
            name=QueueName(name),
            parent=QueueName(parent),
            weight=pick([1.0, 2.0, 0.5]),
            guaranteed=((resource, guaranteed * 1000),) if guaranteed else (),
            limit=() if limit is None else (("gpu_milli", limit * 1000),),
            borrow_limit=((resource, 1000),) if pick([False, False, False, True]) else (),
            is_lender=pick([True, True, True, False]),
            may_preempt=pick(
                [QueuePreemption.ANYWHERE, QueuePreemption.ANYWHERE, *QueuePreemption]
            ),
            policy=pick(["", "", "", "fifo", "priority", "shortest_job"]),
        )
        # One that makes no sense, adding up to too much, is refused: others have to do.
        self.cluster.observe(_put(self.cluster, queue))

    @property
    def queues(self) -> dict[QueueName, Queue]:
        return {queue.name: queue for queue in self.cluster.engine.queues()}

    def line(self, name: QueueName) -> list[Queue]:
        queues, line = self.queues, []
        while name in queues:
            line.append(queues[name])
            name = queues[name].parent
        return line

    def promised(self, queue: Queue) -> Use:
        """What a queue is guaranteed: as it says, or else what those below it are."""
        below: Use = Counter()
        for child in self.queues.values():
            if child.parent == queue.name:
                below.update(self.promised(child))
        return Counter({**below, **dict(queue.guaranteed)})

    def ceiling(self, queue: Queue, resource: str) -> float:
        most = dict(queue.limit).get(resource, float("inf"))
        borrow = dict(queue.borrow_limit).get(resource)
        if borrow is not None:
            most = min(most, self.promised(queue)[resource] + borrow)
        return most

    # What is used

    def held(self, record: JobRecord, tasks: Iterable[Task] | None = None) -> Use:
        shapes = {role.name: role.shape for role in record.job.spec.roles}
        use: Use = Counter()
        for task in record.live_tasks() if tasks is None else tasks:
            shape = shapes[task.id.role]
            node = self.cluster.engine.node(task.node)
            assert node is not None
            use["cpu_milli"] += shape.cpu_milli
            use["memory_mib"] += shape.memory_mib
            use["gpu_milli"] += shape.total_gpu_milli
            use[f"gpu_milli:{node.node.gpu_type}"] += shape.total_gpu_milli
        return +use

    def used(self, but: Iterable[TaskId] = ()) -> dict[QueueName, Use]:
        use: dict[QueueName, Use] = {name: Counter() for name in self.queues}
        gone = set(but)
        for record in self.cluster.engine.jobs():
            held = self.held(record, [t for t in record.live_tasks() if t.id not in gone])
            for queue in self.line(record.job.spec.queue):
                use[queue.name].update(held)
        return use

    def check_books(self) -> None:
        told = self.cluster.engine.queue_used()
        used = self.used()
        assert {n: dict(told[n]) for n in used} == {n: dict(+u) for n, u in used.items()}

    # What happens

    def submit(self) -> None:
        pick = self.pick
        self.n_jobs += 1
        tasks = pick([1, 1, 1, 2, 3])
        self.cluster.submit(
            f"j{self.n_jobs}",
            queue=pick(sorted(self.queues)),
            priority=pick([0, 0, 0, 1, 2]),
            preemptible=pick([True, True, True, True, False]),
            kind=pick([JobKind.TRAINING] * 3 + [JobKind.INFERENCE]),
            tasks=tasks,
            min_tasks=pick([tasks, tasks, 1]),
            gpus=pick([1, 1, 1, 2, 0.5, 0]),
            gpu_types=pick([(), (), ("A100",), ("A100", "T4")]),
            cpus=pick([1, 1, 2, 4]),
        )

    def end(self) -> None:
        running = [r for r in self.cluster.engine.jobs() if r.phase is JobPhase.RUNNING]
        if running:
            self.cluster.end(self.cluster.names[self.pick(running).id])

    def change(self) -> None:
        name = self.pick(sorted(set(self.queues) - {"default"}) or ["q0"])
        queue = self.queues.get(QueueName(name))
        self.put_queue(name, queue.parent if queue else "")

    def step(self) -> None:
        self.cluster.advance(self.pick([0, 5, 50]))
        self.pick(
            [self.submit] * 6
            + [self.end] * 3
            + [self.change, self.cycle, self.think, self.commit_late]
        )()

    def think(self) -> None:
        """Decide, for somebody to commit it when much has changed."""
        self.plans.append(self.cluster.decide())

    def commit_late(self) -> None:
        if self.plans:
            before, charged = self.used(), self.charged()
            outcome = self.cluster.commit(self.plans.pop()).outcome
            assert isinstance(outcome, Accepted)
            self.counts["stale"] += len(outcome.stale)
            self.check_limits(before)
            self.check_charges(charged)

    def cycle(self) -> Plan:
        """Decide and commit, and check what was decided."""
        before, charged = self.used(), self.charged()
        plan = self.cluster.decide()
        outcome = self.cluster.commit(plan).outcome
        assert isinstance(outcome, Accepted)
        assert not outcome.stale
        self.check_limits(before)
        self.check_charges(charged)
        self.check_evictions(plan)
        self.check_books()
        self.counts["cycles"] += 1
        self.counts["starts"] += len(plan.placements)
        self.counts["evictions"] += len(plan.evictions)
        return plan

    def check_limits(self, before: dict[QueueName, Use]) -> None:
        for name, use in self.used().items():
            queue = self.queues[name]
            for resource, amount in use.items():
                if amount > before[name][resource]:
                    assert amount <= self.ceiling(queue, resource), (name, resource)

    def charged(self) -> dict[QueueName, Use]:
        """What counts against ceilings, "" the cluster's: who does not lend counts in full."""
        charged: dict[QueueName, Use] = {}
        own: dict[QueueName, Use] = {name: Counter() for name in self.queues}
        for record in self.cluster.engine.jobs():
            own[record.job.spec.queue].update(self.held(record))

        def of(name: QueueName) -> Use:
            total = Counter(own.get(name, Counter()))
            for child in self.queues.values():
                if child.parent == name:
                    below = of(child.name)
                    total.update(below if child.is_lender else below | self.promised(child))
            charged[name] = total
            return total

        of(QueueName(""))
        return charged

    def check_charges(self, before: dict[QueueName, Use]) -> None:
        capacity: Use = Counter()
        for view in self.cluster.engine.nodes():
            n_gpus = len(view.node.gpus)
            capacity["cpu_milli"] += view.node.cpu_milli
            capacity["memory_mib"] += view.node.memory_mib
            capacity["gpu_milli"] += n_gpus * 1000
            capacity[f"gpu_milli:{view.node.gpu_type}"] += n_gpus * 1000
        for name, charged in self.charged().items():
            for resource, amount in charged.items():
                if amount > before[name][resource]:
                    most = self.ceiling(self.queues[name], resource) if name else None
                    assert amount <= (capacity[resource] if most is None else most)

    def check_evictions(self, plan: Plan) -> None:
        """Nobody outside the line of who asked is cut below what counted for whom it was."""
        jobs = {record.id: record for record in self.cluster.engine.jobs()}
        evicted: list[TaskId] = []
        at_home: set[QueueName] = set()  # these make room for their own, as priorities say
        for eviction in plan.evictions:
            assert eviction.cause is StopCause.PREEMPTED
            victim, asker = jobs[eviction.job_id], jobs[_asker(eviction)]
            assert victim.job.spec.preemptible
            evicted += eviction.tasks
            if victim.job.spec.queue == asker.job.spec.queue:
                at_home.update(q.name for q in self.line(victim.job.spec.queue))
                assert victim.job.spec.priority < asker.job.spec.priority
                named = [q.policy for q in self.line(victim.job.spec.queue) if q.policy]
                assert [*named, self.cluster.policy.name][0] == "priority"
                self.counts["by priority"] += 1
        after = self.used(but=evicted)
        for eviction in plan.evictions:
            victim, asker = jobs[eviction.job_id], jobs[_asker(eviction)]
            rule_ = self.queues[asker.job.spec.queue].may_preempt
            assert rule_ is not QueuePreemption.NEVER
            above = {queue.name for queue in self.line(asker.job.spec.queue)}
            chain = [q for q in self.line(victim.job.spec.queue) if q.name not in above]
            for queue in chain:
                if queue.name in at_home:
                    continue
                for resource in self.held(victim, map(victim.tasks.get, eviction.tasks)):
                    promised = self.promised(queue)[resource]
                    if resource.startswith("gpu_milli:"):
                        # Types count most: no reclaim is a reason to go below.
                        assert not promised or after[queue.name][resource] >= promised
            self.counts["by others"] += victim.job.spec.queue != asker.job.spec.queue

    def settle(self, *, has_to_meet_claims: bool = True) -> None:
        """Without new events, decisions come to rest soon; then nobody has a claim left."""
        for _ in range(3 * len(self.cluster.engine.jobs()) + 5):
            plan = self.cycle()
            self.cluster.run_all()
            if not self.cluster.let_go() and plan.is_empty:
                break
        else:
            raise AssertionError(f"restless: {plan}")
        if has_to_meet_claims:
            self.check_claims()

    def check_claims(self) -> None:
        """No job of one task waits for what a single borrower of as much could give back."""
        for record in self.cluster.engine.jobs():
            is_ready = record.eligible_at_s <= self.cluster.now_s
            if record.phase is JobPhase.PENDING and is_ready and record.job.spec.n_tasks == 1:
                self.check_claim(record)

    def check_claim(self, record: JobRecord) -> None:
        (role,) = record.job.spec.roles
        shape, line = role.shape, self.line(record.job.spec.queue)
        if line[0].may_preempt is QueuePreemption.NEVER or shape.gpus != 1:
            return
        used = self.used()
        for borrower in self.cluster.engine.jobs():
            tasks, spec = borrower.live_tasks(), borrower.job.spec
            if len(tasks) != 1 or not spec.preemptible or spec.kind is JobKind.INFERENCE:
                continue  # a service keeps its min
            node = self.cluster.engine.node(tasks[0].node)
            assert node is not None
            gpu_type = node.node.gpu_type
            theirs = self.held(borrower)
            mine = Counter(
                {
                    "cpu_milli": shape.cpu_milli,
                    "gpu_milli": 1000,
                    f"gpu_milli:{gpu_type}": 1000,
                }
            )
            if shape.gpu_types and gpu_type not in shape.gpu_types:
                continue
            if any(theirs[r] < mine[r] for r in mine):
                continue
            chain = [q for q in self.line(spec.queue) if q.name not in {p.name for p in line}]
            at = len(line) - len(self.line(spec.queue)) + len(chain)
            own = line[:at]  # below where the two lines meet
            if not own or not self.is_within(own[-1], used, mine):
                continue
            if any(
                used[q.name][r] - theirs[r] < self.promised(q)[r]
                for q in chain
                for r in theirs
                if self.promised(q)[r]
            ):
                continue
            if any(used[q.name][r] + mine[r] > self.ceiling(q, r) for q in own for r in mine):
                continue
            if any(+self.promised(q) for q in chain) or self.is_kept_by_others():
                continue  # it might be owed more than this job, and come back first
            raise AssertionError(f"{record.id} waits, {borrower.id} borrows {dict(theirs)}")

    def is_within(self, queue: Queue, used: dict[QueueName, Use], need: Use) -> bool:
        promised = self.promised(queue)
        asked = [r for r in need if promised[r]]
        return bool(asked) and all(used[queue.name][r] + need[r] <= promised[r] for r in asked)

    def is_kept_by_others(self) -> bool:
        """Whether somebody does not lend: then more than one queue's ceiling is at work."""
        return any(not queue.is_lender for queue in self.queues.values())


def _put(cluster: Cluster, queue: Queue) -> Any:
    from scheduler.core.events import QueuePut

    return QueuePut(at_s=cluster.now_s, queue=queue)


def _asker(eviction: Eviction) -> JobId:
    return JobId(eviction.detail.removeprefix("makes room for "))


def drawing(data: st.DataObject) -> Pick:
    return lambda options: data.draw(st.sampled_from(list(options)))


class Anything(RuleBasedStateMachine):
    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.tenants = Tenants(drawing(data))

    @rule(data=st.data())
    def steps(self, data: st.DataObject) -> None:
        self.tenants.pick = drawing(data)
        for _ in range(4):
            self.tenants.step()
        self.tenants.settle()

    def teardown(self) -> None:
        if hasattr(self, "tenants"):
            self.tenants.cluster.validate()


Anything.TestCase.settings = settings(max_examples=10, stateful_step_count=6)
TestTenants = Anything.TestCase


@pytest.mark.parametrize("seed", range(24))
def test_tenants_live_together(seed: int) -> None:
    tenants = Tenants(random.Random(seed).choice)
    for _ in range(25):
        for _ in range(4):
            tenants.step()
        tenants.settle()
    tenants.cluster.validate()
    assert tenants.counts["starts"] > 20, tenants.counts
    assert tenants.counts["cycles"] > 40


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100, 104, 112, 113])
def test_tenants_come_to_rest_over_a_thousand_cycles(seed: int) -> None:
    # Not all claims are met: a job of several GPU types is narrowed to those within its limits
    # before others are asked.
    tenants = Tenants(random.Random(seed).choice)
    while tenants.counts["cycles"] < 1000:
        for _ in range(4):
            tenants.step()
        tenants.settle(has_to_meet_claims=False)
        while len(tenants.cluster.engine.jobs()) > 25:
            record = tenants.pick(list(tenants.cluster.engine.jobs()))
            tenants.cluster.cancel(tenants.cluster.names[record.id])
            tenants.cluster.let_go()
    tenants.cluster.validate()
    assert tenants.counts["evictions"] > 20, tenants.counts
