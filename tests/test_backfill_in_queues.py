"""Wide gangs that a limit of queues holds back: smaller ones do not pass them for ever."""

from cluster_testing import Cluster

from scheduler.core.model import JobPhase
from scheduler.core.plan import Cause

RUN_S = 600.0


def play_until(cluster: Cluster, name: str, *, queue: str = "default") -> int | None:
    """Submit four small jobs every 100 s, let them end as they said, until `name` starts.

    Return after how many times that is; None: not within 40.
    """
    for number in range(40):
        for i in range(4):
            small = f"small-{number}-{i}"
            cluster.submit(small, queue=queue, gpus=1, expected_run_s=RUN_S)
        cluster.advance(100.0)
        for record in list(cluster.engine.jobs()):
            other = cluster.names[record.id]
            ran_s = cluster.now_s - record.last_started_at_s
            is_over = record.phase is JobPhase.RUNNING and ran_s >= RUN_S
            if is_over and other.startswith("small"):
                cluster.end(other)
        decided = cluster.cycle()
        cluster.run_all()
        if name in decided.started:
            return number
    return None


def full_of_small(cluster: Cluster, n_jobs: int, *, queue: str = "default") -> None:
    for number in range(n_jobs):
        cluster.submit(f"small-of-old-{number}", queue=queue, gpus=1, expected_run_s=RUN_S)
        cluster.settle()
        cluster.advance(100.0)


def test_where_nothing_kept_is_idle_it_is_promised_places() -> None:
    cluster = Cluster("fifo")
    cluster.add_nodes(1, gpus=4)
    cluster.put_queue("kept", guaranteed=(("gpu_milli", 1000),), is_lender=False)
    cluster.submit("own", queue="kept", gpus=1)
    full_of_small(cluster, 3)
    cluster.submit("wide", gpus=3)
    decided = cluster.cycle()
    assert cluster.ids["wide"] in decided.plan.expected_start_at_s
    assert decided.unplaced["wide"].cause is Cause.GPUS
    assert play_until(cluster, "wide") is not None
    cluster.validate()


def test_beside_what_is_kept_and_idle_it_is_left_the_rest_once_it_waits_long() -> None:
    cluster = Cluster("fifo")
    cluster.add_nodes(1, gpus=8)
    cluster.put_queue("kept", guaranteed=(("gpu_milli", 2000),), is_lender=False)
    full_of_small(cluster, 6)
    cluster.submit("wider than that", gpus=7)
    cluster.submit("wide", gpus=6)
    assert play_until(cluster, "wide") is not None
    cluster.submit("own", queue="kept", gpus=2)
    assert cluster.cycle().started == ["own"]
    cluster.validate()


def test_at_the_limit_of_its_queue_it_is_left_that_once_it_waits_long() -> None:
    cluster = Cluster("fifo")
    cluster.add_nodes(1, gpus=16)
    cluster.put_queue("mine", limit=(("gpu_milli", 6000),))
    full_of_small(cluster, 6, queue="mine")
    cluster.submit("wider than that", queue="mine", gpus=7)
    cluster.submit("nowhere", queue="mine", gpus=2, gpu_types=["none such"])
    cluster.submit("wide", queue="mine", gpus=6)
    assert play_until(cluster, "wide", queue="mine") is not None
    cluster.submit("other", gpus=10)
    assert cluster.cycle().started == ["other"]
    cluster.validate()


def test_a_type_that_nobody_has_is_the_reason_however_full_the_cluster_is() -> None:
    cluster = Cluster("fifo")
    cluster.add_nodes(1, gpus=1, gpu_type="A100")
    cluster.put_queue("kept", guaranteed=(("gpu_milli", 1000),), is_lender=False)
    cluster.submit("own", queue="kept", gpus=1)
    cluster.settle()
    cluster.submit("never", gpus=1, gpu_types=["B200"])
    assert cluster.cycle().unplaced["never"].cause is Cause.GPU_TYPE
    cluster.validate()
