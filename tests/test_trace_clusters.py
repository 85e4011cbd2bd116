"""The machines of public traces as clusters, by small samples with their real headers."""

import json

import pytest

from simulator.traces import TraceError
from simulator.traces.clusters import is_known, read_cluster

KUBERNETES = {
    "apiVersion": "v1",
    "kind": "List",
    "items": [
        {
            "kind": "Node",
            "metadata": {
                "name": "gpu-1",
                "labels": {"nvidia.com/gpu.product": "L4", "nvidia.com/gpu.memory": "23034"},
            },
            "status": {
                "allocatable": {"cpu": "47500m", "memory": "193Gi", "nvidia.com/gpu": "4"}
            },
        },
        {
            "kind": "Node",
            "metadata": {"name": "cpu-1"},
            "status": {"allocatable": {"cpu": "8", "memory": "33554432Ki"}},
        },
    ],
}


def read(folder, name, text):
    (folder / name).write_text(text)
    return read_cluster(folder / name)


def shown(cluster):
    return [
        (n.name, n.gpu_type, len(n.gpus), n.cpu_milli, n.memory_mib) for n in cluster.nodes()
    ]


def test_pai_machines_have_no_header(tmp_path):
    text = "a,CPU,96,512,0\nb,T4,96,512,2\nc,T4,64,256,2\n"
    cluster = read(tmp_path, "pai_machine_spec.csv", text)
    assert shown(cluster) == [
        ("a", "", 0, 96_000, 524_288),
        ("b", "T4", 2, 96_000, 524_288),
        ("c", "T4", 2, 64_000, 262_144),
    ]
    assert [pool.name for pool in cluster.pools] == ["cpu", "T4"]


def test_philly_machines_are_typed_by_their_memory(tmp_path):
    text = "machineId,number of GPUs,single GPU mem\nm31,8, 24GB\nm32,2, 12GB\n"
    cluster = read(tmp_path, "cluster_machine_list", text)
    assert shown(cluster)[0] == ("m31", "24GB", 8, 64_000, 524_288)
    assert cluster.nodes()[1].gpus[0].memory_mib == 12_288


def test_virtual_clusters_become_queues_with_quotas(tmp_path):
    philly = read(tmp_path, "vc.csv", "vc,node num\n6214e9,3\n7f04ca,1\n")
    assert len(philly.nodes()) == 4
    assert [(q.name, q.guaranteed) for q in philly.queues] == [
        ("6214e9", (("gpu_milli", 24_000),)),
        ("7f04ca", (("gpu_milli", 8_000),)),
    ]
    helios = read(
        tmp_path,
        "cluster_gpu_number.csv",
        "date,vchbv,vc4om,vcVP5,total\n2020-04-01,112,0,0,112\n2020-04-02,16,0,12,28\n",
    )
    assert len(helios.nodes()) == 4
    assert [(q.name, q.limit) for q in helios.queues] == [
        ("vchbv", (("gpu_milli", 16_000),)),
        ("vcVP5", (("gpu_milli", 12_000),)),
    ]


def test_nodes_of_kubernetes(tmp_path):
    cluster = read(tmp_path, "nodes.json", json.dumps(KUBERNETES, indent=2))
    assert shown(cluster) == [
        ("gpu-1", "L4", 4, 47_500, 193 * 1024),
        ("cpu-1", "", 0, 8_000, 32_768),
    ]
    assert cluster.nodes()[0].gpus[0].memory_mib == 23_034


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("x.csv", "a,b\n", "no list of machines is known that begins with 'a,b'"),
        ("vc.csv", "vc,node num\n", "there are no nodes in it"),
        ("pai_machine_spec.csv", "a,T4,96,512,two\n", ":1: cap_gpu: 'two' is not a number"),
        ("m", "machineId,number of GPUs,single GPU mem\nm,8,much\n", "'much' is not an amount"),
        ("n.json", '{"apiVersion": "v1", "kind": "Node"}', ":1: not a node: 'metadata' is"),
    ],
)
def test_malformed_lists_are_refused(tmp_path, name, text, what):
    with pytest.raises(TraceError) as raised:
        read(tmp_path, name, text)
    assert what in str(raised.value)


def test_ours_is_not_taken_for_one_of_theirs(tmp_path):
    (tmp_path / "c.yaml").write_text("pools:\n  - {name: a, count: 1}\n")
    assert not is_known(tmp_path / "c.yaml")
