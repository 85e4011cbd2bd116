"""The cluster file of a simulation: what it gives, and how it tells mistakes."""

import pytest
from simulation_testing import run_of, summary, trace_job

from scheduler.yaml_source import InvalidSource
from simulator.cluster import PoolChange, Shortage
from simulator.cluster_file import parse_cluster

FILE = """\
pools:
  - name: h100
    count: 3
    gpus: 8
    gpu_type: H100
    gpu_memory_mib: 81920
    cpus: 96
    memory_mib: 1048576
    price_usd_per_h: 32.5
    nodes_per_rack: 2
  - name: spot
    count: 1
    gpus: 4
    gpu_type: A100
    spot: true
    launch_s: 3m
    most: 4
    changes: [{at_s: 2h, count: 2}]
    shortages: [{from_s: 1h, until_s: 9000}]
    node_w: 400
queues:
  - name: research
    guaranteed: {gpus: 8, "gpus:H100": 4, memory: 64Gi}
  - name: vision
    parent: research
    weight: 2
"""


def test_a_cluster_file_gives_pools_and_queues() -> None:
    cluster = parse_cluster(FILE, "c.yaml")
    h100, spot = cluster.pools
    assert [(n.name, dict(n.labels), n.pool) for n in h100.nodes] == [
        ("h100-0", {"rack": "h100-rack-0"}, "h100"),
        ("h100-1", {"rack": "h100-rack-0"}, "h100"),
        ("h100-2", {"rack": "h100-rack-1"}, "h100"),
    ]
    assert h100.nodes[0].price_usd_per_h == 32.5
    assert (h100.nodes[0].cpu_milli, len(h100.nodes[0].gpus)) == (96_000, 8)
    assert (spot.is_spot, spot.launch_s, spot.most, spot.node_w) == (True, 180, 4, 400)
    assert spot.changes == (PoolChange(at_s=7200, count=2),)
    assert spot.shortages == (Shortage(from_s=3600, until_s=9000),)
    research, vision = cluster.queues
    assert dict(research.guaranteed) == {
        "gpu_milli": 8000,
        "gpu_milli:H100": 4000,
        "memory_mib": 65536,
    }
    assert (vision.parent, vision.weight) == ("research", 2)


def test_a_run_on_it_waits_for_the_shortage_to_pass() -> None:
    cluster = parse_cluster(FILE, "c.yaml")
    jobs = [
        trace_job(f"job-{i}", at_s=1.0, tasks=1, gpus=4, work_s=8000, spec={"queue": "vision"})
        for i in range(8)
    ]
    run = run_of(jobs, cluster=cluster)
    # Six fit on the H100 nodes, one on the spot node; the new one comes 9,180 s after the
    # start, when the last job has long found a place that another one left.
    assert summary(run)[-1] == "job-7 8001-16001 succeeded"
    assert [pool.n_launches for pool in run.pools] == [0, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count: 3", "cuont: 3", "c.yaml:3: pools[0].cuont: is not a known field; did you"),
        ("gpu_type: A100", "", "c.yaml:11: pools[1]: gpu_type must be given"),
        ("most: 4", "most: 0", "c.yaml:11: pools[1]: most must be at least count, 1"),
        ("launch_s: 3m", "launch_s: 3 parsecs", "c.yaml:16: pools[1].launch_s: '3 parsecs'"),
        ("gpus: 8, ", "tpus: 8, ", "queues[0].guaranteed: knows no 'tpus'"),
        ("until_s: 9000", "until_s: 90", "shortages[0]: until_s must be after from_s"),
        ("name: spot", "name: h100", "pools: h100 is declared twice"),
        ("spot: true", "pool: x", "pool must not be given"),
        ("cpus: 96", "cpus: .inf", "c.yaml:7: pools[0].cpus: should be "),
        ("node_w: 400", "node_w: .inf", "pools[1].node_w: should be a finite number"),
    ],
)
def test_a_mistake_is_told_with_its_line(old: str, new: str, message: str) -> None:
    with pytest.raises(InvalidSource) as caught:
        parse_cluster(FILE.replace(old, new), "c.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_queues_may_stand_before_their_parents() -> None:
    pools = "pools: [{name: a}]\n"
    text = "queues: [{name: c, parent: b}, {name: x}, {name: b, parent: a}, {name: a}]\n"

    cluster = parse_cluster(pools + text, "c.yaml")

    assert [queue.name for queue in cluster.queues] == ["x", "a", "b", "c"]
    circle = "queues: [{name: a, parent: b}, {name: b, parent: a}]\n"
    assert len(parse_cluster(pools + circle, "c.yaml").queues) == 2
