"""What queues say of the jobs in them, and what it takes for a queue to be open."""

from dataclasses import replace

import pytest
from cluster_testing import Cluster, role_of
from test_queue_tree import cluster_of

from policies.scoring import best_fit
from scheduler.core.books import Books
from scheduler.core.events import JobsSubmitted, QueuePut, QueueStateSet
from scheduler.core.model import (
    JobPhase,
    JobSpec,
    Launch,
    Queue,
    QueueName,
    Role,
    StopCause,
)
from scheduler.core.placement import Want, on_types, wants_of
from scheduler.core.plan import Accepted, Refusal
from scheduler.core.quotas import Excess, Quotas
from scheduler.core.reclaim import hold_admitted


def set_state(cluster: Cluster, name: str, **state: bool) -> Accepted:
    event = QueueStateSet(at_s=cluster.now_s, name=QueueName(name), **state)
    return cluster.accept(event)


class TestDefaults:
    def spec(self, cluster: Cluster, **about: object) -> JobSpec:
        name = f"job-{len(cluster.ids)}"
        cluster.submit(name, **about)
        return cluster.job(name).job.spec

    def test_the_nearest_queue_that_says_something_counts(self) -> None:
        cluster = cluster_of(
            {
                "p": {"default_time_limit_s": 60.0, "default_min_runtime_s": 5.0},
                "a": {"parent": "p", "default_time_limit_s": 30.0},
            }
        )
        spec = self.spec(cluster, queue="a")
        assert (spec.time_limit_s, spec.min_runtime_s) == (30.0, 5.0)
        spec = self.spec(cluster, queue="a", time_limit_s=45.0, min_runtime_s=1.0)
        assert (spec.time_limit_s, spec.min_runtime_s) == (45.0, 1.0)
        assert self.spec(cluster, queue="p").time_limit_s == 60.0
        assert self.spec(cluster).time_limit_s == 0.0
        cluster.validate()

    @pytest.mark.parametrize(
        ("default_s", "above_s", "own_s", "given_s"),
        [(0, 0, 0, 0), (50, 0, 0, 50), (50, 40, 0, 40), (0, 40, 20, 20), (10, 40, 20, 10)],
    )
    def test_a_job_without_a_limit_gets_one_within_all_bounds(
        self, default_s: float, above_s: float, own_s: float, given_s: float
    ) -> None:
        cluster = cluster_of(
            {
                "p": {"max_time_limit_s": above_s},
                "a": {
                    "parent": "p",
                    "max_time_limit_s": own_s,
                    "default_time_limit_s": default_s,
                },
            }
        )
        assert self.spec(cluster, queue="a").time_limit_s == given_s

    def test_time_limits_are_bounded_also_in_updates(self) -> None:
        cluster = cluster_of({"p": {"max_time_limit_s": 60.0}, "a": {"parent": "p"}})
        refused = cluster.refuse_submit("long", queue="a", time_limit_s=61.0)
        assert (refused.refusal, refused.field) == (Refusal.PRECONDITION, "spec.time_limit_s")
        assert refused.message == "queue 'p' takes time limits up to 60 s"
        cluster.submit("job", queue="a", time_limit_s=60.0)
        for time_limit_s in (61.0, 0.0):
            event = cluster.update_event("job", time_limit_s=time_limit_s)
            assert cluster.refuse(event).field == "time_limit_s"
        cluster.update("job", time_limit_s=10.0)
        cluster.validate()

    def test_jobs_of_a_queue_may_be_spared(self) -> None:
        cluster = cluster_of({"p": {"is_preemptible": False}, "a": {"parent": "p"}}, gpus=2)
        cluster.submit("spared", queue="a", gpus=1)
        cluster.submit("other", queue="a", gpus=1, priority=1)
        cluster.settle()
        cluster.submit("high", queue="a", gpus=1, priority=9)
        assert cluster.cycle().evicted == {}
        cluster.put_queue("p")
        cluster.end("other")
        cluster.submit("usual", queue="a", gpus=1, priority=1)
        cluster.cancel("high")
        cluster.settle()
        cluster.submit("higher", queue="a", gpus=1, priority=9)
        assert cluster.cycle().evicted == {"usual": StopCause.PREEMPTED}

    def test_a_min_runtime_by_default_is_respected(self) -> None:
        cluster = cluster_of({"a": {"default_min_runtime_s": 100.0}}, gpus=1)
        cluster.submit("low", queue="a", gpus=1)
        cluster.settle()
        cluster.submit("high", queue="a", gpus=1, priority=1)
        assert cluster.cycle().evicted == {}
        cluster.advance(100)
        assert cluster.cycle().evicted == {"low": StopCause.PREEMPTED}

    def test_a_dry_run_has_the_defaults_too(self) -> None:
        cluster = cluster_of({"a": {"default_priority": 7}}, gpus=1)
        cluster.submit("low", queue="a", gpus=1, priority=6)
        cluster.settle()
        assert cluster.dry_run(queue="a", gpus=1).evictions


class TestNumbers:
    def submit_of(self, cluster: Cluster, user: str, queue: str, **about: object) -> str:
        spec = cluster.spec("job", queue=queue, **about)
        event = JobsSubmitted(at_s=cluster.now_s, spec=spec, submitter=user)
        outcome = cluster.observe(event)
        return "" if isinstance(outcome, Accepted) else outcome.message

    def test_each_submitter_has_so_many_in_a_queue_and_all_below(self) -> None:
        cluster = cluster_of(
            {"p": {"max_jobs_per_submitter": 2}, "a": {"parent": "p"}, "b": {"parent": "p"}}
        )
        assert self.submit_of(cluster, "ada", "a") == ""
        assert self.submit_of(cluster, "ada", "b") == ""
        full = "queue 'p' has 2 of at most 2 jobs of ada"
        assert self.submit_of(cluster, "ada", "p") == full
        assert self.submit_of(cluster, "bob", "a", array_size=3) == full.replace(
            "2 of at most 2 jobs of ada", "0 of at most 2 jobs of bob"
        )
        assert self.submit_of(cluster, "bob", "a", array_size=2) == ""
        assert self.submit_of(cluster, "ada", "default") == ""
        first = next(iter(cluster.engine.jobs()))
        cluster.names = {record.id: record.id for record in cluster.engine.jobs()}
        cluster.ids = {record.id: record.id for record in cluster.engine.jobs()}
        cluster.cancel(first.id)
        assert self.submit_of(cluster, "ada", "p") == ""
        cluster.validate()


class TestStates:
    """Slurm's states of a partition: UP, DOWN, DRAIN and INACTIVE."""

    @pytest.mark.parametrize("is_open", [True, False])
    @pytest.mark.parametrize("is_started", [True, False])
    def test_what_runs_goes_on_and_only_the_rest_is_held(
        self, is_open: bool, is_started: bool
    ) -> None:
        cluster = cluster_of({"p": {}, "a": {"parent": "p"}}, gpus=1)
        cluster.submit("runs", queue="a", gpus=1)
        cluster.settle()
        cluster.submit("waits", queue="a", gpus=1)
        set_state(cluster, "p", is_open=is_open, is_started=is_started)
        if not is_open:
            refused = cluster.refuse_submit("late", queue="a")
            assert refused.message == "queue 'p' takes no new jobs"
        assert cluster.cycle().evicted == {}
        cluster.end("runs")
        assert cluster.phase("runs") is JobPhase.SUCCEEDED
        decided = cluster.cycle()
        assert decided.started == (["waits"] if is_started else [])
        if not is_started:
            assert decided.sentences == {"waits": "queue p starts no jobs"}
            set_state(cluster, "p", is_started=True)
            assert cluster.cycle().started == ["waits"]
        cluster.validate()

    def test_what_is_not_named_stays_and_a_repeat_is_one(self) -> None:
        cluster = cluster_of({"a": {"weight": 2.0}})
        assert not set_state(cluster, "a", is_open=False).is_repeat
        assert set_state(cluster, "a", is_open=False).is_repeat
        set_state(cluster, "a", is_started=False)
        queue = cluster.engine.queue(QueueName("a"))
        assert queue == Queue(name=QueueName("a"), weight=2.0, is_open=False, is_started=False)
        refused = cluster.refuse(
            QueueStateSet(at_s=cluster.now_s, name=QueueName("b"), is_open=True)
        )
        assert (refused.refusal, refused.field) == (Refusal.NOT_FOUND, "name")
        cluster.validate()


@pytest.mark.parametrize(
    ("field", "about"),
    [
        ("max_jobs_per_submitter", {"max_jobs_per_submitter": -1}),
        ("default_time_limit_s", {"default_time_limit_s": -1.0}),
        ("max_time_limit_s", {"max_time_limit_s": float("inf")}),
        ("default_min_runtime_s", {"default_min_runtime_s": float("nan")}),
        ("default_time_limit_s", {"default_time_limit_s": 2.0, "max_time_limit_s": 1.0}),
    ],
)
def test_rules_that_make_no_sense_are_refused(field: str, about: dict[str, float]) -> None:
    cluster = Cluster()
    queue = Queue(name=QueueName("a"), **about)  # type: ignore[arg-type]
    refused = cluster.refuse(QueuePut(at_s=cluster.now_s, queue=queue))
    assert (refused.refusal, refused.field) == (Refusal.INVALID, f"queue.{field}")


def test_figures_are_those_of_the_jobs() -> None:
    cluster = cluster_of({"a": {}, "b": {"parent": "a"}}, gpus=4)
    for i in range(7):
        cluster.submit(f"job-{i}", queue="ab"[i % 2], gpus=(0.5, 1)[i % 2])
    cluster.submit("held", queue="b", suspended=True)
    cluster.settle()
    cluster.suspend("job-0")
    figures = cluster.engine.figures()
    for name in ("a", "b", "default"):
        jobs = [r for r in cluster.engine.jobs() if r.job.spec.queue == name]
        on = [r for r in jobs if r.live_tasks()]
        found = figures[QueueName(name)]
        assert (found.n_pending, found.n_running) == (len(jobs) - len(on), len(on)), name
        assert found.gpu_milli_used == sum(
            record.gpu_milli_of(record.live_tasks()) for record in on
        )
    assert cluster.engine.queue_figures(QueueName("nobody's")).n_running == 0


def test_a_role_is_whole_unless_it_says_otherwise() -> None:
    role = Role(name="worker", launch=Launch(command=("true",)), count=3)
    assert (role.min_count, role.max_count) == (3, 3)
    assert replace(role, min_count=0, max_count=5).min_count == 0
    assert Role(name="w", launch=role.launch).min_count == 1


def test_places_are_held_for_what_a_gang_needs_if_a_limit_keeps_the_rest_elsewhere() -> None:
    cluster = Cluster("fifo")
    cluster.add_node("h", gpus=4, gpu_type="H100")
    cluster.add_node("a", gpus=4, gpu_type="A100")
    cluster.put_queue("q", limit=(("gpu_milli:A100", 2000),))
    cluster.submit("other", gpus=4, gpu_types=("H100",))
    cluster.settle()
    role = role_of(tasks=4, min_tasks=2, gpus=1)
    cluster.submit("gang", role, queue="q")
    snapshot = cluster.snapshot()
    draft, quotas = Books().draft_of(snapshot, best_fit, ()), Quotas(snapshot)
    draft.open_later()
    (row,) = snapshot.waiting_rows().tolist()
    # Within the limit are two tasks on the one type, or all on the other, which is full.
    wants = (Want("worker", role.shape, must=(0, 1), may=(2, 3)),)
    members = hold_admitted(draft, quotas, row, wants)
    assert [snapshot.nodes.nodes[member.spot.row].name for member in members] == ["a", "a"]


def test_a_limit_of_a_type_holds_for_jobs_alike_that_a_round_sends_to_others() -> None:
    cluster = Cluster("fifo")
    for name, gpu_type in (("h", "H100"), ("a", "A100")):
        cluster.add_node(name, gpus=4, gpu_type=gpu_type)
    cluster.put_queue("q", limit=(("gpu_milli:A100", 0),))
    cluster.submit("job", gpus=1, queue="q")
    snapshot = cluster.snapshot()
    (row,) = snapshot.waiting_rows().tolist()
    quotas, wants = Quotas(snapshot), wants_of(snapshot, row)
    on_h100 = tuple(on_types(want, ("H100",)) for want in wants)
    on_a100 = tuple(on_types(want, ("A100",)) for want in wants)
    assert quotas.admit(row, on_h100, is_now=True) == on_h100
    assert isinstance(quotas.admit(row, on_a100, is_now=True), Excess)
    assert quotas.admit(row, wants, is_now=True) == on_h100
