"""Whatever happens, in whatever order: the books balance and nothing is started twice.

Users, nodes and executors do anything, also late, doubled, unknown and out of order, with
decisions in the loop; a Hypothesis state machine finds small stories, seeded soaks long ones.
"""

import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from chaos_testing import Chaos, Pick, random_spec
from cluster_testing import Cluster
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.core.cycle import DRY_RUN_ID, dry_run
from scheduler.core.events import NodeRegistered
from scheduler.core.model import JobId, JobKind, JobPhase, QueueName
from scheduler.core.plan import Cause, Plan


def drawing(data: st.DataObject) -> Pick:
    return lambda options: data.draw(st.sampled_from(list(options)))


class Anything(RuleBasedStateMachine):
    """Few rules, which draw what they do: Hypothesis leaves whole rules out of a story."""

    @initialize(data=st.data(), policy=st.sampled_from(["priority", "fifo"]))
    def begin(self, data: st.DataObject, policy: str) -> None:
        self.chaos = Chaos(drawing(data), policy=policy)
        self.chaos.begin()

    @rule(data=st.data())
    def anything(self, data: st.DataObject) -> None:
        self.chaos.pick = drawing(data)
        self.chaos.step()

    @rule(data=st.data())
    def things_take_their_course(self, data: st.DataObject) -> None:
        self.chaos.pick = drawing(data)
        for step in (self.chaos.cycle, self.chaos.start_tasks, self.chaos.let_go):
            step()
            self.chaos.check()

    @invariant()
    def all_is_well(self) -> None:
        if hasattr(self, "chaos"):
            self.chaos.check()

    def teardown(self) -> None:
        if hasattr(self, "chaos"):
            self.chaos.finish()


Anything.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestAnything = Anything.TestCase


@pytest.mark.parametrize("seed", range(12))
def test_a_long_life_keeps_the_invariants(seed: int) -> None:
    policy = ("priority", "fifo")[seed % 2]
    chaos = Chaos(random.Random(seed).choice, policy=policy)
    chaos.begin()
    for _ in range(400):
        chaos.step()
        chaos.check()
    chaos.finish()
    assert chaos.counts["starts"] > 5, chaos.counts


def busy_cluster(draw: random.Random) -> Cluster:
    """Return a healthy cluster with jobs of all sorts, some running, some waiting."""
    cluster = Cluster()
    for i in range(draw.choice([2, 3, 4])):
        cluster.add_node(
            f"node-{i}",
            gpus=draw.choice([2, 3, 4]),
            gpu_type=draw.choice(["T4", "A100"]),
            cpus=draw.choice([4, 8]),
            memory_mib=1000,
            gpu_memory_mib=1000,
        )
    for i in range(draw.randint(6, 16)):
        submit_something(cluster, draw, f"job-{i}")
        if draw.random() < 0.5:
            cluster.settle()
        cluster.advance(draw.choice([0, 10, 50]))
    return cluster


def submit_something(cluster: Cluster, draw: random.Random, name: str) -> None:
    spec = replace(
        random_spec(draw.choice, []),
        name=name,
        queue=QueueName("default"),
        array_size=0,
        start_after_s=0.0,
        time_limit_s=0.0,
        suspended=False,
    )
    cluster.submit_spec(spec)


def would_fit_alone(cluster: Cluster, name: str) -> bool:
    other = Cluster()
    for view in cluster.engine.nodes():
        other.observe(NodeRegistered(at_s=0.0, node=view.node))
    other.submit_spec(cluster.job(name).job.spec)
    return bool(other.decide().placements)


@pytest.mark.parametrize("seed", range(40))
def test_whoever_is_stopped_makes_room_for_somebody_who_then_starts(seed: int) -> None:
    draw = random.Random(seed)
    cluster = busy_cluster(draw)
    submit_something(cluster, draw, "asks")
    cluster.update("asks", priority=9)
    decided = cluster.cycle()
    waits = decided.unplaced.get("asks")
    cluster.let_go()
    started = cluster.cycle().started
    if waits is not None:
        assert ("asks" in started) == (waits.cause is Cause.RELEASE)
    for eviction in decided.plan.evictions:
        assert eviction.detail.startswith("makes room for ")


@pytest.mark.parametrize("seed", range(40))
def test_every_job_that_fits_an_empty_cluster_runs_to_its_end(seed: int) -> None:
    draw = random.Random(seed)
    cluster = busy_cluster(draw)
    names = [record.job.spec.name for record in cluster.engine.jobs()]
    for _ in range(300):
        cluster.cycle()
        cluster.run_all()
        cluster.let_go()
        cluster.advance(60)
        for name in names:
            record = cluster.job(name)
            if record.phase is JobPhase.RUNNING and draw.random() < 0.5:
                if record.job.spec.kind is JobKind.INFERENCE:
                    cluster.cancel(name)
                else:
                    cluster.end(name)
    left = [name for name in names if not cluster.job(name).phase.is_final]
    assert not [name for name in left if would_fit_alone(cluster, name)]
    cluster.validate()


@pytest.mark.parametrize("seed", range(40))
def test_a_dry_run_foretells_what_a_submit_does(seed: int) -> None:
    draw = random.Random(seed)
    cluster = busy_cluster(draw)
    spec = replace(random_spec(draw.choice, []), name="asks", queue=QueueName("default"))
    spec = replace(spec, array_size=0, priority=draw.choice([-1, 0, 5]))
    foretold = dry_run(cluster.snapshot(), cluster.policy, spec)
    job_id = cluster.submit_spec(spec)
    plan = cluster.decide()
    assert [e.tasks for e in plan.evictions] == [e.tasks for e in foretold.evictions]
    assert places_of(plan, job_id) == places_of(foretold, DRY_RUN_ID)
    held_back = foretold.unplaced.get(DRY_RUN_ID)
    if not spec.suspended:
        assert plan.unplaced.get(job_id) == held_back
    assert cluster.explain("asks") == held_back


def places_of(plan: Plan, job_id: JobId) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (str(bind.node), bind.devices)
        for placement in plan.placements
        if placement.job_id == job_id
        for bind in placement.binds
    ]
