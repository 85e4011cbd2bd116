"""Two jobs on one GPU by measured throughputs: who meets, who does not, and for how long."""

import numpy as np
import pytest
from cluster_testing import Cluster
from rounds_testing import evictions, play, time_on

from policies.contest import contest_of
from policies.rounds import ROUND_S
from policies.sharing import Ways, mates_of, sharing_of
from scheduler.core.model import SharedThroughput

PACKED = ("max_min_fairness_packed", "water_filling_packed", "min_total_duration_packed")


def beside(gpu_type: str = "V100", **speeds: float) -> tuple[SharedThroughput, ...]:
    return tuple(
        SharedThroughput(gpu_type=gpu_type, beside=profile, per_s=per_s)
        for profile, per_s in sorted(speeds.items())
    )


def cluster_of(gpus: int, policy: str = "max_min_fairness_packed") -> Cluster:
    cluster = Cluster(policy, now_s=10 * ROUND_S)
    cluster.add_nodes(1, gpus=gpus, gpu_type="V100")
    return cluster


def submit(cluster: Cluster, name: str, profile: str, **about: object) -> None:
    known = {"gpus": 1, "profile": profile, "checkpoint_interval_s": 20, "total_work": 1e6}
    cluster.submit(name, **{**known, **about})


def place(cluster: Cluster, name: str) -> tuple[str, tuple[int, ...]]:
    (task,) = cluster.job(name).live_tasks()
    return task.node, task.devices


@pytest.mark.parametrize("policy", PACKED)
def test_two_that_go_well_together_meet_and_a_stranger_does_not_come(policy: str) -> None:
    cluster = cluster_of(1, policy)
    submit(cluster, "a", "resnet", shared_throughputs=beside(lm=0.9))
    submit(cluster, "b", "lm", shared_throughputs=beside(resnet=0.8))
    cluster.submit("stranger", gpus=0.5, checkpoint_interval_s=20)
    n_met = 0
    for _ in range(30):
        play(cluster, 1)
        running = {n for n in ("a", "b", "stranger") if cluster.phase(n) == "running"}
        assert running == {"stranger"} or running <= {"a", "b"}
        n_met += running == {"a", "b"}
    assert n_met > 10
    cluster.validate()


def test_a_pair_that_stays_does_not_restart() -> None:
    cluster = cluster_of(1)
    submit(cluster, "a", "resnet", shared_throughputs=beside(lm=0.9))
    submit(cluster, "b", "lm", shared_throughputs=beside(resnet=0.9))
    assert not evictions(play(cluster, 40))
    assert cluster.job("a").attempt == cluster.job("b").attempt == 1
    assert place(cluster, "a") == place(cluster, "b")


@pytest.mark.parametrize(
    ("of_a", "of_b"),
    [
        ({"lm": 0.4}, {"resnet": 0.5}),  # together less than by turns
        ({"lm": 0.9}, {}),  # only one of them was measured
        ({"lm": 0.9}, {"other": 0.9}),
    ],
)
def test_who_gains_nothing_takes_turns(of_a: dict[str, float], of_b: dict[str, float]) -> None:
    cluster = cluster_of(1)
    submit(cluster, "a", "resnet", shared_throughputs=beside(**of_a))
    submit(cluster, "b", "lm", shared_throughputs=beside(**of_b))
    begin_s = cluster.now_s
    for _ in range(40):
        play(cluster, 1)
        assert {cluster.phase("a"), cluster.phase("b")} == {"running", "pending"}
    for name in ("a", "b"):
        part = time_on(cluster, name)["V100"] / (cluster.now_s - begin_s)
        assert part == pytest.approx(0.5, abs=0.06)


def test_with_a_gpu_for_each_nobody_shares() -> None:
    cluster = cluster_of(2)
    submit(cluster, "a", "resnet", shared_throughputs=beside(lm=0.9))
    submit(cluster, "b", "lm", shared_throughputs=beside(resnet=0.9))
    assert not evictions(play(cluster, 20))
    assert place(cluster, "a") != place(cluster, "b")


def test_who_comes_later_joins_and_nobody_stops_for_it() -> None:
    cluster = cluster_of(1)
    submit(cluster, "a", "resnet", shared_throughputs=beside(lm=0.9))
    assert not evictions(play(cluster, 3))
    submit(cluster, "b", "lm", shared_throughputs=beside(resnet=0.9))
    assert cluster.settle() == ["b"]
    assert place(cluster, "a") == place(cluster, "b")
    cluster.validate()


def test_three_of_a_kind_share_one_gpu_evenly() -> None:
    cluster = cluster_of(1)
    names = ["a", "b", "c"]
    for name in names:
        submit(cluster, name, "lm", shared_throughputs=beside(lm=0.8))
    begin_s = cluster.now_s
    for _ in range(60):
        play(cluster, 1)
        assert sum(cluster.phase(name) == "running" for name in names) >= 1
    parts = [time_on(cluster, name)["V100"] / (cluster.now_s - begin_s) for name in names]
    assert parts == pytest.approx([2 / 3] * 3, abs=0.08)
    cluster.validate()


def test_a_part_of_the_time_together_leaves_the_rest_apart() -> None:
    # Two slow each other down less than by turns; the third shares with nobody.
    cluster = cluster_of(1)
    submit(cluster, "a", "resnet", shared_throughputs=beside(lm=0.9))
    submit(cluster, "b", "lm", shared_throughputs=beside(resnet=0.9))
    submit(cluster, "alone", "gan")
    begin_s = cluster.now_s
    play(cluster, 80)
    parts = [
        time_on(cluster, name)["V100"] / (cluster.now_s - begin_s)
        for name in ("a", "b", "alone")
    ]
    # 0.9 x = 1 - x, if all are to go equally fast.
    assert parts == pytest.approx([1 / 1.9, 1 / 1.9, 0.9 / 1.9], abs=0.08)
    cluster.validate()


def test_types_are_shared_where_they_were_measured() -> None:
    cluster = Cluster("max_min_fairness_packed", now_s=10 * ROUND_S)
    cluster.add_nodes(1, prefix="k", gpus=1, gpu_type="K80")
    cluster.add_nodes(1, prefix="v", gpus=1, gpu_type="V100")
    speeds = (("K80", 0.2), ("V100", 1.0))
    for name, profile, other in (("a", "resnet", "lm"), ("b", "lm", "resnet")):
        submit(
            cluster,
            name,
            profile,
            throughputs=speeds,
            shared_throughputs=beside(**{other: 0.9}),
        )
    play(cluster, 40)
    assert place(cluster, "a") == place(cluster, "b") == ("v-0", (0,))
    cluster.validate()


def test_gangs_of_as_many_gpus_share_all_of_them() -> None:
    cluster = cluster_of(2)
    submit(cluster, "a", "resnet", gpus=2, shared_throughputs=beside(lm=0.9))
    submit(cluster, "b", "lm", gpus=2, shared_throughputs=beside(resnet=0.9))
    submit(cluster, "narrow", "lm", gpus=1, shared_throughputs=beside(resnet=0.9))
    play(cluster, 30)
    cluster.validate()
    for _ in range(20):
        play(cluster, 1)
        if cluster.phase("a") == cluster.phase("b") == "running":
            assert place(cluster, "a") == place(cluster, "b") == ("node-0", (0, 1))
            break
    else:
        raise AssertionError("they never met")


def test_who_may_not_be_stopped_is_joined_by_nobody() -> None:
    cluster = cluster_of(1)
    submit(cluster, "a", "resnet", shared_throughputs=beside(lm=0.9), preemptible=False)
    cluster.settle()
    submit(cluster, "b", "lm", shared_throughputs=beside(resnet=0.9))
    submit(cluster, "c", "lm", shared_throughputs=beside(resnet=0.9, lm=0.9))
    play(cluster, 10)
    assert cluster.phase("b") == cluster.phase("c") == "pending"


@pytest.mark.parametrize("policy", PACKED)
@pytest.mark.parametrize("seed", range(6))
def test_stories_keep_their_books_and_end(policy: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    cluster = Cluster(policy, now_s=10 * ROUND_S)
    cluster.add_nodes(1, prefix="k", gpus=2, gpu_type="K80", cpus=6)
    cluster.add_nodes(1, prefix="v", gpus=2, gpu_type="V100", cpus=6)
    profiles = ["resnet", "lm", "gan"]
    for i in range(9):
        measured = [
            SharedThroughput(gpu_type=kind, beside=other, per_s=float(draw.uniform(0.2, 1.0)))
            for kind in ("K80", "V100")
            for other in profiles
            if draw.random() < 0.8
        ]
        submit(
            cluster,
            f"job-{i}",
            profiles[i % 3],
            gpus=int(draw.integers(1, 3)),
            weight=1 + i % 2,
            shared_throughputs=tuple(measured) if i % 4 else (),
            throughputs=(("K80", 1.0), ("V100", 1.0 + i % 3)),
            checkpoint_interval_s=float(draw.choice([0, 30])),
        )
        play(cluster, 1)
        cluster.validate()
    for _ in range(60):
        play(cluster, 2, step_s=100)
        for record in list(cluster.engine.jobs()):
            if record.phase == "running" and record.gpu_s(cluster.now_s) > 1500:
                cluster.end(cluster.names[record.id])
    assert all(cluster.phase(f"job-{i}").is_final for i in range(9))
    cluster.validate()


def test_ways_fold_and_unfold() -> None:
    ways = Ways(2, 3)
    shares = np.random.default_rng(0).random((4, 2, 4))
    folded = ways.folded(shares)
    assert (folded[:, :2] == shares[:, :, 0]).all()
    assert (ways.unfolded(folded) == shares).all()
    assert (ways.unfolded(folded[:, :2])[:, :, 0] == shares[:, :, 0]).all()
    assert not ways.unfolded(folded[:, :2])[:, :, 1:].any()


def test_what_jobs_say_and_who_is_with_whom() -> None:
    cluster = cluster_of(2)
    submit(cluster, "a", "resnet", shared_throughputs=beside(lm=0.9))
    submit(cluster, "b", "lm", shared_throughputs=beside(resnet=0.8, unknown=0.5))
    cluster.submit("c", gpus=1)
    cluster.settle()
    snapshot = cluster.snapshot()
    contest = contest_of(snapshot)
    sharing = sharing_of(snapshot, contest)
    assert sharing is not None
    assert sharing.profile.tolist() == [1, 0, -1]
    assert sharing.beside[sharing.table[:2]].tolist() == [[[0.9, 0.0]], [[0.0, 0.8]]]
    assert mates_of(snapshot, contest).tolist() == [1, 0, -1]
