"""Who takes keeps it: what kept two jobs taking places from each other, in small."""

from cluster_testing import Cluster

from scheduler.core.model import JobKind, JobPhase

TWO_GPUS = (("gpu_milli", 2000),)
TWO_A100 = (("gpu_milli:A100", 2000),)


def test_what_a_preemptor_freed_is_kept_from_whose_turn_comes_first() -> None:
    cluster = Cluster("priority")
    cluster.add_nodes(1, gpus=1)
    cluster.put_queue("mine", weight=0.5)
    cluster.put_queue("other")
    cluster.submit("low", queue="mine", gpus=1)
    cluster.settle()
    cluster.submit("high", queue="mine", gpus=1, priority=1)
    cluster.submit("third", queue="other", gpus=1, priority=2)
    decided = cluster.cycle()
    assert list(decided.evicted) == ["low"]
    assert decided.plan.makes_room_for == (cluster.ids["high"],)
    cluster.submit("fourth", queue="other", gpus=1, priority=3)
    assert cluster.cycle().started == []  # while it stops
    cluster.let_go()
    assert cluster.cycle().started == ["high"]
    assert cluster.settle() == []
    cluster.validate()


def test_it_is_kept_no_longer_than_until_the_job_starts_or_is_gone() -> None:
    cluster = Cluster("priority")
    cluster.add_nodes(1, gpus=1)
    cluster.put_queue("mine", weight=0.5)
    cluster.put_queue("other")
    cluster.submit("low", queue="mine", gpus=1)
    cluster.settle()
    cluster.submit("high", queue="mine", gpus=1, priority=1)
    cluster.submit("third", queue="other", gpus=1, priority=2)
    cluster.cycle()
    cluster.suspend("high")
    cluster.let_go()
    cluster.resume("high")
    assert cluster.cycle().started == ["third"]
    cluster.validate()


def test_a_replica_in_the_way_of_a_limit_goes_with_the_job_that_is_stopped() -> None:
    cluster = Cluster("priority")
    cluster.add_node("t", gpus=2, gpu_type="T4")
    cluster.add_node("a", gpus=1, gpu_type="A100")
    cluster.put_queue("mine", guaranteed=TWO_GPUS, limit=TWO_GPUS)
    cluster.submit("borrower", gpus=1, gpu_types=["A100"])
    service = {"kind": JobKind.INFERENCE, "tasks": 2, "min_tasks": 1}
    cluster.submit("service", queue="mine", gpus=1, gpu_types=["T4"], **service)
    cluster.settle()
    cluster.submit("high", queue="mine", gpus=1, gpu_types=["A100"], priority=1)
    assert set(cluster.cycle().evicted) == {"borrower", "service"}
    cluster.run_all()
    cluster.let_go()
    assert cluster.settle() == ["high"]
    assert len(cluster.tasks("service")) == 1
    assert cluster.phase("borrower") is JobPhase.PENDING
    cluster.validate()


def test_replicas_go_as_long_as_the_job_would_else_be_owed_nothing() -> None:
    cluster = Cluster("priority")
    cluster.add_node("t", gpus=1, gpu_type="T4")
    cluster.add_node("a-0", gpus=1, gpu_type="A100")
    cluster.add_node("a-1", gpus=2, gpu_type="A100")
    cluster.put_queue("mine", guaranteed=TWO_A100)
    cluster.submit("borrower", gpus=1, gpu_types=["A100"])
    service = {"kind": JobKind.INFERENCE, "tasks": 3, "min_tasks": 1}
    cluster.submit("service", queue="mine", gpus=1, **service)
    cluster.settle()
    assert set(cluster.nodes_of("service")) == {"t", "a-0", "a-1"}
    cluster.submit("high", queue="mine", gpus=2, gpu_types=["A100"], priority=1)
    cluster.cycle()
    cluster.let_go()
    assert cluster.settle() == ["high", "borrower"]
    assert cluster.nodes_of("service") == ["t"]
    cluster.validate()
