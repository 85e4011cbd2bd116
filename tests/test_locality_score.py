"""Nearness to data as a score: the program's own figures, placements, and the edge."""

from pathlib import Path

import numpy as np
import pytest
from cli_testing import fake_cluster, lepton
from cluster_testing import Cluster, node_of
from rpc_testing import message_of
from scipy import sparse

from policies.data_locality import DataCluster, seconds_alone
from policies.locality import BYTES_PER_MIB, DataMap, Locality
from policies.registry import policy_named
from scheduler.cli.daemon import policy_for
from scheduler.config import parse_config
from scheduler.core.engine import Engine
from scheduler.core.errors import InvalidInput
from scheduler.core.events import NodeRegistered
from scheduler.core.model import JobSpec, Node, Shape
from scheduler.core.node_columns import NodeColumns
from scheduler.core.topology import HOST_LABEL
from scheduler.daemon.codec import spec_from
from scheduler.daemon.codec_views import spec_message
from scheduler.daemon.limits import Limits
from scheduler.job_file import parse_job_file
from scheduler.wire import cluster_pb2 as pb
from scheduler.yaml_source import InvalidSource

ZONE, RACK = "topology.kubernetes.io/zone", "topology.lepton.dev/rack"
MIB_PER_S = 100.0 * BYTES_PER_MIB
LIMITS = Limits()


def rack_nodes() -> list[Node]:
    """Return two nodes in each of two racks in each of two zones."""
    return [
        node_of(f"{zone}{rack}{i}", gpus=4, labels={ZONE: zone, RACK: rack})
        for zone in "ab"
        for rack in "01"
        for i in range(2)
    ]


def columns(nodes: list[Node]) -> NodeColumns:
    engine = Engine()
    for node in nodes:
        engine.observe(NodeRegistered(at_s=0.0, node=node))
    return engine.snapshot(0.0).nodes


def data_map(*places: str, zone_mib_per_s: float = 50.0) -> DataMap:
    """Return equal parts of the set `d` in racks written as `a0`."""
    return DataMap(
        places={"d": tuple(((ZONE, place[0]), (RACK, place[1])) for place in places)},
        bytes_per_s=((ZONE, zone_mib_per_s * BYTES_PER_MIB), (RACK, MIB_PER_S)),
    )


def seconds(data: DataMap, nodes: NodeColumns, mib: int) -> list[float]:
    shape = Shape(gpus=1, reads=(("d", mib),))
    return (-Locality(data=data)(nodes, shape, np.arange(len(nodes.nodes)))).tolist()


class TestSeconds:
    def test_what_is_outside_a_domain_comes_through_the_way_into_it(self) -> None:
        nodes = columns(rack_nodes())
        # 600 MiB in a0 and 600 in a1: a rack takes 100 MiB/s in, a zone 50.
        found = seconds(data_map("a0", "a1"), nodes, 1200)
        assert found == pytest.approx([6.0] * 4 + [24.0] * 4)
        assert seconds(data_map("a0"), nodes, 1200) == pytest.approx(
            [0.0] * 2 + [12.0] * 2 + [24.0] * 4
        )

    @pytest.mark.parametrize("places", [["a0"], ["a0", "a1"], ["a1", "b0", "b1"], ["a0", "b1"]])
    def test_it_is_what_the_program_says_of_reading_alone(self, places: list[str]) -> None:
        nodes, data = rack_nodes(), data_map(*places, zone_mib_per_s=70.0)
        racks, zones = ["a0", "a1", "b0", "b1"], ["a", "b"]
        links = [*racks, *zones]
        crosses = np.zeros((len(links), len(places) * len(nodes)))
        for p, place in enumerate(places):
            for n, node in enumerate(nodes):
                ends = place, node.name[:2]
                both = {*ends} if ends[0] != ends[1] else set()
                both |= {e[0] for e in ends} if ends[0][0] != ends[1][0] else set()
                for link in both:
                    crosses[links.index(link), p * len(nodes) + n] = 1.0
        program = DataCluster(
            block_bytes=np.full(len(places), 900 * BYTES_PER_MIB / len(places)),
            compute_bytes_per_s=np.full(len(nodes), 1e30),
            link_bytes_per_s=np.array([100.0] * 4 + [70.0] * 2) * BYTES_PER_MIB,
            crosses=sparse.csr_array(crosses),
        )
        expected = seconds_alone(program)
        assert seconds(data, columns(nodes), 900) == pytest.approx(expected, abs=1e-9)

    def test_data_on_a_node_itself(self) -> None:
        data = DataMap(
            places={"d": (((HOST_LABEL, "a01"),),)}, bytes_per_s=((HOST_LABEL, MIB_PER_S),)
        )
        found = seconds(data, columns(rack_nodes()), 300)
        assert found == pytest.approx([3.0, 0.0] + [3.0] * 6)

    def test_unknown_data_is_the_same_everywhere(self) -> None:
        shape = Shape(gpus=1, reads=(("other", 5),))
        nodes = columns(rack_nodes())
        assert not Locality(data=data_map("a0"))(nodes, shape, np.arange(8)).any()
        assert (Locality(data=data_map("a0")).points(nodes, shape, np.arange(8)) == 1.0).all()


class TestPlacement:
    def test_a_job_goes_to_its_data(self) -> None:
        score = {"locality": 1.0, "best-fit": 0.1}
        cluster = Cluster(policy_named("fifo", score=score, data=data_map("b1")))
        for node in rack_nodes():
            cluster.accept(NodeRegistered(at_s=cluster.now_s, node=node))
        cluster.submit("reads", gpus=4, inputs_mib=(("d", 60_000),))
        cluster.submit("does-not", gpus=4)
        nodes = cluster.cycle().nodes
        assert nodes["reads"][0].startswith("b1")
        assert nodes["does-not"] == ["a00"]
        cluster.validate()


CONFIG = """
score: {locality: 1.0, best-fit: 0.2}
data:
  gbit_per_s: {rack: 100, zone: 10}
  sets:
    imagenet:
    - {rack: r1, zone: a}
    - {zone: b}
"""


class TestEdge:
    def test_the_configuration_says_where_data_lies(self) -> None:
        policy = policy_for(parse_config(CONFIG, "lepton.yaml", folder=Path()))
        (locality,) = [p for _, p in policy.score.parts if isinstance(p, Locality)]
        assert locality.data == DataMap(
            places={"imagenet": (((ZONE, "a"), (RACK, "r1")), ((ZONE, "b"),))},
            bytes_per_s=((ZONE, 1.25e9), (RACK, 1.25e10)),
        )

    def test_a_level_that_there_is_not_is_told(self) -> None:
        with pytest.raises(InvalidSource, match="row is no level"):
            parse_config(CONFIG.replace("{zone: b}", "{row: b}"), "lepton.yaml", folder=Path())

    def test_inputs_survive_the_wire(self) -> None:
        spec = spec_from(message_of(inputs_mib={"d": 5, "c": 7}), LIMITS)
        assert spec.inputs_mib == (("c", 7), ("d", 5))
        assert spec_from(spec_message(spec), LIMITS) == spec
        for wrong in ({"": 1}, {"d": 0}, {"a b": 1}):
            with pytest.raises(InvalidInput) as refused:
                spec_from(message_of(inputs_mib=wrong), LIMITS)
            assert refused.value.field.startswith("inputs_mib")

    def test_a_job_file_and_options_say_them(self) -> None:
        (found,) = parse_job_file(
            "command: ./run\ninputs: {imagenet: 150Gi}\n", "job.yaml", folder=Path("/w")
        )
        assert dict(found.spec.inputs_mib) == {"imagenet": 153_600}
        with fake_cluster() as cluster:
            words = ("--input", "imagenet=150Gi", "--input", "tokens=2Gi")
            assert lepton("submit", *words, "--", "true", cluster=cluster).exit_code == 0
            (request,) = cluster.of(pb.SubmitJobRequest)
            assert dict(request.spec.inputs_mib) == {"imagenet": 153_600, "tokens": 2048}
            wrong = lepton("submit", "--input", "imagenet=big", "--", "true", cluster=cluster)
            assert wrong.exit_code == 64

    def test_old_specs_read_nothing(self) -> None:
        assert JobSpec(name="x", roles=()).inputs_mib == ()
