"""Sizes by the integer program: against all choices, against cvxpy, and on a cluster."""

import itertools
import random

import cvxpy as cp
import numpy as np
import pytest
from cluster_testing import Cluster

from policies import goodput
from policies.goodput import UNSERVED, Goodput, Options, chosen, greedy, values_of
from policies.linear_program import LinearProgram, Solution, Status
from policies.registry import POLICIES, in_rounds_of, policy_named
from scheduler.core.model import JobPhase, StopCause

ELASTIC = {"elastic": True, "gpus": 1, "checkpoint_interval_s": 30, "resize_cooldown_s": 60}


def random_options(seed: int, n_jobs: int, n_types: int = 2) -> Options:
    draw = random.Random(seed)
    rows = []
    for job in range(n_jobs):
        scaling = draw.choice([0.3, 0.6, 0.9, 1.0])
        for gpu_type in range(n_types):
            speed = draw.choice([1.0, 1.5, 3.0])
            for n_tasks in draw.choice([(1,), (1, 2), (1, 2, 4), (2, 3)]):
                factor = draw.choice([1.0, 1.0, 0.7])
                goodput = speed * n_tasks**scaling
                rows.append((job, gpu_type, n_tasks, float(n_tasks), goodput, factor))
    job, gpu_type, n_tasks, gpus, goodput, factor = (
        np.array(c) for c in zip(*rows, strict=True)
    )
    return Options(
        job=job,
        gpu_type=gpu_type,
        n_tasks=n_tasks,
        gpus=gpus,
        goodput=goodput,
        factor=factor,
        is_current=np.zeros(len(job), np.bool_),
    )


def is_within(options: Options, given: np.ndarray, capacity: np.ndarray) -> bool:
    used = np.zeros(len(capacity))
    for row in given[given >= 0].tolist():
        used[options.gpu_type[row]] += options.gpus[row]
    return bool((used <= capacity + 1e-9).all())


def best_of_all(
    options: Options, value: np.ndarray, capacity: np.ndarray, n_jobs: int
) -> float:
    own = [[-1, *np.flatnonzero(options.job == job).tolist()] for job in range(n_jobs)]
    return max(
        sum(value[row] for row in choice if row >= 0)
        for choice in itertools.product(*own)
        if is_within(options, np.array(choice), capacity)
    )


@pytest.mark.parametrize("seed", range(30))
def test_it_is_the_best_of_all_choices(seed: int) -> None:
    options = random_options(seed, n_jobs=4)
    capacity = np.array([2.0 + seed % 3, 3.0])
    value = values_of(options, np.ones(4))
    given = chosen(options, value, capacity, must_run=np.zeros(4, np.bool_)).given
    assert is_within(options, given, capacity)
    assert all(row < 0 or options.job[row] == job for job, row in enumerate(given.tolist()))
    best = best_of_all(options, value, capacity, 4)
    assert value[given[given >= 0]].sum() == pytest.approx(best, abs=1e-6)
    quick = greedy(options, value, capacity, must_run=np.zeros(4, np.bool_))
    assert is_within(options, quick, capacity)
    assert value[quick[quick >= 0]].sum() <= best + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_cvxpy_finds_no_better(seed: int) -> None:
    options = random_options(100 + seed, n_jobs=25)
    capacity = np.array([12.0, 16.0])
    value = values_of(options, np.ones(25))
    given = chosen(options, value, capacity, must_run=np.zeros(25, np.bool_)).given
    x = cp.Variable(len(value), boolean=True)
    limits = [cp.sum(x[options.job == job]) <= 1 for job in range(25)]
    limits += [
        options.gpus[options.gpu_type == k] @ x[options.gpu_type == k] <= capacity[k]
        for k in range(2)
    ]
    problem = cp.Problem(cp.Maximize(value @ x), limits)
    problem.solve(solver=cp.SCIPY)
    assert value[given[given >= 0]].sum() == pytest.approx(problem.value, rel=2e-4)


def test_equal_jobs_are_one_column_and_served_as_they_came() -> None:
    options = random_options(7, n_jobs=1)
    n_jobs, n = 40, len(options.job)
    many = Options(
        job=np.repeat(np.arange(n_jobs), n),
        gpu_type=np.tile(options.gpu_type, n_jobs),
        n_tasks=np.tile(options.n_tasks, n_jobs),
        gpus=np.tile(options.gpus, n_jobs),
        goodput=np.tile(options.goodput, n_jobs),
        factor=np.tile(options.factor, n_jobs),
        is_current=np.zeros(n * n_jobs, np.bool_),
    )
    value = values_of(many, np.ones(n_jobs))
    given = chosen(many, value, np.array([4.0, 0.0]), must_run=np.zeros(n_jobs, np.bool_)).given
    assert is_within(many, given, np.array([4.0, 0.0]))
    served = np.flatnonzero(given >= 0)
    assert served.tolist() == list(range(len(served)))
    assert len(served) > 0


def test_who_must_run_does_even_if_it_is_worth_less() -> None:
    options = random_options(3, n_jobs=3, n_types=1)
    value = values_of(options, np.array([1.0, 1.0, 0.01]))
    must_run = np.array([False, False, True])
    given = chosen(options, value, np.array([2.0]), must_run=must_run).given
    assert given[2] >= 0


def test_a_size_without_gpus_is_no_measure_for_the_others() -> None:
    options = Options(
        job=np.array([0, 0, 0, 1]),
        gpu_type=np.zeros(4, np.intp),
        n_tasks=np.array([2, 3, 4, 1]),
        gpus=np.array([0.0, 0.25, 0.5, 0.0]),
        goodput=np.array([0.5, 0.75, 1.0, 2.0]),
        factor=np.ones(4),
        is_current=np.zeros(4, np.bool_),
    )
    value = values_of(options, np.ones(2))
    assert np.isfinite(value).all()
    assert value[0] < value[1] < value[2]


def test_values_follow_the_paper() -> None:
    options = Options(
        job=np.array([0, 0]),
        gpu_type=np.array([0, 0]),
        n_tasks=np.array([2, 4]),
        gpus=np.array([2.0, 4.0]),
        goodput=np.array([10.0, 15.0]),
        factor=np.array([1.0, 0.5]),
        is_current=np.array([True, False]),
    )
    value = values_of(options, np.array([2.0]))
    # over its least speed, times the GPUs of its smallest option, times the restart factor
    assert value == pytest.approx([2 * (UNSERVED - 2**-0.5), 2 * (UNSERVED - 1.5**-0.5)])


class TestOnACluster:
    def settle(self, cluster: Cluster, rounds: int = 12) -> None:
        """Decide at the beginning of every round for a while."""
        for _ in range(rounds):
            cluster.cycle()
            cluster.run_all()
            cluster.let_go()
            cluster.cycle()
            cluster.run_all()
            cluster.advance(60)

    def cluster(self, *gpus: int, now_s: float = 6000.0) -> Cluster:
        cluster = Cluster("goodput", now_s=now_s)
        for i, n in enumerate(gpus):
            cluster.add_node(f"node-{i}", gpus=n, gpu_type="A100")
        return cluster

    def sizes(self, cluster: Cluster, *names: str) -> list[int]:
        return [len(cluster.tasks(name)) for name in names]

    def test_who_scales_better_gets_more(self) -> None:
        cluster = self.cluster(8)
        flat = ((1, 1.0), (7, 1.05))
        cluster.submit("flat", tasks=1, min_tasks=1, max_tasks=7, scaling=flat, **ELASTIC)
        cluster.submit("steep", tasks=1, min_tasks=1, max_tasks=7, **ELASTIC)
        self.settle(cluster, 2)
        assert self.sizes(cluster, "flat", "steep") == [1, 7]
        cluster.validate()

    def test_a_newcomer_has_its_share_after_a_round_or_two(self) -> None:
        cluster = self.cluster(8)
        cluster.submit("first", tasks=4, min_tasks=1, max_tasks=8, **ELASTIC)
        self.settle(cluster, 12)
        assert self.sizes(cluster, "first") == [8]
        cluster.submit("second", tasks=4, min_tasks=1, max_tasks=8, **ELASTIC)
        self.settle(cluster, 3)
        assert self.sizes(cluster, "first", "second") == [4, 4]
        assert cluster.job("first").preemptions == 0
        n_resizes = cluster.job("first").resizes
        self.settle(cluster, 12)
        assert cluster.job("first").resizes == n_resizes  # it has settled
        cluster.end("second")
        self.settle(cluster, 12)
        assert self.sizes(cluster, "first") == [8]
        cluster.validate()

    def test_nothing_happens_between_rounds_but_starts(self) -> None:
        cluster = self.cluster(8)
        cluster.submit("first", tasks=4, min_tasks=1, max_tasks=8, **ELASTIC)
        self.settle(cluster, 12)
        cluster.advance(31)
        cluster.submit("second", tasks=4, min_tasks=1, max_tasks=8, **ELASTIC)
        plan = cluster.cycle().plan
        assert plan.is_empty
        assert plan.wake_at_s == cluster.now_s + 29

    def test_rigid_jobs_compete_with_their_one_size(self) -> None:
        cluster = self.cluster(4)
        cluster.submit("rigid", tasks=2, gpus=1, checkpoint_interval_s=30)
        cluster.submit("e", tasks=1, min_tasks=1, max_tasks=4, **ELASTIC)
        self.settle(cluster, 2)
        assert self.sizes(cluster, "rigid", "e") == [2, 2]
        cluster.validate()

    def test_who_has_no_configuration_left_is_stopped_for_who_has(self) -> None:
        cluster = self.cluster(4)
        cluster.submit("wide", gpus=4, checkpoint_interval_s=30)
        self.settle(cluster, 30)
        for i in range(4):
            cluster.submit(f"small-{i}", gpus=1, weight=2.0, checkpoint_interval_s=30)
        assert cluster.cycle().evicted == {"wide": StopCause.PREEMPTED}
        cluster.let_go()
        self.settle(cluster, 1)
        assert self.sizes(cluster, "small-0", "small-1", "small-2", "small-3") == [1] * 4
        assert cluster.phase("wide") is JobPhase.PENDING
        cluster.validate()

    def test_a_job_moves_to_the_type_where_it_is_faster(self) -> None:
        cluster = self.cluster(2)
        cluster.add_node("slow", gpus=2, gpu_type="T4")
        speeds = (("A100", 4.0), ("T4", 1.0))
        about = {**ELASTIC, "throughputs": speeds}
        cluster.submit("busy", tasks=2, gpus=1, throughputs=(("A100", 1.0),))
        self.settle(cluster, 1)
        cluster.submit("e", tasks=1, min_tasks=1, max_tasks=2, **about)
        self.settle(cluster, 20)
        assert {task.node for task in cluster.tasks("e")} == {"slow"}
        cluster.end("busy")
        self.settle(cluster, 3)
        assert {task.node for task in cluster.tasks("e")} == {"node-0"}
        assert cluster.job("e").preemptions == 0
        cluster.validate()

    def test_services_are_left_alone(self) -> None:
        from scheduler.core.model import JobKind

        cluster = self.cluster(4)
        cluster.submit("s", kind=JobKind.INFERENCE, tasks=2, gpus=1)
        cluster.submit("e", tasks=1, min_tasks=1, max_tasks=4, **ELASTIC)
        self.settle(cluster, 3)
        assert self.sizes(cluster, "s", "e") == [2, 2]
        cluster.validate()

    def test_without_an_answer_who_runs_keeps_its_size(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster = self.cluster(8)
        cluster.submit("first", tasks=4, min_tasks=1, max_tasks=8, **ELASTIC)
        self.settle(cluster, 12)
        cluster.submit("second", tasks=4, min_tasks=1, max_tasks=8, **ELASTIC)
        none = Solution(status=Status.LIMIT, value=np.nan, blocks={}, prices={})
        with monkeypatch.context() as patch:
            patch.setattr(LinearProgram, "maximize", lambda *_, **__: none)
            self.settle(cluster, 3)
            assert self.sizes(cluster, "first", "second") == [8, 0]
            granted, reason = cluster.granted[""], cluster.explain("second")
        assert (granted.status, granted.n_fallbacks) == ("limit reached", 6)
        assert reason is not None
        assert "sizes could not be computed (limit reached)" in reason.detail
        self.settle(cluster, 3)
        assert self.sizes(cluster, "first", "second") == [4, 4]
        assert cluster.granted[""].n_fallbacks == 0


def test_only_a_limit_that_is_asked_for_is_in_seconds() -> None:
    assert isinstance(POLICIES["goodput"].rounds, Goodput)
    assert POLICIES["goodput"].rounds.time_limit_s is None
    limited = in_rounds_of(policy_named("goodput"), 60.0, time_limit_s=5.0).rounds
    assert isinstance(limited, Goodput)
    assert limited.time_limit_s == 5.0


def test_a_search_of_no_nodes_is_greedy_or_the_best_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = random_options(100, n_jobs=25)
    capacity, must_run = np.array([12.0, 16.0]), np.zeros(25, np.bool_)
    value = values_of(options, np.ones(25))
    monkeypatch.setattr(goodput, "NODE_LIMIT", 0)
    given = chosen(options, value, capacity, must_run=must_run).given
    assert is_within(options, given, capacity)
    assert (given >= 0).any()
    assert np.array_equal(given, chosen(options, value, capacity, must_run=must_run).given)
