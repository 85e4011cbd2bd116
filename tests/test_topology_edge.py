"""Topology at the edge: the wire, job files, options and the configuration."""

from pathlib import Path

import pytest
from cli_testing import fake_cluster, lepton
from rpc_testing import message_of

from scheduler.config import parse_config
from scheduler.core.errors import InvalidInput
from scheduler.core.model import DEFAULT_LEVELS, Level
from scheduler.core.topology import check_levels
from scheduler.daemon.codec import spec_from
from scheduler.daemon.codec_views import spec_message
from scheduler.daemon.limits import Limits
from scheduler.job_file import parse_job_file
from scheduler.wire import cluster_pb2 as pb
from scheduler.yaml_source import InvalidSource

LIMITS = Limits()
ASKED = {
    "topology_required": "zone",
    "topology_preferred": "rack",
    "topology_balanced": True,
}


def fields_of(spec: object) -> dict[str, object]:
    return {name: getattr(spec, name) for name in ASKED}


def test_it_survives_the_wire() -> None:
    spec = spec_from(message_of(**ASKED), LIMITS)
    assert fields_of(spec) == ASKED
    assert spec_from(spec_message(spec), LIMITS) == spec


def test_balance_needs_a_level() -> None:
    with pytest.raises(InvalidInput) as refused:
        spec_from(message_of(topology_balanced=True), LIMITS)
    assert refused.value.field == "topology_balanced"


def test_a_level_that_there_is_not_is_refused_by_name() -> None:
    spec = spec_from(message_of(topology_preferred="row"), LIMITS)
    with pytest.raises(InvalidInput) as refused:
        check_levels(spec, DEFAULT_LEVELS)
    assert refused.value.field == "topology_preferred"
    assert "zone, block, rack, clique, host, nvlink" in refused.value.rule


def test_a_job_file_says_it() -> None:
    text = "command: ./run\ntopology_required: zone\ntopology_preferred: rack\n"
    (found,) = parse_job_file(text + "topology_balanced: true\n", "job.yaml", folder=Path("/w"))
    assert fields_of(found.spec) == ASKED


def test_options_of_submit_say_it() -> None:
    words = ("--topology-required", "zone", "--topology-preferred", "rack")
    with fake_cluster() as cluster:
        done = lepton("submit", *words, "--topology-balanced", "--", "true", cluster=cluster)
        assert done.exit_code == 0
        (request,) = cluster.of(pb.SubmitJobRequest)
    assert fields_of(request.spec) == ASKED


CONFIG = """
topology:
- {name: row, label: example.com/row}
- {name: rack, label: example.com/rack}
nodes:
- {name: n, gpus: 8, gpu_type: V100, nvlink: "0-3,4,5-7"}
"""


def test_the_configuration_names_levels_and_links() -> None:
    config = parse_config(CONFIG, "lepton.yaml", folder=Path())
    assert config.levels() == (
        Level(name="row", label="example.com/row"),
        Level(name="rack", label="example.com/rack"),
    )
    (node,) = config.declared_nodes()
    assert node.nvlink == ((0, 1, 2, 3), (4,), (5, 6, 7))


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("0-3,4,5-7", "0-3,3", "each once"),
        ("0-3,4,5-7", "0-8", "from 0 to 7"),
        ("0-3,4,5-7", "a", "ranges of linked GPUs"),
        ("name: row", "name: host", "is there always"),
        ("name: row", "name: rack", "rack is named twice"),
    ],
)
def test_mistakes_in_it_are_told(old: str, new: str, rule: str) -> None:
    with pytest.raises(InvalidSource, match=rule):
        parse_config(CONFIG.replace(old, new), "lepton.yaml", folder=Path())
