"""Two jobs on the same GPUs, by a rule that says who joins whom: places, books and commits."""

from dataclasses import replace

import numpy as np
import pytest
from cluster_testing import Cluster

from policies.orderings import highest_priority, lower_priority
from policies.registry import policy_named
from scheduler.core.events import commit_of
from scheduler.core.model import SharedThroughput
from scheduler.core.plan import Accepted
from scheduler.core.ports import Policy, Round
from scheduler.core.snapshot import Snapshot

KINDS = ("resnet", "lm", "gan")


def measured(*profiles: str, per_s: float = 0.8) -> tuple[SharedThroughput, ...]:
    return tuple(
        SharedThroughput(gpu_type="V100", beside=profile, per_s=per_s) for profile in profiles
    )


class Pairs:
    """Lets jobs join others, by their names, in a cluster under `lower_priority`."""

    def __init__(self, **beside: str) -> None:
        self.beside = beside

    def __call__(self, snapshot: Snapshot) -> Round:
        rows = {job.spec.name: row for row, job in enumerate(snapshot.jobs.jobs) if job}
        return Round(
            order=highest_priority,
            may_preempt=lower_priority,
            beside={
                rows[name]: rows[other]
                for name, other in self.beside.items()
                if name in rows and other in rows
            },
        )


def policy(**beside: str) -> Policy:
    return replace(policy_named("priority"), rounds=Pairs(**beside))


def cluster_of(policy: Policy, gpus: int = 2, **node: object) -> Cluster:
    cluster = Cluster(policy)
    cluster.add_nodes(1, gpus=gpus, gpu_type="V100", **node)
    return cluster


def submit(cluster: Cluster, name: str, profile: str = "lm", **about: object) -> None:
    known = {"gpus": 1, "profile": profile, "shared_throughputs": measured(*KINDS)}
    cluster.submit(name, **{**known, **about})


def place(cluster: Cluster, name: str) -> tuple[str, tuple[int, ...]]:
    (task,) = cluster.job(name).live_tasks()
    return task.node, task.devices


def test_the_second_of_a_pair_is_put_on_the_device_of_the_first() -> None:
    cluster = cluster_of(policy(b="a"))
    submit(cluster, "a", "resnet")
    submit(cluster, "b")
    submit(cluster, "stranger", shared_throughputs=())
    assert cluster.settle() == ["a", "b", "stranger"]
    assert place(cluster, "a") == place(cluster, "b") == ("node-0", (0,))
    assert place(cluster, "stranger") == ("node-0", (1,))
    cluster.validate()


@pytest.mark.parametrize("gpus", [1, 0.5])
def test_nobody_else_comes_to_a_pair_or_to_a_sharer_alone(gpus: float) -> None:
    cluster = cluster_of(policy(b="a"), gpus=1)
    submit(cluster, "a", "resnet")
    cluster.submit("third", gpus=gpus)
    cluster.settle()
    assert cluster.phase("third") == "pending"
    submit(cluster, "b")
    cluster.settle()
    assert cluster.phase("b") == "running"
    assert cluster.phase("third") == "pending"
    cluster.end("a")
    cluster.settle()
    assert cluster.phase("third") == "pending"
    cluster.end("b")
    cluster.settle()
    assert cluster.phase("third") == "running"
    cluster.validate()


def test_who_joins_waits_until_the_other_has_its_place() -> None:
    cluster = cluster_of(policy(b="a"), gpus=1)
    cluster.submit("low", gpus=1, priority=-1)
    cluster.settle()
    submit(cluster, "a", "resnet")
    submit(cluster, "b")
    decided = cluster.cycle()
    assert list(decided.evicted) == ["low"]
    assert "has its turn beside" in decided.sentences["b"]
    cluster.let_go()
    assert cluster.cycle().started == ["a", "b"]
    cluster.validate()


def test_who_finds_no_cpus_beside_is_served_like_any_job() -> None:
    cluster = cluster_of(policy(b="a"), gpus=1, cpus=1)
    cluster.add_nodes(1, prefix="other", gpus=1, gpu_type="V100")
    submit(cluster, "a", "resnet", node_labels={})
    cluster.cordon("other-0")
    cluster.settle()
    cluster.cordon("other-0", is_cordoned=False)
    submit(cluster, "b")
    cluster.settle()
    assert place(cluster, "a") == ("node-0", (0,))
    assert place(cluster, "b") == ("other-0", (0,))


def test_both_of_a_pair_are_stopped_for_who_needs_the_whole_gpu() -> None:
    cluster = cluster_of(policy(b="a"), gpus=1)
    submit(cluster, "a", "resnet")
    submit(cluster, "b")
    cluster.settle()
    cluster.submit("high", gpus=1, priority=1)
    decided = cluster.cycle()
    assert set(decided.evicted) == {"a", "b"}
    cluster.let_go()
    assert "high" in cluster.cycle().started
    cluster.validate()


def test_a_pair_of_which_one_may_not_be_stopped_is_left_alone() -> None:
    cluster = cluster_of(policy(b="a"), gpus=1)
    submit(cluster, "a", "resnet", preemptible=False)
    submit(cluster, "b")
    cluster.settle()
    cluster.submit("high", gpus=1, priority=1)
    assert not cluster.cycle().evicted


class TestCommit:
    """Plans are verified again: what does not hold any more is stale."""

    def planned(self, cluster: Cluster) -> list[str]:
        """Commit a plan in which `b` joins `a`, and return who started."""
        plan = self.plan
        outcome = cluster.observe(commit_of(plan, cluster.now_s))
        assert isinstance(outcome, Accepted)
        return [cluster.names[start.job.id] for start in outcome.starts]

    def prepare(self, **about: object) -> Cluster:
        cluster = cluster_of(policy(b="a"), gpus=2)
        submit(cluster, "a", "resnet")
        cluster.settle()
        submit(cluster, "b", **about)
        self.plan = cluster.decide()
        assert len(self.plan.placements) == 1
        return cluster

    def test_it_holds(self) -> None:
        cluster = self.prepare()
        assert self.planned(cluster) == ["b"]

    def test_not_if_the_first_has_gone(self) -> None:
        cluster = self.prepare()
        cluster.run_all()
        cluster.end("a")
        assert self.planned(cluster) == []
        cluster.validate()

    def test_not_if_the_first_is_about_to_stop(self) -> None:
        cluster = self.prepare()
        cluster.cancel("a")
        assert self.planned(cluster) == []

    def test_not_if_nobody_measured_them_together(self) -> None:
        cluster = self.prepare(profile="unknown")
        assert self.planned(cluster) == []

    def test_not_twice(self) -> None:
        cluster = self.prepare()
        submit(cluster, "c", "gan")
        cluster.policy = policy(c="a")
        second = cluster.decide()
        assert self.planned(cluster) == ["b"]
        self.plan = second
        assert self.planned(cluster) == []
        cluster.validate()


class Anybody:
    """Lets every waiting job that may share join the first running one, fit or not."""

    def __call__(self, snapshot: Snapshot) -> Round:
        jobs = snapshot.jobs
        running = snapshot.running_rows().tolist()
        beside = {}
        for row in snapshot.waiting_rows().tolist():
            profile = snapshot.job_at(row).spec.profile
            others = [
                r for r in running if snapshot.job_at(r).spec.speed_beside(profile, "V100")
            ]
            if profile and others:
                beside[row] = others[jobs.sequence[row] % len(others)]
        return Round(order=highest_priority, may_preempt=lower_priority, beside=beside)


@pytest.mark.parametrize("seed", range(8))
def test_stories_with_priorities_keep_their_books(seed: int) -> None:
    draw = np.random.default_rng(seed)
    cluster = Cluster(replace(policy_named("priority"), rounds=Anybody()))
    cluster.add_nodes(2, gpus=3, gpu_type="V100", cpus=6)
    n_shared = 0
    for number in range(60):
        kind = KINDS[int(draw.integers(3))]
        about = {"priority": int(draw.integers(3)), "expected_run_s": 100.0 * draw.integers(3)}
        match int(draw.integers(5)):
            case 0:
                cluster.submit(f"j{number}", gpus=0.5, **about)
            case 1:
                cluster.submit(f"j{number}", gpus=1, tasks=2, **about)
            case _:
                gpus = int(draw.integers(1, 3))
                submit(cluster, f"j{number}", kind, gpus=gpus, **about)
        decided = cluster.cycle()
        joined = [p.job_id for p in decided.plan.placements if p.beside is not None]
        n_shared += sum(job_id not in decided.outcome.stale for job_id in joined)
        cluster.validate()
        cluster.run_all()
        cluster.advance(30.0)
        if draw.random() < 0.7:
            cluster.let_go()
        running = [r for r in cluster.engine.jobs() if r.phase == "running"]
        if running and draw.random() < 0.5:
            cluster.end(cluster.names[running[int(draw.integers(len(running)))].id])
        if draw.random() < 0.1:
            cluster.health("node-0", bad_gpus=[int(draw.integers(3))])
        cluster.validate()
    assert n_shared > 5


def test_beside_a_job_the_type_counts_that_this_one_has() -> None:
    cluster = cluster_of(policy(b="a"), gpus=1)
    cluster.add_node("other", gpus=1, gpu_type="A100")
    cluster.put_queue("mine", limit=(("gpu_milli:V100", 1000),))
    submit(cluster, "a", queue="mine", gpu_types=["V100"])
    cluster.settle()
    # On the other type it would be within the limit, beside the first it is not.
    submit(cluster, "b", queue="mine")
    decided = cluster.cycle()
    assert not decided.outcome.stale
    assert decided.nodes == {"b": ["other"]}
    cluster.validate()
