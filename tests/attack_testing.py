"""Chaos with everything at once: every policy and score, a tree of queues, odd numbers.

`Attack` draws jobs that use all features together, and queues that guarantee, keep, limit,
weigh and name policies of their own. The policy changes while it runs. What must hold is
checked at every decision.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
from chaos_testing import MAYBE, NODES, Chaos, Pick, random_node, random_spec
from cluster_testing import role_of

from policies.registry import (
    AIMED_SCORES,
    POLICIES,
    SCORES,
    TIMED_SCORES,
    in_rounds_of,
    policy_named,
)
from scheduler.core.books import Books
from scheduler.core.cycle import decide, dry_run, expected_start, explain
from scheduler.core.engine import Engine
from scheduler.core.events import (
    HalfLifeSet,
    JobCancelled,
    JobsSubmitted,
    NodeRegistered,
    QueueDeleted,
    QueuePut,
    QueueStateSet,
    TaskEnded,
    TaskStarted,
)
from scheduler.core.model import (
    Amounts,
    JobId,
    JobKind,
    JobSpec,
    Node,
    NodeName,
    Queue,
    QueueName,
    QueuePreemption,
    Role,
    SharedThroughput,
    StopCause,
    TaskPhase,
)
from scheduler.core.plan import Accepted, Plan
from scheduler.core.ports import Backfilling
from scheduler.core.snapshot import Snapshot

TYPES = ["T4", "A100", "H100"]
QUEUES = ["default", "a", "b", "a1", "a2", "b1"]
RESOURCES = ["cpu_milli", "memory_mib", "gpu_milli", *(f"gpu_milli:{t}" for t in TYPES)]
RESOURCES += ["gpu_milli:none such"]
ODD = [1.0, 2.0, 5.0, 1e-12, 1e12]
MIXED_SCORES = [{"fgd": 1.0, "price": 0.3, "health": 0.2}, {"best-fit": 1e-9, "random": 1e8}]
MOST_JOBS = 25


def any_amounts(pick: Pick) -> Amounts:
    names = sorted({pick(RESOURCES) for _ in range(pick([1, 1, 2, 3]))})
    return tuple((name, pick([0, 1, 500, 1000, 2000, 3000, 8000, 10**5])) for name in names)


def any_node(pick: Pick, name: str) -> Node:
    node = random_node(pick, name)
    pairs = ((0, 1), (2, 3))[: len(node.gpus) // 2]
    return replace(
        node,
        taints=node.taints if pick(MAYBE) else (),
        cpu_milli=16_000,
        memory_mib=4_000,
        gpu_type=pick(TYPES),
        price_usd_per_h=pick([0.0, 0.0, 1.0, 2.5, 1e-6, 1e6]),
        nvlink=pairs if pick(MAYBE) else (),
    )


def any_spec(pick: Pick, now_s: float) -> JobSpec:
    spec = random_spec(pick, [])
    odd = ODD if pick(MAYBE) and pick(MAYBE) else ODD[:3]
    is_elastic = any(role.min_count < role.max_count for role in spec.roles)
    names = sorted({pick([*TYPES, "none such"]) for _ in range(pick([1, 2, 3]))})
    spec = replace(
        spec,
        array_size=0,
        suspended=False,
        start_after_s=0.0,
        time_limit_s=pick([0.0] * 9 + [40.0]),
        roles=tuple(_roomy(pick, role) for role in spec.roles),
        queue=QueueName(pick(QUEUES)),
        priority=pick([0, 0, 0, -1, 1, 2, 10**9, -(10**9)]),
        may_preempt=not pick(MAYBE),
        weight=pick([1.0, 1.0, *odd]),
        checkpoint_interval_s=pick([0.0, 30.0, 30.0, 300.0]),
        expected_run_s=pick([0.0, 0.0, 20.0, 300.0, 3000.0, 1e8]),
        total_work=pick([0.0, 0.0, 100.0, 5000.0, odd[-1]]),
        deadline_at_s=pick([0.0, 0.0, now_s + 10, now_s + 5000, max(now_s - 100, 1.0)]),
        topology_required=pick([""] * 12 + ["rack", "zone", "host", "nvlink", "none such"]),
        topology_preferred=pick(["", "", "", "rack", "nvlink"]),
        throughputs=tuple((t, pick(odd)) for t in names) if pick([True, False]) else (),
        elastic=is_elastic and pick([True, False]),
        resize_cooldown_s=pick([0.0, 30.0, 600.0]),
        scaling=((1, 1.0), (2, pick(odd)), (4, pick(odd))) if pick(MAYBE) else (),
    )
    if spec.kind is JobKind.INFERENCE and pick(MAYBE):
        spec = replace(spec, roles=tuple(replace(role, min_count=0) for role in spec.roles))
    may_share = spec.kind is not JobKind.INFERENCE and pick([True, False, False])
    return _sharing(pick, spec, odd) if may_share else spec


def _roomy(pick: Pick, role: Role) -> Role:
    shape = replace(role.shape, node_labels=(), gpu_memory_mib=0, cpu_milli=500)
    return replace(role, shape=shape if pick(MAYBE) else replace(shape, gpu_types=()))


def _sharing(pick: Pick, spec: JobSpec, odd: list[float]) -> JobSpec:
    said = dict(spec.throughputs)
    types = [name for name in TYPES if name in said or not said]
    return replace(
        spec,
        roles=(role_of(gpus=pick([1, 1, 2]), gpu_types=pick([(), (), ("A100", "T4")])),),
        elastic=False,
        scaling=(),
        topology_required="",
        profile=pick(["p", "q"]),
        shared_throughputs=tuple(
            SharedThroughput(gpu_type=name, beside=beside, per_s=pick([0.4, 0.8, *odd]))
            for name in types
            for beside in ("p", "q")
        ),
    )


class Attack(Chaos):
    """What users, admins and machines may do at worst, and decisions that must bear it."""

    STEPS = (*Chaos.STEPS, *("submit", "rest", "rest", "advance", "administer", "ask") * 2)

    def __init__(self, pick: Pick) -> None:
        super().__init__(pick)
        self.granted = self.cluster.granted
        self.books = Books()
        self.seated: frozenset[JobId] = frozenset()
        self.change_policy()

    def change_policy(self) -> None:
        pick = self.pick
        score = pick([None, *SCORES, *AIMED_SCORES, *TIMED_SCORES, *MIXED_SCORES])
        name = pick(list(POLICIES))
        policy = policy_named(name, score=score, snapshot=self.snapshot())
        self.counts[name] += 1
        self.cluster.policy = replace(
            in_rounds_of(policy, pick([60.0, 360.0])),
            backfill=pick(list(Backfilling)),
            backfill_depth=pick([1, 3, 8]),
            defragments=pick([True, False]),
            patience_s=pick([20.0, 600.0]),
            starvation_s=pick([100.0, 86_400.0]),
        )

    def snapshot(self) -> Snapshot:
        return self.engine.snapshot(self.now_s()).with_granted(self.granted)

    # What happens

    def begin(self) -> None:
        for name in QUEUES[1:]:
            self.put_queue(name)
        for name in NODES[: self.pick([1, 2, 3, 5])]:
            self.observe(NodeRegistered(at_s=self.now_s(), node=any_node(self.pick, name)))
        for _ in range(self.pick([2, 4, 8])):
            self.submit()

    def submit(self) -> None:
        if len(self.engine.jobs()) >= MOST_JOBS:
            job_id = self.pick([record.id for record in self.engine.jobs()])
            self.observe(JobCancelled(at_s=self.now_s(), job_id=job_id))
        spec = any_spec(self.pick, self.now_s())
        if self.engine.queue(spec.queue) is not None and self.pick(MAYBE):
            dry_run(self.snapshot(), self.cluster.policy, spec)
        event = JobsSubmitted(at_s=self.now_s(), spec=spec, submitter=self.pick("xy"))
        outcome = self.observe(event)
        if isinstance(outcome, Accepted):
            (job_id,) = outcome.job_ids
            self.jobs.append(job_id)
            self.elements[job_id], self.waits_for[job_id] = (job_id,), ()

    def nodes_change(self) -> None:
        if self.pick([True, False]):
            node = any_node(self.pick, NodeName(self.pick(NODES)))
            self.observe(NodeRegistered(at_s=self.now_s(), node=node))
        else:
            super().nodes_change()

    def put_queue(self, name: str) -> None:
        pick = self.pick
        usual = name[0] if name in {"a1", "a2", "b1"} else ""
        queue = Queue(
            name=QueueName(name),
            parent=QueueName(pick([usual, usual, usual, pick(QUEUES)])),
            is_started=not (pick(MAYBE) and pick(MAYBE)),
            weight=pick([1.0, 1.0, 2.0, 1e-9, 1e6]),
            guaranteed=any_amounts(pick) if pick([True, False]) else (),
            limit=any_amounts(pick) if pick(MAYBE) else (),
            borrow_limit=any_amounts(pick) if pick(MAYBE) else (),
            is_lender=not pick(MAYBE),
            default_priority=pick([0, 0, 5]),
            may_preempt=pick([*QueuePreemption, QueuePreemption.ANYWHERE]),
            policy=pick(["", "", "", pick(list(POLICIES))]),
            default_min_runtime_s=pick([0.0, 10.0]),
        )
        self.observe(QueuePut(at_s=self.now_s(), queue=queue))

    def administer(self) -> None:
        pick, at_s, name = self.pick, self.now_s(), QueueName(self.pick(QUEUES))
        match pick(["put", "put", "state", "remember", "delete", "policy"]):
            case "put":
                self.put_queue(name)
            case "state":
                is_started = pick([True, True, False])
                self.observe(QueueStateSet(at_s=at_s, name=name, is_started=is_started))
            case "remember":
                self.observe(HalfLifeSet(at_s=at_s, half_life_s=pick([0.0, 5.0, 1e6])))
            case "delete":
                self.observe(QueueDeleted(at_s=at_s, name=name))
            case "policy":
                self.change_policy()

    def ask(self) -> None:
        if self.engine.jobs():
            job_id = self.pick([record.id for record in self.engine.jobs()])
            explain(self.snapshot(), self.cluster.policy, job_id)
            expected_start(self.snapshot(), self.cluster.policy, job_id)

    def restart(self) -> None:
        again = Engine.restore(self.engine.dump())
        assert again.queue_used() == self.engine.queue_used()
        before = decide(self.engine.snapshot(self.now_s()), self.cluster.policy)
        after = decide(again.snapshot(self.now_s()), self.cluster.policy)
        # Of programs only up to rounding, which depends on how arrays lie in memory.
        assert replace(before, granted={}) == replace(after, granted={})
        for name, granted in before.granted.items():
            assert granted.question == after.granted[name].question
            np.testing.assert_allclose(
                granted.fractions, after.granted[name].fractions, atol=1e-6
            )
        self.engine = self.cluster.engine = again
        self.books = Books()

    def rest(self) -> None:
        """While time stands still, decisions come to rest."""
        for _ in range(4 * len(self.engine.jobs()) + 10):
            plan = self.decide()
            assert not self._commit(plan).stale
            for record in list(self.engine.jobs()):
                for task in record.live_tasks():
                    if task.phase is TaskPhase.BOUND:
                        self.observe(TaskStarted(at_s=self.now_s(), task=task.id))
            leaving = self.engine.evictions_in_flight()
            for eviction in leaving:
                for task_id in eviction.tasks:
                    self.observe(TaskEnded(at_s=self.now_s(), task=task_id, signal=15))
            if plan.is_empty and not leaving:
                return
        raise AssertionError(f"restless: {plan}")

    # What must hold

    def decide(self) -> Plan:
        snapshot, policy = self.snapshot(), self.cluster.policy
        plan = decide(snapshot, policy)
        assert decide(snapshot, policy) == plan
        assert decide(snapshot, policy, books=self.books) == plan
        silent = decide(snapshot, policy, books=self.books, gives_reasons=False)
        for part in ("placements", "evictions", "resizes", "makes_room_for", "granted"):
            assert getattr(silent, part) == getattr(plan, part)
        self._check_evictions(plan)
        return plan

    def cycle(self) -> None:
        assert not self._commit(self.decide()).stale  # nothing happened in between

    def _commit(self, plan: Plan) -> Accepted:
        self.seated = frozenset(record.id for record in self.engine.jobs() if record.seats)
        outcome = super()._commit(plan)
        self.granted = plan.granted
        return outcome

    def _check_evictions(self, plan: Plan) -> None:
        asked = [task for eviction in plan.evictions for task in eviction.tasks]
        assert len(set(asked)) == len(asked)
        for eviction in plan.evictions:
            record = self.engine.job(eviction.job_id)
            assert record is not None
            if eviction.cause not in {StopCause.PREEMPTED, StopCause.MIGRATED}:
                continue
            spec = record.job.spec
            assert spec.preemptible
            if spec.kind is JobKind.INFERENCE:
                staying = Counter(
                    task.id.role
                    for task in record.live_tasks()
                    if task.phase is not TaskPhase.STOPPING and task.id not in asked
                )
                touched = {task.role for task in eviction.tasks}
                least = {role.name: role.min_count for role in spec.roles}
                assert all(staying[name] >= least[name] for name in touched)

    def _check_queues(self, outcome: Accepted, before: object) -> None:
        after = self.engine.queue_used()
        assert isinstance(before, dict)
        for queue in self.engine.queues():
            borrowed = [(n, self._promised(queue, n) + most) for n, most in queue.borrow_limit]
            for resource, most in (*queue.limit, *borrowed):
                amount = dict(after[queue.name]).get(resource, 0)
                assert amount <= max(most, dict(before[queue.name]).get(resource, 0))
        for start in outcome.starts:
            line: Queue | None = self.engine.queue(start.job.spec.queue)
            while line is not None:  # who is being resized goes on in a stopped queue, too
                assert line.is_started or start.job.id in self.seated
                line = self.engine.queue(line.parent)

    def _promised(self, queue: Queue, name: str) -> int:
        own = dict(queue.guaranteed).get(name)
        below = [q for q in self.engine.queues() if q.parent == queue.name]
        return own if own is not None else sum(self._promised(q, name) for q in below)

    def _check_topology(self, level: str, names: set[NodeName]) -> None:
        if level not in {"nvlink", "none such"}:
            super()._check_topology(level, names)
