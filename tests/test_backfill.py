"""Backfill: who may start before whom, what is foreseen, and that nobody is kept for ever."""

import math
import random
from collections.abc import Iterator
from statistics import mean

import numpy as np
import pytest
from backfill_testing import Life, policy_with, random_works
from cluster_testing import Cluster, assert_same_columns, columns_of, give, role_of

from scheduler.core import capacity
from scheduler.core.cycle import expected_start, n_ahead
from scheduler.core.model import JobKind, JobPhase, StopCause
from scheduler.core.plan import Cause

NEVER_S = math.inf


@pytest.fixture
def easy() -> Iterator[Cluster]:
    cluster = Cluster(policy_with("easy"))
    yield cluster
    cluster.validate()


@pytest.fixture
def conservative() -> Iterator[Cluster]:
    cluster = Cluster(policy_with("conservative"))
    yield cluster
    cluster.validate()


def expected(cluster: Cluster) -> dict[str, float]:
    starts_s = cluster.decide().expected_start_at_s
    return {cluster.names[job_id]: at_s - cluster.now_s for job_id, at_s in starts_s.items()}


class TestEasy:
    """Two nodes of 4 GPUs, one of which is busy for 100 s; `wide` needs both."""

    @pytest.fixture(autouse=True)
    def blocked(self, easy: Cluster) -> None:
        easy.add_nodes(2, gpus=4)
        easy.submit("long", gpus=4, expected_run_s=100)
        easy.cycle()
        easy.submit("wide", tasks=2, gpus=4, expected_run_s=50)

    def test_the_first_blocked_gang_is_told_when_it_starts(self, easy: Cluster) -> None:
        assert expected(easy) == {"wide": 100}
        easy.advance(30)
        assert expected(easy) == {"wide": 70}

    def test_who_ends_before_it_starts(self, easy: Cluster) -> None:
        easy.submit("short", gpus=4, expected_run_s=100)
        assert easy.cycle().started == ["short"]
        assert expected(easy) == {"wide": 100}

    @pytest.mark.parametrize("about", [{"expected_run_s": 101}, {}, {"time_limit_s": 101}])
    def test_who_would_still_be_there_waits(
        self, easy: Cluster, about: dict[str, float]
    ) -> None:
        easy.submit("next", gpus=1, **about)
        decided = easy.cycle()
        assert not decided.started
        assert decided.sentences["next"] == (
            f"places are kept for job {easy.ids['wide']}, expected to start in 100 s; "
            "0 of 2 nodes: 2 lack 1 free GPU"
        )

    def test_a_time_limit_stands_in_for_an_estimate(self, easy: Cluster) -> None:
        easy.submit("short", gpus=4, time_limit_s=100)
        assert easy.cycle().started == ["short"]

    def test_a_spread_makes_who_passes_careful(self, easy: Cluster) -> None:
        easy.submit("vague", gpus=1, expected_run_s=95, expected_run_spread=0.1)
        easy.submit("sure", gpus=1, expected_run_s=80, expected_run_spread=0.1)
        easy.submit(
            "limited", gpus=1, expected_run_s=95, expected_run_spread=5, time_limit_s=99
        )
        assert easy.cycle().started == ["sure", "limited"]

    def test_who_passes_counts_with_the_time_it_has_left(self, easy: Cluster) -> None:
        easy.advance(60)
        easy.submit("late", gpus=1, expected_run_s=50)
        assert not easy.cycle().started

    def test_who_needs_none_of_its_places_starts(self, easy: Cluster) -> None:
        easy.add_node("spare", gpus=3)
        easy.submit("elsewhere", gpus=3)
        assert easy.cycle().nodes == {"elsewhere": ["spare"]}
        assert expected(easy) == {"wide": 100}

    def test_cpus_beside_its_places_are_free_to_take(self, easy: Cluster) -> None:
        easy.submit("beside", cpus=32)
        assert easy.cycle().started == ["beside"]
        assert expected(easy) == {"wide": 100}

    def test_the_next_in_line_may_start_if_it_is_short(self, easy: Cluster) -> None:
        easy.submit("second", gpus=4, expected_run_s=300)
        easy.submit("short", gpus=2, expected_run_s=20)
        decided = easy.cycle()
        assert decided.started == ["short"]
        assert expected(easy) == {"wide": 100}  # EASY foresees for the first only

    def test_it_starts_when_the_end_comes(self, easy: Cluster) -> None:
        easy.submit("next", gpus=1)
        easy.cycle()
        easy.advance(100)
        easy.end("long")
        assert easy.cycle().started == ["wide"]

    def test_an_early_end_brings_it_forward(self, easy: Cluster) -> None:
        easy.submit("next", gpus=1)
        easy.advance(10)
        easy.end("long")
        assert easy.cycle().started == ["wide"]

    def test_at_its_estimate_a_job_may_end_any_moment(self, easy: Cluster) -> None:
        easy.advance(105)
        easy.submit("short", gpus=1, expected_run_s=1)
        assert not easy.cycle().started
        assert expected(easy) == {"wide": 0}

    def test_a_job_that_outlasts_its_estimate_is_expected_to_run_twice_as_long(
        self, easy: Cluster
    ) -> None:
        easy.advance(111)
        assert expected(easy) == {"wide": pytest.approx(220 - 111)}
        easy.advance(111)
        assert expected(easy) == {"wide": pytest.approx(440 - 222)}

    def test_nobody_is_expected_to_outlast_its_limit(self, easy: Cluster) -> None:
        easy.update("long", time_limit_s=120.0)
        easy.advance(111)
        assert expected(easy) == {"wide": 9}

    def test_the_moment_it_is_expected_wakes_the_daemon(self, easy: Cluster) -> None:
        assert easy.decide().wake_at_s == easy.now_s + 100

    def test_a_hypothetical_job_learns_when_it_would_start(self, easy: Cluster) -> None:
        easy.cancel("wide")
        plan = easy.dry_run(tasks=2, gpus=4)
        assert plan.expected_start_at_s == {"dry-run": easy.now_s + 100}


class TestWhatIsForeseen:
    def test_the_first_end_that_suffices_counts(self, easy: Cluster) -> None:
        easy.add_nodes(3, gpus=4)
        for i, run_s in enumerate((300, 100, 200)):
            easy.submit(f"job-{i}", gpus=4, expected_run_s=run_s)
        easy.cycle()
        easy.submit("one", gpus=3)
        assert expected(easy) == {"one": 100}
        easy.cancel("one")
        easy.submit("two", tasks=2, gpus=4)
        assert expected(easy) == {"two": 200}
        easy.cancel("two")
        easy.submit("five", tasks=5, gpus=2)
        assert expected(easy) == {"five": 300}

    def test_what_starts_in_the_same_cycle_is_foreseen_to_end(self, easy: Cluster) -> None:
        easy.add_nodes(1, gpus=4)
        easy.submit("first", gpus=4, expected_run_s=70)
        easy.submit("second", gpus=4)
        assert expected(easy) == {"second": 70}

    def test_several_roles_are_placed_together(self, easy: Cluster) -> None:
        easy.add_nodes(2, gpus=4, cpus=8)
        easy.submit("a", gpus=4, cpus=1, expected_run_s=100)
        easy.submit("b", gpus=1, cpus=7, expected_run_s=200)
        easy.cycle()
        easy.submit("both", role_of(gpus=4), role_of("ps", cpus=8))
        assert expected(easy) == {"both": 200}

    def test_whole_devices_are_not_made_of_fractions(self, easy: Cluster) -> None:
        easy.add_nodes(1, gpus=2)
        for name, run_s in (("a", 100), ("b", 200), ("c", 300), ("d", 400)):
            easy.submit(name, gpus=0.5, expected_run_s=run_s)
        easy.cycle()
        devices = [easy.tasks(name)[0].devices for name in "abcd"]
        assert devices == [(0,), (0,), (1,), (1,)]
        easy.submit("whole", gpus=1)
        assert expected(easy) == {"whole": 200}

    def test_a_sick_device_frees_nothing(self, easy: Cluster) -> None:
        easy.add_nodes(1, gpus=2)
        easy.submit("a", gpus=1, expected_run_s=100)
        easy.submit("b", gpus=1, expected_run_s=200)
        easy.cycle()
        easy.health("node-0", bad_gpus=[0])
        easy.submit("next", gpus=1)
        assert expected(easy) == {"next": 200}

    def test_closed_nodes_are_not_waited_for(self, easy: Cluster) -> None:
        easy.add_nodes(2, gpus=1)
        easy.submit("a", gpus=1, expected_run_s=100)
        easy.submit("b", gpus=1, expected_run_s=200)
        easy.cycle()
        easy.cordon("node-0")
        easy.submit("next", gpus=1)
        assert expected(easy) == {"next": 200}

    def test_nothing_is_foreseen_without_an_estimate(self, easy: Cluster) -> None:
        easy.add_nodes(1, gpus=4)
        easy.submit("mute", gpus=4)
        easy.cycle()
        easy.submit("next", gpus=4)
        easy.submit("short", expected_run_s=5)
        assert expected(easy) == {}
        assert easy.cycle().started == ["short"]

    def test_who_can_never_start_is_told_nothing_and_keeps_nobody(self, easy: Cluster) -> None:
        easy.add_nodes(1, gpus=4)
        easy.submit("running", gpus=2, expected_run_s=100)
        easy.cycle()
        easy.submit("impossible", gpus=5)
        easy.submit("wide", gpus=4)
        easy.submit("next", gpus=1)
        assert not easy.cycle().started
        assert expected(easy) == {"wide": 100}

    def test_a_service_with_an_end_frees_its_places(self, easy: Cluster) -> None:
        easy.add_nodes(1, gpus=1)
        easy.submit("service", kind=JobKind.INFERENCE, gpus=1, time_limit_s=50)
        easy.cycle()
        easy.submit("next", gpus=1)
        assert expected(easy) == {"next": 50}

    def test_what_is_about_to_stop_is_no_promise_but_a_held_place(self, easy: Cluster) -> None:
        easy.add_nodes(1, gpus=1)
        easy.submit("going", gpus=1, expected_run_s=100)
        easy.cycle()
        easy.cancel("going")
        easy.submit("next", gpus=1)
        assert easy.cycle().unplaced["next"].cause is Cause.RELEASE


class TestStarvation:
    @pytest.fixture
    def starving(self) -> Iterator[Cluster]:
        """Two nodes of 4 GPUs, half busy for 100 s more; `wide` needs both and starves."""
        cluster = Cluster(policy_with("easy", starvation_s=1000.0))
        cluster.add_nodes(2, gpus=4)
        for i in range(2):
            cluster.submit(f"job-{i}", gpus=2, cpus=33, expected_run_s=1100)
        cluster.cycle()
        cluster.submit("wide", tasks=2, gpus=3)
        cluster.advance(1000)
        yield cluster
        cluster.validate()

    def test_nobody_passes_however_short_it_says_it_is(self, starving: Cluster) -> None:
        for i in range(3):
            starving.submit(f"short-{i}", gpus=1, expected_run_s=1)
        decided = starving.cycle()
        # Beside the three GPUs that it will have on each node, anybody may start.
        assert decided.started == ["short-0", "short-1"]
        assert "which waits longest" in decided.sentences["short-2"]
        assert "wide" not in expected(starving)

    def test_another_is_promised_places_meanwhile(self, starving: Cluster) -> None:
        starving.add_node("other", gpus=2, gpu_type="B")
        starving.submit("on-other", gpus=2, gpu_types=["B"], expected_run_s=50)
        starving.cycle()
        starving.submit("next", gpus=1, gpu_types=["B"])
        assert expected(starving) == {"next": 50}

    def test_one_of_two_that_starve_is_promised_places_at_least(
        self, starving: Cluster
    ) -> None:
        starving.add_node("other", gpus=2, gpu_type="B")
        starving.submit("on-other", gpus=2, gpu_types=["B"], expected_run_s=5000)
        starving.cycle()
        starving.submit("also", gpus=1, gpu_types=["B"])
        starving.advance(1000)
        assert expected(starving) == {"also": 4000}


class TestConservative:
    def test_several_gangs_are_told_when_they_start(self, conservative: Cluster) -> None:
        cluster = conservative
        cluster.add_nodes(2, gpus=4)
        cluster.submit("long", gpus=4, expected_run_s=100)
        cluster.cycle()
        cluster.submit("first", tasks=2, gpus=4, expected_run_s=50)
        cluster.submit("second", tasks=2, gpus=4, expected_run_s=30)
        cluster.submit("third", gpus=4)
        assert expected(cluster) == {"first": 100, "second": 150, "third": 180}

    def test_a_gang_may_be_done_before_one_that_is_served_first(
        self, conservative: Cluster
    ) -> None:
        cluster = conservative
        cluster.add_nodes(2, gpus=4)
        cluster.submit("long", gpus=4, expected_run_s=100)
        cluster.submit("short", gpus=4, expected_run_s=40)
        cluster.cycle()
        cluster.submit("first", tasks=2, gpus=4, expected_run_s=50)
        cluster.submit("fits", gpus=3, expected_run_s=60)
        cluster.submit("does-not", gpus=3, expected_run_s=61)
        assert expected(cluster) == {"first": 100, "fits": 40, "does-not": 150}

    def test_no_promise_is_broken_for_those_behind(self, conservative: Cluster) -> None:
        cluster = conservative
        cluster.add_node("a", gpus=4, gpu_type="A")
        cluster.add_node("b", gpus=4, gpu_type="B")
        cluster.submit("on-a", gpus=2, gpu_types=["A"], expected_run_s=100)
        cluster.submit("on-b", gpus=2, gpu_types=["B"], expected_run_s=200)
        cluster.cycle()
        cluster.submit("first", gpus=4, gpu_types=["A"], expected_run_s=10)
        cluster.submit("second", gpus=4, gpu_types=["B"], expected_run_s=10)
        for name, gpu_type, run_s in (
            ("no-a", "A", 101),
            ("no-b", "B", 201),
            ("a", "A", 100),
            ("b", "B", 200),
        ):
            cluster.submit(name, gpus=1, gpu_types=[gpu_type], expected_run_s=run_s)
        decided = cluster.cycle()
        assert decided.started == ["a", "b"]
        assert expected(cluster)["first"] == 100
        assert expected(cluster)["second"] == 200

    def test_the_depth_bounds_for_how_many_places_are_kept(self) -> None:
        cluster = Cluster(policy_with("conservative", backfill_depth=3))
        cluster.add_nodes(1, gpus=1)
        for i in range(6):
            cluster.submit(f"job-{i}", gpus=1, expected_run_s=10)
        cluster.cycle()
        assert expected(cluster) == {"job-1": 10, "job-2": 20, "job-3": 30}
        cluster.validate()


class TestNone:
    def test_nobody_passes_on_nodes_that_the_first_could_use(self) -> None:
        cluster = Cluster(policy_with("none"))
        cluster.add_node("gpu", gpus=4)
        cluster.add_node("cpu")
        cluster.submit("running", gpus=2, expected_run_s=10)
        cluster.cycle()
        cluster.submit("wide", gpus=4)
        cluster.submit("short", gpus=1, expected_run_s=1)
        cluster.submit("cpus", cpus=4)
        decided = cluster.cycle()
        assert decided.nodes == {"cpus": ["cpu"]}
        assert decided.sentences["short"] == (
            f"job {cluster.ids['wide']} goes first; 0 of 2 nodes: 1 has no GPU, "
            "1 lacks 1 free GPU"
        )
        assert not decided.plan.expected_start_at_s
        cluster.validate()

    def test_who_can_never_start_stops_nobody(self) -> None:
        cluster = Cluster(policy_with("none"))
        cluster.add_nodes(1, gpus=4)
        cluster.submit("impossible", gpus=5)
        cluster.submit("small", gpus=1)
        assert cluster.cycle().started == ["small"]


class TestPreemptionBesidePromises:
    def test_who_runs_on_promised_nodes_makes_room_for_nobody_behind(self) -> None:
        cluster = Cluster(policy_with("easy", "priority"))
        cluster.add_nodes(2, gpus=4)
        cluster.submit("low", gpus=2, priority=0, expected_run_s=100)
        cluster.submit("fixed", gpus=2, priority=0, preemptible=False, expected_run_s=100)
        cluster.submit("other", gpus=4, priority=0, preemptible=False)
        cluster.cycle()
        cluster.submit("wide", gpus=4, priority=9)  # cannot stop `fixed`
        cluster.submit("urgent", gpus=2, priority=5)
        decided = cluster.cycle()
        assert not decided.evicted
        assert expected(cluster) == {"wide": 100}
        cluster.submit("urgent-and-short", gpus=2, priority=5, expected_run_s=90)
        assert cluster.cycle().evicted == {"low": StopCause.PREEMPTED}
        cluster.validate()


class TestMinRuntime:
    @pytest.fixture
    def cluster(self) -> Iterator[Cluster]:
        cluster = Cluster("priority")
        cluster.add_nodes(1, gpus=1)
        cluster.submit("low", gpus=1, min_runtime_s=60)
        cluster.cycle()
        cluster.submit("high", gpus=1, priority=1)
        yield cluster
        cluster.validate()

    def test_nobody_is_preempted_before_its_minimum(self, cluster: Cluster) -> None:
        cluster.advance(59)
        assert not cluster.cycle().evicted

    def test_after_it_anybody_is(self, cluster: Cluster) -> None:
        cluster.advance(60)
        assert cluster.cycle().evicted == {"low": StopCause.PREEMPTED}

    def test_its_end_wakes_the_daemon(self, cluster: Cluster) -> None:
        assert cluster.decide().wake_at_s == cluster.now_s + 60

    def test_each_attempt_has_its_own(self, cluster: Cluster) -> None:
        cluster.advance(60)
        cluster.settle()
        cluster.end("high")
        cluster.cycle()
        cluster.submit("again", gpus=1, priority=1)
        cluster.advance(59)
        assert not cluster.cycle().evicted
        cluster.advance(1)
        assert cluster.cycle().evicted == {"low": StopCause.PREEMPTED}

    def test_draining_does_not_wait_for_it(self, cluster: Cluster) -> None:
        cluster.cordon("node-0", drain=True)
        assert cluster.cycle().evicted == {"low": StopCause.DRAINED}


def patient(backfill: str) -> dict[str, object]:
    return {"policy": policy_with(backfill, patience_s=NEVER_S, starvation_s=NEVER_S)}


class TestRandomLives:
    @pytest.mark.parametrize("seed", range(10))
    def test_easy_delays_nobody_to_whom_it_promised(self, seed: int) -> None:
        life = Life(works=random_works(random.Random(seed), 50), **patient("easy"))
        life.live()
        assert len(life.foreseen) >= 4
        for name, seen in life.foreseen.items():
            starts_s = [start_s for _, start_s in seen] + [life.started_at_s[name]]
            assert starts_s == sorted(starts_s, reverse=True), name

    @pytest.mark.parametrize("seed", range(5))
    def test_conservative_delays_the_first_in_line_by_nobody(self, seed: int) -> None:
        life = Life(works=random_works(random.Random(seed), 40), **patient("conservative"))
        life.live()
        for name, starts_s in life.first_blocked.items():
            assert starts_s == sorted(starts_s, reverse=True), name
            assert life.started_at_s[name] <= starts_s[-1]

    def test_small_jobs_wait_less_and_wide_ones_not_more(self) -> None:
        small_s: dict[str, list[float]] = {"none": [], "easy": []}
        wide_s: dict[str, list[float]] = {"none": [], "easy": []}
        for seed in range(6):
            works = random_works(random.Random(seed), 50)
            for backfill in small_s:
                life = Life(works=works, **patient(backfill))
                life.live()
                for work in works:
                    waits_s = small_s if work.tasks * work.gpus <= 2 else wide_s
                    waits_s[backfill].append(life.wait_s[work.name])
        assert mean(small_s["easy"]) < 0.5 * mean(small_s["none"])
        assert mean(wide_s["easy"]) <= mean(wide_s["none"])

    @pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
    @pytest.mark.parametrize("seed", range(3))
    def test_everybody_starts_in_the_end_whatever_was_said(
        self, backfill: str, seed: int
    ) -> None:
        works = random_works(random.Random(seed), 40, lie=0.5, mute=0.3)
        policy = policy_with(backfill, patience_s=100.0, starvation_s=400.0)
        life = Life(policy, works)
        life.live()
        assert {life.cluster.phase(name) for name in life.works} == {JobPhase.SUCCEEDED}
        life.cluster.validate()

    def test_liars_pass_a_gang_only_until_it_starves(self) -> None:
        cluster = Cluster(policy_with("easy", patience_s=100.0, starvation_s=500.0))
        cluster.add_nodes(2, gpus=4)
        running: dict[str, float] = {}
        for turn in range(200):
            cluster.advance(10)
            for i in range(2):
                cluster.submit(f"liar-{turn}-{i}", gpus=1, expected_run_s=1)
            if turn == 5:
                cluster.submit("wide", tasks=2, gpus=4, expected_run_s=100)
            for name in cluster.cycle().started:
                running[name] = cluster.now_s
            for name, since_s in list(running.items()):
                if cluster.now_s - since_s >= 40:
                    cluster.end(name)
                    del running[name]
            if "wide" in running:
                break
        waited_s = cluster.job("wide").waited_s(cluster.now_s)
        assert "wide" in running
        assert waited_s <= 500 + 100
        cluster.validate()


class TestForeseen:
    """What is told on demand goes further than the promises of a decision."""

    def test_a_hypothetical_job_comes_after_those_that_wait(self, easy: Cluster) -> None:
        easy.add_nodes(1, gpus=4)
        easy.submit("running", gpus=4, expected_run_s=100)
        easy.cycle()
        easy.submit("first", gpus=4, expected_run_s=50)
        easy.submit("second", gpus=4, expected_run_s=20)
        assert expected(easy) == {"first": 100}
        plan = easy.dry_run(gpus=4)
        assert plan.expected_start_at_s["dry-run"] == easy.now_s + 170

    @pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
    def test_any_waiting_job_can_ask(self, backfill: str) -> None:
        cluster = Cluster(policy_with(backfill))
        cluster.add_nodes(1, gpus=4)
        cluster.submit("running", gpus=4, expected_run_s=100)
        cluster.cycle()
        for i in range(4):
            cluster.submit(f"job-{i}", gpus=3, expected_run_s=10)
        cluster.submit("impossible", gpus=5)
        asked = {
            name: expected_start(cluster.snapshot(), cluster.policy, cluster.ids[name])
            for name in ("running", "job-0", "job-1", "job-3", "impossible")
        }
        assert asked == {
            "running": None,
            "job-0": cluster.now_s + 100,
            "job-1": cluster.now_s + 110,
            "job-3": cluster.now_s + 130,
            "impossible": None,
        }
        assert n_ahead(cluster.snapshot(), cluster.policy, cluster.ids["job-3"]) == 3


@pytest.mark.parametrize("seed", range(5))
def test_many_ends_at_once_are_booked_as_one_by_one(seed: int) -> None:
    draw = random.Random(seed)
    cluster = Cluster("fifo")
    cluster.add_nodes(3, gpus=4)
    cluster.add_node("small", gpus=1, gpu_memory_mib=1000)
    cluster.add_node("cpu")
    for i in range(30):
        gpus = draw.choice([0, 0.2, 0.5, 1, 2])
        memory_mib = draw.choice([0, 300]) if 0 < gpus < 1 else 0
        cluster.submit(
            f"job-{i}", tasks=draw.choice([1, 2]), gpus=gpus, gpu_memory_mib=memory_mib
        )
    cluster.cycle()
    cluster.health("node-1", bad_gpus=[0, 2])
    snapshot = cluster.snapshot()
    tasks = [
        (snapshot.nodes.row_of[task.node], record.job.spec.roles[0].shape, task.devices)
        for record in cluster.engine.jobs()
        for task in record.live_tasks()
    ]
    draw.shuffle(tasks)
    n_gone = len(tasks) // 2
    one_by_one, at_once = snapshot.nodes.for_draft(), snapshot.nodes.for_draft()
    for place in tasks[:n_gone]:
        give(one_by_one, *place)
    shapes = list(dict.fromkeys(shape for _, shape, _ in tasks))
    columns = capacity.tasks_of(
        snapshot.nodes,
        np.array([node for node, _, _ in tasks]),
        np.array([shapes.index(shape) for _, shape, _ in tasks]),
        shapes,
        [devices for _, _, devices in tasks],
    )
    changed = capacity.give_all(at_once, columns.first(n_gone))
    assert changed == sorted({node for node, _, _ in tasks[:n_gone]})
    assert_same_columns(at_once, columns_of(one_by_one))


class TestServicesThatMayHaveNoReplicas:
    """One node of 2 GPUs, full; a service of which nothing must be placed to start."""

    @pytest.fixture
    def full(self, policy: str) -> Cluster:
        cluster = Cluster(policy)
        cluster.add_nodes(1, gpus=2)
        cluster.submit("full", gpus=2)
        cluster.settle()
        replica = role_of("replica", tasks=2, min_tasks=0, max_tasks=4, gpus=1)
        cluster.submit("service", replica, kind=JobKind.INFERENCE)
        return cluster

    @pytest.mark.parametrize("policy", ["priority", "fifo", "lepton", "max_min_fairness"])
    def test_one_replica_is_waited_for(self, full: Cluster) -> None:
        for _ in range(3):
            assert full.settle() == []
            full.advance(1000.0)
        full.submit("small", gpus=1)
        full.end("full")
        assert full.settle()[0] == "service"

    @pytest.mark.parametrize("policy", ["priority"])
    @pytest.mark.parametrize("level", ["nvlink", "host", "rack"])
    def test_of_which_nothing_is_wanted_together(self, full: Cluster, level: str) -> None:
        replica = role_of("replica", tasks=1, min_tasks=0, gpus=1)
        about = {"kind": JobKind.INFERENCE, "topology_preferred": level}
        full.submit("near", replica, **about)
        full.update("near", replicas={"replica": 0})
        full.settle()
        reason = full.explain("near")
        assert reason is not None
        assert "no tasks of it are wanted" in reason.detail

    @pytest.mark.parametrize("policy", ["priority", "lepton"])
    def test_of_which_nothing_is_wanted_waits_for_that(self, full: Cluster) -> None:
        full.update("service", replicas={"replica": 0})
        for _ in range(3):
            assert full.settle() == []
            full.advance(1000.0)
        full.end("full")
        assert full.settle() == []
        reason = full.explain("service")
        assert reason is not None
        assert reason.cause is Cause.SUSPENDED
        assert "no tasks of it are wanted" in reason.detail
        full.update("service", replicas={"replica": 1})
        assert full.settle() == ["service"]
