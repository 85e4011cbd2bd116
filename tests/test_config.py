"""The daemon's configuration file: what it declares, and how mistakes in it are told."""

from pathlib import Path

import pytest

from scheduler.config import DaemonConfig, load_config, parse_config
from scheduler.core.model import Taint, TaintEffect
from scheduler.yaml_source import InvalidSource, load_yaml_with_lines


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidSource) as caught:
        parse_config(text, "lepton.yaml", folder=Path("/etc/lepton"))
    return str(caught.value).splitlines()


def test_no_file_is_a_working_configuration():
    config = load_config(None)
    assert config.listen.startswith("127.0.0.1:")
    assert config.declared_nodes() == []


def test_an_empty_file_is_the_defaults():
    assert parse_config("# nothing\n", "x", folder=Path()) == DaemonConfig()


def test_every_mistake_is_told_with_its_line_field_and_rule():
    assert problems(
        """
listen: 127.0.0.1:x
cycel_s: 1
nodes:
  - name: a
    gpus: 2
  - name: b
    gpus: -1
    taints:
      - key: x
        effect: foo
"""
    ) == [
        "lepton.yaml:2: listen: must be HOST:PORT, not '127.0.0.1:x'",
        "lepton.yaml:3: cycel_s: is not a known field; did you mean cycle_s?",
        "lepton.yaml:5: nodes[0]: gpu_type must be given for a node with GPUs",
        "lepton.yaml:8: nodes[1].gpus: should be greater than or equal to 0, not -1",
        "lepton.yaml:11: nodes[1].taints[0].effect: should be 'no_schedule' or 'no_execute', "
        "not 'foo'",
    ]


def test_a_missing_field_is_told_at_what_lacks_it():
    assert problems("nodes:\n  - cpus: 1\n") == ["lepton.yaml:2: nodes[0].name: is required"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cycle_s: 1\ncycle_s: 2", "lepton.yaml:2: cycle_s: is given twice, first in line 1"),
        ("a: [1", "lepton.yaml:1: expected ',' or ']', but got '<stream end>'"),
        ("- 1", "lepton.yaml: must be a mapping of fields to values"),
        ("a: 1\n---\nb: 2", "lepton.yaml:2: but found another document"),
        ("a: " + "[" * 5000, "lepton.yaml: is nested too deeply"),
    ],
)
def test_what_is_no_sound_yaml_is_told(text: str, line: str):
    assert problems(text) == [line]


def test_code_in_yaml_is_not_run():
    assert "could not determine a constructor" in problems("a: !!python/object:os.system x")[0]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    with pytest.raises(InvalidSource, match=r"cannot be read: .*No such file"):
        load_config(tmp_path / "absent.yaml")


def test_relative_paths_start_at_the_file(tmp_path: Path):
    path = tmp_path / "lepton.yaml"
    path.write_text("folder: state\nsecurity: {token_file: ../tokens}\n")
    config = load_config(path)
    assert config.folder == tmp_path / "state"
    assert config.security.token_file == tmp_path / ".." / "tokens"


def test_alike_nodes_are_declared_once():
    config = parse_config(
        """
nodes:
  - name: gpu
    count: 2
    cpus: 1.5
    gpus: 2
    gpu_type: A100
    gpu_memory_mib: 40960
    labels: {zone: b, rack: "1"}
    taints: [{key: spot}]
  - {name: cpu}
""",
        "x",
        folder=Path(),
    )
    first, second, plain = config.declared_nodes()
    assert [first.name, second.name, plain.name] == ["gpu-0", "gpu-1", "cpu"]
    assert first.cpu_milli == 1500
    assert [gpu.uuid for gpu in second.gpus] == ["logical-gpu-1-0", "logical-gpu-1-1"]
    assert first.gpus[0].memory_mib == 40960
    assert first.labels == (("rack", "1"), ("zone", "b"))
    assert first.taints == (Taint(key="spot", effect=TaintEffect.NO_SCHEDULE),)
    assert plain.gpus == ()


def test_two_nodes_of_one_name_are_refused():
    assert problems("nodes:\n- {name: a-1}\n- {name: a, count: 2}\n") == [
        "lepton.yaml:1: nodes: a-1 is declared twice"
    ]


def test_scalars_are_those_of_yaml_1_2():
    data, lines = load_yaml_with_lines(
        "on: yes\ntime: 1:30\nsmall: 1e-3\nhex: 0x10\nday: 2026-11-21\nnone: ~\n", "x"
    )
    assert data == {
        "on": "yes",
        "time": "1:30",
        "small": 0.001,
        "hex": 16,
        "day": "2026-11-21",
        "none": None,
    }
    assert lines.of(("hex",)) == 4


def test_lines_are_found_through_merged_keys():
    data, lines = load_yaml_with_lines(
        "base: &base\n  a: 1\n  b: 2\nuse:\n  <<: *base\n  b: 3\n", "x"
    )
    assert data["use"] == {"a": 1, "b": 3}
    assert lines.of(("use", "a")) == 2
    assert lines.of(("use", "b")) == 6
    assert lines.of(("use", "absent")) == 4


def test_the_deployed_configuration_is_valid():
    path = Path(__file__).resolve().parent.parent / "deploy" / "lepton.yaml"
    assert load_config(path).folder.is_absolute()
