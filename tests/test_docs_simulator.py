"""docs/simulator.md is true: its figures, its options, its examples of goals."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_testing import lepton

from simulator.cluster_file import PoolConfig, QueueConfig, load_cluster
from simulator.figures import FIGURES
from simulator.prices import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "simulator.md").read_text()
OF_REPRODUCTIONS = {"--data", "--keep"}


def test_every_figure_is_described_as_the_catalogue_does():
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| ([^|]+) \| ([^|]+) \|$", TEXT, flags=re.MULTILINE)

    assert rows == [(f.name, f.unit, f.meaning) for f in FIGURES.values()]


@pytest.mark.parametrize("verb", ["simulate", "plan", "replay"])
def test_every_option_in_the_examples_exists(verb: str):
    helped = lepton(verb, "--help").stdout
    for file in ("docs/simulator.md", "docs/cli.md", "README.md", "Makefile"):
        text = (ROOT / file).read_text().replace("\\\n", " ")
        for command in re.findall(rf"lepton {verb} [^\n`]*", text):
            for option in re.findall(r"(?<=\s)--[a-z-]+", command):
                assert option in helped, command


def test_options_of_traces_exist():
    helped = lepton("simulate", "--help").stdout
    of_others = {"--pool", "--prices", "--goal", *OF_REPRODUCTIONS}
    for option in set(re.findall(r"`(--[a-z-]+)", TEXT)) - of_others:
        assert option in helped, option


def test_options_of_reproductions_exist():
    command = [sys.executable, "-m", "simulator.reproduction", "--help"]
    helped = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert all(option in TEXT and option in helped for option in OF_REPRODUCTIONS)


def test_fields_of_pools_and_columns_of_prices_exist():
    [table] = re.findall(r"\| field of a pool \|.*?\n\n", TEXT, flags=re.DOTALL)
    cells = [line.split("|")[1] for line in table.splitlines()[2:] if line]
    fields = re.findall(r"`([a-z_]+)`", "".join(cells))

    assert len(fields) > 15
    assert set(fields) <= set(PoolConfig.model_fields)
    assert f"`{','.join(COLUMNS)}`" in TEXT
    [queues] = re.findall(r"^`queues` have (.*?), as ", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`([a-z_]+)`", queues)) == set(QueueConfig.model_fields)


def test_the_example_cluster_can_be_read():
    cluster = load_cluster(ROOT / "examples" / "cluster.yaml")

    assert sum(len(node.gpus) for node in cluster.nodes()) == 64
    assert [queue.name for queue in cluster.queues] == ["research", "product"]
