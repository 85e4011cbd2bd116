"""Pollux' workloads: measurements, goodput and policies, on an application made up here."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from cluster_testing import Cluster

from policies.orderings import first_come_first_served, nobody
from policies.progress import AttainedService
from policies.scoring import best_fit
from scheduler.core.ports import Policy
from simulator.reproduction.comparison import Comparison
from simulator.reproduction.pollux import completion_times_s
from simulator.reproduction.pollux_table import NAMES, summarised
from simulator.traces import TraceError, read_trace
from simulator.traces.pollux import Adaptive, Application
from simulator.workload import Gang

PLACEMENTS = (1, 2, 3, 4, 11, 12, 13, 22, 44)
LOCALS = (8, 16, 32)
BATCHES = (16, 64, 256)
N_EPOCHS = 4
HEADER = "name,time,application,num_replicas,batch_size"


def step_s(n_gpus: int, local: float) -> tuple[float, float]:
    """What a step takes, and its synchronisation: in the CSV, and here."""
    sync_s = 0.0 if n_gpus == 1 else 0.02 + 0.002 * n_gpus
    return 0.01 + 0.005 * local + sync_s, sync_s


def gain(batch: int, epoch: int) -> float:
    square, variance = 1.0, 2.0 * (epoch + 1)
    return (variance + square) / (variance / (batch / BATCHES[0]) + square)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    app = tmp_path / "traces" / "toy"
    app.mkdir(parents=True)
    lines = ["placement,local_bsz,step_time,sync_time"]
    for placement in PLACEMENTS:
        n_gpus = sum(map(int, str(placement)))
        lines += [
            f"{placement},{b},{step_s(n_gpus, b)[0]},{step_s(n_gpus, b)[1]}" for b in LOCALS
        ]
    (app / "placements.csv").write_text("\n".join(lines) + "\n")
    lines = ["num_nodes,num_replicas,local_bsz,step_time,sync_time"]
    for nodes, gpus in ((4, 16), (8, 16), (8, 32), (16, 16), (16, 64), (2, 5), (3, 9)):
        lines += [
            f"{nodes},{gpus},{b},{step_s(gpus, b)[0]},{step_s(gpus, b)[1]}" for b in LOCALS
        ]
    (app / "scalability.csv").write_text("\n".join(lines) + "\n")
    for batch in BATCHES:
        lines = ["progress,iteration,metric,grad_sqr,grad_var"]
        for epoch in range(N_EPOCHS):
            done, steps = 1000.0 * (epoch + 1), 1000 * (epoch + 1) // (batch // 16)
            lines.append(f"{done},{steps},0.5,1.0,{2.0 * (epoch + 1)}")
        (app / f"validation-{batch}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def gang(n_gpus: int, n_nodes: int = 1) -> Gang:
    return Gang(
        n_tasks=n_gpus, n_gpus=float(n_gpus), gpu_types=("A100",), n_nodes=n_nodes, n_racks=1
    )


class TestApplication:
    def test_steps_are_interpolated_over_batches_and_sizes(self, folder: Path) -> None:
        app = Application(folder / "traces" / "toy")
        assert app.step_s(1, 4, 12) == pytest.approx(step_s(4, 12))
        assert app.step_s(2, 3, 16) == pytest.approx(step_s(3, 16))
        assert app.step_s(2, 6, 16)[0] == pytest.approx(step_s(6, 16)[0], rel=1e-6)
        assert app.local_bounds == (8, 32)
        assert (app.batch_bounds, app.n_epochs, app.most_gpus()) == ((16, 256), 4, 32)

    def test_a_batch_beyond_a_gpu_is_accumulated(self, folder: Path) -> None:
        app = Application(folder / "traces" / "toy")
        assert app.split(64, 4) == (16, 0)
        assert app.split(256, 2) == (32, 3)
        assert app.split(16, 1) == (16, 0)
        assert app.split(32, 1) == (16, 1)  # on one GPU noise needs two passes

    @pytest.mark.parametrize("n_gpus", [1, 2, 4])
    def test_goodput_is_what_a_step_is_worth_over_its_time(
        self, folder: Path, n_gpus: int
    ) -> None:
        app = Application(folder / "traces" / "toy")
        for batch in BATCHES:
            local, n_more = app.split(batch, n_gpus)
            if local < 8:
                continue
            whole_s, sync_s = step_s(n_gpus, local)
            took_s = whole_s + n_more * (whole_s - sync_s)
            exact = [gain(batch, epoch) / took_s for epoch in range(N_EPOCHS)]
            assert app.goodput(1, n_gpus, batch) == pytest.approx(exact)
            assert (app.goodput(1, n_gpus) >= np.array(exact) * 0.97).all()  # the best, nearly

    def test_noisy_gradients_make_large_batches_worth_it(self, folder: Path) -> None:
        app = Application(folder / "traces" / "toy")
        early, late = (app.goodput(1, 2)[e] / app.goodput(1, 2, 16)[e] for e in (0, 3))
        assert late > early

    def test_behaviour_goes_from_epoch_to_epoch(self, folder: Path) -> None:
        behaviour = Adaptive(profile=str(folder / "traces" / "toy"), batch_size=64)
        assert behaviour.work == 4000.0
        took_s, done = 0.0, 0.0
        for _ in range(N_EPOCHS):
            speed = behaviour.speed(gang(2), done)
            took_s += (speed.until_done - done) / speed.per_s
            done = speed.until_done
        app = Application(folder / "traces" / "toy")
        assert done == behaviour.work
        assert took_s == pytest.approx(app.run_s(2, 64))
        almost = behaviour.speed(gang(2), 1000.0 * (1 - 1e-12))
        assert almost.until_done == 2000.0  # rounding must not keep it in an epoch


class TestReading:
    def write(self, folder: Path, *lines: str) -> Path:
        path = folder / "workload.csv"
        path.write_text("\n".join([HEADER, *lines]) + "\n")
        return path

    def test_jobs_are_elastic_and_say_how_they_scale(self, folder: Path) -> None:
        (job,) = read_trace(self.write(folder, "toy-0,107,toy,2,64"))
        (role,) = job.spec.roles
        assert (job.at_s, role.min_count, role.count, role.max_count) == (107.0, 1, 2, 32)
        assert job.spec.elastic
        app = Application(folder / "traces" / "toy")
        assert job.spec.speed_up(4) == pytest.approx(app.run_s(2) / app.run_s(4))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("a,0,toy,0,64", "at least 1"),
            ("a,0,toy,two,64", "num_replicas"),
            ("a,0,other,1,64", "nothing is measured of 'other'"),
        ],
    )
    def test_malformed_workloads_are_refused(
        self, folder: Path, line: str, message: str
    ) -> None:
        with pytest.raises(TraceError, match=message):
            list(read_trace(self.write(folder, line)))

    def test_a_workload_without_measurements_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="traces/"):
            list(read_trace(self.write(tmp_path, "a,0,toy,1,64")))

    def test_broken_measurements_name_their_file(self, folder: Path) -> None:
        broken = folder / "traces" / "toy" / "placements.csv"
        broken.write_text("placement,local_bsz,step_time,sync_time\n1,8,fast,0\n")
        with pytest.raises(TraceError, match=r"placements\.csv"):
            list(read_trace(self.write(folder, "a,0,toy,1,64")))


class TestPolicies:
    def workload(self, folder: Path, n_jobs: int) -> Path:
        lines = [HEADER, *(f"toy-{i},{60 * i},toy,2,64" for i in range(n_jobs))]
        path = folder / "workload.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    def test_a_job_alone_takes_its_start_and_its_work(self, folder: Path) -> None:
        (took_s,) = completion_times_s(self.workload(folder, 1), "tiresias").values()
        app = Application(folder / "traces" / "toy")
        assert took_s == pytest.approx(30.0 + app.run_s(2, 64))

    def test_who_adapts_is_done_first(self, folder: Path) -> None:
        path = self.workload(folder, 12)
        mean_s = {
            policy: np.mean(list(completion_times_s(path, policy).values()))
            for policy in ("pollux", "tiresias", "optimus")
        }
        assert mean_s["pollux"] < min(mean_s["tiresias"], mean_s["optimus"])
        assert not any(math.isnan(value) for value in mean_s.values())

    def test_equal_workloads_take_equally_long(self, folder: Path) -> None:
        path = self.workload(folder, 8)
        assert completion_times_s(path, "optimus") == completion_times_s(path, "optimus")


def las(**about: object) -> Policy:
    return Policy(
        name="las",
        order=first_come_first_served,
        may_preempt=nobody,
        score=best_fit,
        rounds=AttainedService(levels_gpu_s=(1000.0,), **about),
    )


class TestAttainedService:
    def busy(self, policy: Policy) -> Cluster:
        cluster = Cluster(policy)
        cluster.add_nodes(1, gpus=1)
        cluster.submit("old", gpus=1)
        cluster.settle()
        cluster.advance(1001)
        cluster.submit("new", gpus=1)
        cluster.settle()
        assert [task.node for task in cluster.tasks("new")] == ["node-0"]
        return cluster

    def test_who_had_less_stops_who_had_more_and_no_level_twice(self) -> None:
        cluster = self.busy(las())
        cluster.advance(900)
        assert cluster.cycle().plan.is_empty
        cluster.advance(200)
        assert cluster.cycle().plan.is_empty  # now both are on the second level

    def test_whoever_waited_long_begins_anew(self) -> None:
        cluster = self.busy(las(promote_after=1.0))
        cluster.advance(990)
        assert cluster.cycle().plan.is_empty
        cluster.advance(15)  # "old" has waited as long as it ran, "new" has had its level
        assert list(cluster.cycle().evicted) == ["new"]
        cluster.settle()
        assert cluster.tasks("old")
        cluster.advance(900)
        assert cluster.cycle().plan.is_empty  # it counts from its promotion
        cluster.validate()


def test_the_table_gives_means_and_the_order() -> None:
    lines = [
        Comparison(case=name, figure=f"w-{k}", ours=ours + k, published=ours)
        for name, ours in zip(NAMES.values(), (100.0, 200.0, 199.5), strict=True)
        for k in range(2)
    ]
    first, *_, order = summarised(lines)[:4]
    assert (first.ours, first.published, first.holds) == (100.5, 100.0, True)
    assert (order.ours, order.at_least, order.holds) == (0.0, 2.0, False)


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("placements.csv", "1,8,", "x,8,", ":2: placement: 'x' is not a number"),
        ("placements.csv", "1,8,", "10,8,", ":2: placement: 10 has a node without GPUs"),
        ("placements.csv", "1,8,", "1,0,", ":2: local_bsz: must be above 0"),
        ("placements.csv", "1,8,", "1,0.5,", ":2: local_bsz: 0.5 is not a whole number"),
        ("placements.csv", "1,8,0.05", "1,8,-0.05", ":2: step_time: -0.05 is negative"),
        ("placements.csv", "local_bsz", "batch", ":1: local_bsz: the column is missing"),
        ("placements.csv", "1,8,", "1,8,nan,", ":2: 5 fields where there should be 4"),
        ("scalability.csv", "4,16,8,", "4,16,inf,", ":2: local_bsz: 'inf' is not a finite"),
        ("validation-16.csv", "2000.0", "500.0", ": progress: must rise from row to row"),
        ("validation-16.csv", "0.5,1.0,2.0", "0.5,0,0", ": grad_sqr and grad_var: must not"),
        ("validation-16.csv", "grad_var", "variance", ":1: grad_var: the column is missing"),
        ("validation-64.csv", None, "", ": there are no measurements in it"),
    ],
)
def test_measurements_are_refused_by_their_place(folder: Path, name, old, new, told) -> None:
    path = folder / "traces" / "toy" / name
    path.write_text(new if old is None else path.read_text().replace(old, new, 1))
    (folder / "w.csv").write_text(f"{HEADER}\na,0,toy,9,64\n")
    with pytest.raises(TraceError, match=re.escape(f"{path}{told}")):
        list(read_trace(folder / "w.csv"))


def test_measurements_may_begin_with_a_mark_of_their_encoding(folder: Path) -> None:
    for path in (folder / "traces" / "toy").glob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    (folder / "w.csv").write_text(f"{HEADER}\na,0,toy,9,64\n")
    assert [job.key for job in read_trace(folder / "w.csv")] == ["a"]


def test_too_few_measurements_are_told(folder: Path) -> None:
    toy = folder / "traces" / "toy"
    lines = (toy / "placements.csv").read_text().splitlines()
    (toy / "placements.csv").write_text("\n".join([lines[0], *lines[-3:]]))
    (toy / "scalability.csv").write_text("\n".join([
        "num_nodes,num_replicas,local_bsz,step_time,sync_time", "2,8,8,1,0",
    ]))  # fmt: skip
    (folder / "w.csv").write_text(f"{HEADER}\na,0,toy,9,64\n")
    with pytest.raises(TraceError, match="too few nodes, GPUs and batch sizes are measured"):
        list(read_trace(folder / "w.csv"))
