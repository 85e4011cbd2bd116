"""Orders, scores and preemption rules: total, indifferent to how rows lie, and never unfair.

Small clusters are compared with exhaustive search: the cheapest victims, and gangs that fit.
"""

import itertools
import math
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from cluster_testing import Cluster, role_of

from policies.registry import POLICIES, policy_named
from policies.scoring import best_fit
from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobKind, JobPhase
from scheduler.core.placement import Shortfall, Want, place_gang
from scheduler.core.plan import Cause, Plan
from scheduler.core.preemption import CPU_WEIGHT, MOST_CEILINGS, RESTART_S, ceilings_of
from scheduler.core.space import Space


class TestRegistry:
    def test_policies_go_by_their_names(self) -> None:
        assert all(policy_named(name).name == name for name in POLICIES)

    def test_unknown_names_are_told_what_there_is(self) -> None:
        with pytest.raises(InvalidInput, match="must be one of fifo, priority"):
            policy_named("lottery")


class TestOrders:
    @pytest.mark.parametrize("name", ["fifo", "priority"])
    def test_orders_are_total_and_do_not_depend_on_rows(self, name: str) -> None:
        draw = random.Random(3)
        cluster = Cluster(name)
        for i in range(60):
            cluster.submit(f"job-{i}", priority=draw.choice([-1, 0, 1]))
            cluster.advance(draw.choice([0, 0, 1]))
        snapshot, order = cluster.snapshot(), policy_named(name).order
        rows = snapshot.waiting_rows()
        expected = order(snapshot, rows).tolist()
        assert sorted(expected) == rows.tolist()
        for _ in range(5):
            shuffled = rows.copy()
            np.random.default_rng(draw.randrange(99)).shuffle(shuffled)
            assert order(snapshot, shuffled).tolist() == expected

    def test_a_preempted_job_keeps_its_turn(self) -> None:
        cluster = Cluster("priority")
        cluster.add_nodes(1, gpus=1)
        cluster.submit("early", gpus=1)
        cluster.cycle()
        cluster.advance(1)
        cluster.submit("late", gpus=1)
        cluster.submit("high", gpus=1, priority=1)
        cluster.settle()
        cluster.end("high")
        assert cluster.cycle().started == ["early"]

    def test_only_lower_priorities_make_room(self) -> None:
        cluster = Cluster("priority")
        cluster.add_nodes(3, gpus=1)
        for priority in (1, 2, 3):
            cluster.submit(f"p{priority}", gpus=1, priority=priority)
        cluster.cycle()
        cluster.submit("asks", gpus=1, priority=2)
        snapshot = cluster.snapshot()
        row = next(r for r in snapshot.waiting_rows().tolist())
        allowed = policy_named("priority").may_preempt(snapshot, row, snapshot.running_rows())
        names = [cluster.names[snapshot.job_at(r).id] for r in allowed.tolist()]
        assert names == ["p1"]
        assert not len(policy_named("fifo").may_preempt(snapshot, row, snapshot.running_rows()))


class TestScores:
    def test_scores_do_not_depend_on_which_rows_are_asked_together(self) -> None:
        cluster = Cluster()
        cluster.add_nodes(3, gpus=4)
        cluster.add_nodes(2, prefix="cpu")
        for gpus in (0.5, 1, 2):
            cluster.submit(f"job-{gpus}", gpus=gpus)
        cluster.cycle()
        nodes = cluster.snapshot().nodes
        rows = np.arange(5)
        for gpus in (0, 0.25, 1, 4):
            shape = role_of(gpus=gpus).shape
            together = best_fit(nodes, shape, rows)
            alone = [best_fit(nodes, shape, rows[[i]])[0] for i in rows]
            assert together.tolist() == alone


def space_of(cluster: Cluster) -> Space:
    return Space(cluster.snapshot().nodes, cluster.policy.score)


class TestAgainstExhaustiveSearch:
    @pytest.mark.parametrize("seed", range(60))
    def test_a_gang_of_one_role_is_placed_whenever_that_is_possible(self, seed: int) -> None:
        draw = random.Random(seed)
        cluster = random_cluster(draw, n_nodes=draw.randint(1, 4))
        gpus = draw.choice([0, 1, 2, 0.3, 0.5])
        role = role_of(
            gpus=gpus,
            cpus=draw.choice([0.5, 1, 2, 3]),
            memory_mib=draw.choice([0, 10, 30]),
            gpu_memory_mib=draw.choice([0, 250, 400]) if 0 < gpus < 1 else 0,
        )
        most = sum(most_tasks(cluster, row, role) for row in range(len(cluster.engine.nodes())))
        for n_tasks in range(1, most + 2):
            want = Want(role.name, role.shape, must=tuple(range(n_tasks)), may=())
            placed = place_gang(space_of(cluster), (want,))
            assert isinstance(placed, Shortfall) == (n_tasks > most)
            assert space_of(cluster).room(role.shape) == most

    @pytest.mark.parametrize("seed", range(120))
    def test_a_single_task_stops_the_cheapest_victims(self, seed: int) -> None:
        draw = random.Random(seed)
        cluster = crowded_cluster(draw)
        shape = {
            "gpus": draw.choice([1, 2, 3, 0.4, 0]),
            "cpus": draw.choice([1, 3, 6]),
            "memory_mib": draw.choice([0, 40]),
        }
        best = cheapest_victims(cluster, shape)
        cluster.submit("asks", priority=1, **shape)
        plan = cluster.decide()
        if plan.placements or best == math.inf:
            assert not plan.evictions
            return
        assert cost_of_plan(cluster, plan) == pytest.approx(best)

    @pytest.mark.parametrize("seed", range(60))
    def test_a_gang_stops_nobody_it_could_do_without(self, seed: int) -> None:
        draw = random.Random(seed)
        cluster = crowded_cluster(draw, n_nodes=3)
        asks = {
            "tasks": draw.choice([2, 3]),
            "gpus": draw.choice([1, 2, 0.4]),
            "cpus": draw.choice([1, 3]),
        }
        cluster.submit("asks", priority=1, **asks)
        plan = cluster.decide()
        victims = {cluster.names[eviction.job_id] for eviction in plan.evictions}
        if not victims:
            running = [r.job.spec.name for r in cluster.engine.jobs() if r.live_tasks()]
            game = [n for n in running if cluster.job(n).job.spec.preemptible]
            assert plan.placements or not fits_without(cluster, game, asks)
            return
        assert fits_without(cluster, victims, asks)
        for spared in victims:
            assert not fits_without(cluster, victims - {spared}, asks)


def random_cluster(draw: random.Random, *, n_nodes: int) -> Cluster:
    cluster = Cluster()
    for i in range(n_nodes):
        cluster.add_node(
            f"node-{i}",
            gpus=draw.choice([1, 2, 3]),
            cpus=draw.choice([3, 6, 10]),
            memory_mib=draw.choice([60, 200]),
            gpu_memory_mib=1000,
        )
    for i in range(draw.randint(0, 5)):
        cluster.submit(f"job-{i}", gpus=draw.choice([0, 0.3, 0.5, 1]), memory_mib=10)
    cluster.cycle()
    return cluster


def most_tasks(cluster: Cluster, row: int, role: object) -> int:
    """Count by hand how many tasks of the role the node takes, whatever goes where."""
    view = cluster.engine.nodes()[row]
    shape = role.shape
    n_tasks = view.cpu_milli_free // shape.cpu_milli
    if shape.memory_mib:
        n_tasks = min(n_tasks, view.memory_mib_free // shape.memory_mib)
    if shape.gpus:
        n_tasks = min(n_tasks, view.gpu_milli_free.count(1000) // shape.gpus)
    if shape.gpu_milli:
        memory_free = cluster.snapshot().nodes.device_memory_free[row]
        memory_mib = shape.gpu_memory_mib or shape.gpu_milli
        n_tasks = min(
            n_tasks,
            sum(
                min(milli // shape.gpu_milli, int(mib) // memory_mib)
                for milli, mib in zip(view.gpu_milli_free, memory_free, strict=False)
            ),
        )
    return n_tasks


def crowded_cluster(
    draw: random.Random, *, n_nodes: int = 2, priorities: tuple[int, ...] = (0,)
) -> Cluster:
    """Return a cluster full of jobs that have run, and saved their work, at odd times."""
    cluster = Cluster()
    cluster.add_nodes(n_nodes, gpus=3, cpus=8, memory_mib=100, gpu_memory_mib=1000)
    for i in range(draw.randint(4, 9)):
        cluster.submit(
            f"job-{i}",
            tasks=draw.choice([1, 1, 1, 2]),
            gpus=draw.choice([1, 1, 0.5, 0.25, 2, 0]),
            cpus=draw.choice([1, 2]),
            memory_mib=draw.choice([0, 20]),
            preemptible=draw.random() < 0.9,
            checkpoint_interval_s=draw.choice([0, 0, 25]),
            priority=draw.choice(priorities) if len(priorities) > 1 else priorities[0],
        )
        cluster.cycle()
        cluster.let_go()
        cluster.advance(draw.choice([0, 10, 50]))
    return cluster


def cost(cluster: Cluster, name: str) -> float:
    """Work the price of stopping a job out again, from its record alone."""
    record = cluster.job(name)
    spec = record.job.spec
    cpu_milli = sum(role.shape.cpu_milli * role.count for role in spec.roles)
    width = (record.gpu_milli_of(record.live_tasks()) + CPU_WEIGHT * cpu_milli) / 1000
    lost_s = cluster.now_s - record.last_started_at_s
    if spec.checkpoint_interval_s:
        lost_s %= spec.checkpoint_interval_s
    return width * (lost_s + RESTART_S)


def cost_of_plan(cluster: Cluster, plan: Plan) -> float:
    return sum(cost(cluster, cluster.names[e.job_id]) for e in plan.evictions)


def fits_without(cluster: Cluster, victims: object, shape: dict[str, object]) -> bool:
    """Return whether the job would start at once if the victims had never been there."""
    other = Cluster()
    other.engine = type(cluster.engine).restore(cluster.engine.dump())
    other.names, other.ids, other.now_s = dict(cluster.names), dict(cluster.ids), cluster.now_s
    for name in victims:
        for task in other.tasks(name):
            other.end_task(task)
    # At the lowest priority: it may stop nobody, and nobody else waits for its place.
    for record in list(other.engine.jobs()):
        if record.phase is JobPhase.PENDING:
            other.cancel(other.names[record.id])
    job_id = other.submit("alone", priority=-9, **shape)
    return any(placement.job_id == job_id for placement in other.decide().placements)


def cheapest_victims(cluster: Cluster, shape: dict[str, object]) -> float:
    running = [
        cluster.names[record.id]
        for record in cluster.engine.jobs()
        if record.phase is JobPhase.RUNNING and record.job.spec.preemptible
    ]
    costs = {name: cost(cluster, name) for name in running}
    sets = itertools.chain.from_iterable(
        itertools.combinations(running, n) for n in range(len(running) + 1)
    )
    by_cost = sorted(sets, key=lambda names: sum(costs[name] for name in names))
    for names in by_cost:
        if fits_without(cluster, names, shape):
            return sum(costs[name] for name in names)
    return math.inf


def mildest_victims(cluster: Cluster, shape: dict[str, object]) -> tuple[float, float]:
    """Return the least highest priority that must be stopped, and then the least lost work."""
    running = {
        cluster.names[record.id]: record.job.spec.priority
        for record in cluster.engine.jobs()
        if record.phase is JobPhase.RUNNING and record.job.spec.preemptible
    }
    costs = {name: cost(cluster, name) for name in running}

    def harm(names: tuple[str, ...]) -> tuple[float, float]:
        worst = max((running[name] for name in names), default=-math.inf)
        return worst, sum(costs[name] for name in names)

    sets = itertools.chain.from_iterable(
        itertools.combinations(running, n) for n in range(len(running) + 1)
    )
    for names in sorted(sets, key=harm):
        if fits_without(cluster, names, shape):
            return harm(names)
    return math.inf, math.inf


class TestLowestPrioritiesFirst:
    def test_the_lower_one_makes_room_whatever_it_loses(self) -> None:
        cluster = Cluster("priority")
        cluster.add_nodes(2, gpus=1)
        cluster.submit("low", gpus=1)
        cluster.settle()
        cluster.advance(10_000)
        cluster.submit("middle", gpus=1, priority=5)
        cluster.settle()
        cluster.submit("high", gpus=1, priority=9)
        assert list(cluster.cycle().evicted) == ["low"]
        cluster.validate()

    def test_more_go_only_if_the_lowest_do_not_suffice(self) -> None:
        cluster = Cluster("priority")
        cluster.add_nodes(1, gpus=3)
        for name, priority in (("low", 0), ("middle", 1), ("upper", 2)):
            cluster.submit(name, gpus=1, priority=priority)
            cluster.settle()
        cluster.submit("high", gpus=2, priority=9)
        assert sorted(cluster.cycle().evicted) == ["low", "middle"]

    @pytest.mark.parametrize("queue", [{}, {"weight": 2.0}])
    def test_the_next_in_line_goes_on_where_the_last_one_stopped(
        self, queue: dict[str, float]
    ) -> None:
        cluster = Cluster("priority")
        cluster.add_nodes(1, gpus=6)
        cluster.put_queue("a", **queue)
        for i in range(6):
            cluster.submit(f"job-{i}", queue="a", gpus=1, priority=i // 2)
        cluster.settle()
        for i in range(3):
            cluster.submit(f"high-{i}", queue="a", gpus=1, priority=9)
        assert sorted(cluster.cycle().evicted) == ["job-0", "job-1", "job-3"]
        cluster.validate()

    def test_of_many_priorities_some_are_taken_together(self) -> None:
        assert ceilings_of(np.array([3, 1, 1, 2])) == [1, 2, 3]
        ceilings = ceilings_of(np.arange(1000))
        assert len(ceilings) == MOST_CEILINGS
        assert (ceilings[0], ceilings[-1]) == (0, 999)
        assert ceilings == sorted(ceilings)

    @pytest.mark.parametrize("seed", range(30))
    def test_one_task_stops_the_mildest_set_there_is(self, seed: int) -> None:
        draw = random.Random(seed)
        cluster = crowded_cluster(draw, priorities=(0, 1, 2))
        shape = {"gpus": draw.choice([1, 2, 0.5]), "cpus": draw.choice([1, 3])}
        best = mildest_victims(cluster, shape)
        for record in list(cluster.engine.jobs()):
            if record.phase is JobPhase.PENDING:
                cluster.cancel(cluster.names[record.id])
        cluster.submit("asks", priority=9, **shape)
        plan = cluster.decide()
        victims = [cluster.names[e.job_id] for e in plan.evictions]
        if not victims:
            assert best[1] in {0, math.inf}
            return
        worst = max(cluster.job(name).job.spec.priority for name in victims)
        assert (worst, cost_of_plan(cluster, plan)) == pytest.approx(best)


class Stream:
    """Small jobs without end, two at a time, each for so many rounds."""

    def __init__(self, cluster: Cluster, *, rounds_each: int = 4) -> None:
        self.cluster = cluster
        self.rounds_each = rounds_each
        self.n_rounds = 0
        self.small: dict[str, int] = {}  # when each that runs started
        self.started: list[str] = []  # of the others

    def flow(self, n_rounds: int) -> list[str]:
        for _ in range(n_rounds):
            self.n_rounds += 1
            self.cluster.advance(10)
            for i in range(2):
                self.cluster.submit(f"small-{self.n_rounds}-{i}", gpus=1)
            for name in self.cluster.cycle().started:
                if name.startswith("small"):
                    self.small[name] = self.n_rounds
                else:
                    self.started.append(name)
            for name, born in list(self.small.items()):
                if self.n_rounds - born >= self.rounds_each:
                    self.cluster.end(name)
                    del self.small[name]
        return self.started


class TestPatience:
    """A wide gang and an endless stream of small jobs that fit into every gap."""

    @pytest.mark.parametrize("policy", ["fifo", "priority"])
    def test_a_wide_gang_starts_in_the_end(self, policy: str) -> None:
        cluster = Cluster(policy)
        cluster.add_nodes(2, gpus=4)
        stream = Stream(cluster)
        stream.flow(5)
        cluster.submit("wide", tasks=2, gpus=4)
        assert stream.flow(100) == ["wide"]
        cluster.validate()

    def test_without_an_end_to_its_patience_it_would_starve(self) -> None:
        cluster = Cluster(replace(policy_named("fifo"), patience_s=math.inf))
        cluster.add_nodes(2, gpus=4)
        stream = Stream(cluster)
        stream.flow(5)
        cluster.submit("wide", tasks=2, gpus=4)
        assert stream.flow(200) == []

    def test_the_stream_flows_on_where_it_delays_nobody(self) -> None:
        cluster = Cluster("fifo")
        cluster.add_nodes(3, gpus=4)
        stream = Stream(cluster, rounds_each=9)
        stream.flow(8)
        cluster.submit("wide", tasks=2, gpus=4)
        n_busy = []
        while not stream.flow(1):
            n_busy.append(len(stream.small))
        assert min(n_busy) >= 4  # one node of the three never idles

    def test_others_run_beside_its_places_on_the_same_nodes(self) -> None:
        cluster = Cluster("fifo")
        cluster.add_nodes(3, gpus=4)
        for i in range(3):
            cluster.submit(f"filler-{i}", gpus=2, cpus=40)
        cluster.cycle()
        cluster.submit("wide", tasks=3, gpus=3)
        cluster.advance(601)
        for i in range(9):
            cluster.submit(f"small-{i}", gpus=1)
        decided = cluster.cycle()
        # Each of the three nodes has one GPU that `wide` will not need.
        assert decided.started == ["small-0", "small-1", "small-2"]
        assert decided.unplaced["wide"].cause is Cause.GPUS
        assert decided.sentences["small-8"] == (
            f"places are kept for job {cluster.ids['wide']}, which waits longest; "
            "0 of 3 nodes: 3 lack 1 free GPU"
        )
        cluster.validate()

    def test_services_are_not_expected_to_end(self) -> None:
        cluster = Cluster("fifo")
        cluster.add_nodes(2, gpus=4)
        cluster.submit("service", kind=JobKind.INFERENCE, gpus=1)
        cluster.cycle()
        cluster.submit("hopeless", tasks=2, gpus=4)
        cluster.advance(601)
        cluster.submit("small", tasks=2, gpus=1)
        assert cluster.cycle().started == ["small"]  # it delays nobody: there is no hope
        cluster.validate()

    def test_the_hopeless_do_not_keep_others_from_their_claim(self) -> None:
        cluster = Cluster("fifo")
        cluster.add_nodes(2, gpus=4)
        cluster.submit("hopeless", gpus=5)
        stream = Stream(cluster)
        stream.flow(5)
        cluster.submit("wide", tasks=2, gpus=4)
        assert stream.flow(100) == ["wide"]

    def test_several_starving_gangs_get_their_turns(self) -> None:
        cluster = Cluster("fifo")
        cluster.add_nodes(3, gpus=4)
        stream = Stream(cluster)
        stream.flow(6)
        for i in range(3):
            cluster.submit(f"wide-{i}", tasks=3, gpus=4)
        for i in range(3):
            assert stream.flow(100)[-1] == f"wide-{i}"
            cluster.end(f"wide-{i}")

    def test_two_roles_starve_no_more_than_one(self) -> None:
        cluster = Cluster("fifo")
        cluster.add_nodes(2, gpus=4)
        stream = Stream(cluster)
        stream.flow(5)
        cluster.submit("wide", role_of(gpus=4, cpus=4), role_of("ps", gpus=3, cpus=60))
        assert stream.flow(100) == ["wide"]

    def test_a_higher_priority_may_still_pass(self) -> None:
        cluster = Cluster("priority")
        cluster.add_nodes(1, gpus=4)
        cluster.submit("running", gpus=2, preemptible=False)
        cluster.cycle()
        cluster.submit("wide", gpus=4)
        cluster.advance(601)
        cluster.submit("equal", gpus=1)
        cluster.submit("urgent", gpus=1, priority=1)
        assert cluster.cycle().started == ["urgent"]

    def test_the_moment_its_patience_ends_wakes_the_daemon(self) -> None:
        cluster = Cluster("fifo")
        cluster.add_nodes(1, gpus=4)
        cluster.submit("running", gpus=1)
        cluster.cycle()
        cluster.submit("wide", gpus=4)
        assert cluster.decide().wake_at_s == 1600


def test_a_daemon_starts_without_solvers() -> None:
    """They take half a second and tens of MiB, and are loaded when a program is first asked."""
    code = "import sys, scheduler.daemon.daemon, policies.registry; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "policies.registry" in loaded
    assert not {"scipy", "torch", "cvxpy"} & set(loaded)
