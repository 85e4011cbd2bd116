import json
import textwrap
from pathlib import Path

import pytest

from scheduler.job_file import FileJob, job_file_schema, load_job_files, parse_job_file
from scheduler.quantities import (
    duration_text,
    memory_text,
    parse_cpu_milli,
    parse_duration_s,
    parse_gpus,
    parse_memory_mib,
)
from scheduler.wire import cluster_pb2 as pb
from scheduler.yaml_source import InvalidSource


def parsed(text: str, source: str = "job.yaml") -> list[FileJob]:
    return parse_job_file(textwrap.dedent(text), source, folder=Path("/work/project"))


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidSource) as raised:
        parsed(text)
    return str(raised.value).splitlines()


def test_a_job_with_one_role_needs_no_roles():
    (job,) = parsed("""\
        name: train
        command: python train.py --epochs 3
        tasks: 2
        gpus: 1
        gpu_types: [A100, H100]
        cpus: 1.5
        memory: 4Gi
        time_limit: 1:30:00
        env: {SEED: 7}
        working_dir: src
        priority: 10
        """)

    spec = job.spec
    assert (spec.name, spec.queue, spec.priority, spec.time_limit_s) == (
        "train",
        "default",
        10,
        5400.0,
    )
    (role,) = spec.roles
    assert (role.name, role.count) == ("worker", 2)
    assert list(role.launch.command) == ["sh", "-c", "python train.py --epochs 3"]
    assert dict(role.launch.env) == {"SEED": "7"}
    assert role.launch.working_dir == "/work/project/src"
    assert role.shape == pb.Shape(
        cpu_milli=1500, memory_mib=4096, gpus=1, gpu_types=["A100", "H100"]
    )


def test_what_is_not_said_is_left_to_the_daemon():
    (job,) = parsed("command: [python, -c, 'print(1)', 3]")

    assert job.spec.name == "job"  # after the file
    assert list(job.spec.roles[0].launch.command) == ["python", "-c", "print(1)", "3"]
    for field in ("preemptible", "grace_s", "backoff_s"):
        assert not job.spec.HasField(field)
    for field in ("count", "min_count", "max_count"):
        assert not job.spec.roles[0].HasField(field)
    assert not job.spec.roles[0].shape.HasField("cpu_milli")


def test_every_field_reaches_the_spec():
    (job,) = parsed("""\
        name: all
        kind: batch
        queue: vision
        priority: -3
        preemptible: false
        checkpoint_interval: 10m
        grace: 45s
        retries: 3
        backoff: 5s
        time_limit: 2h
        start_after: 2030-01-01T00:00:00+00:00
        after: [ok:17, "any:18", not_ok:19]
        array: 4
        suspended: true
        labels: {team: nlp}
        roles:
          - name: ps
            command: serve
            gpus: 0.25
            gpu_memory: 8Gi
            node_labels: {zone: a}
            tolerations: [{key: spot}, {key: dedicated, value: nlp}]
            image: repo/ps:1
          - name: worker
            command: work
            tasks: 4
            min_tasks: 2
            max_tasks: 8
        """)

    spec = job.spec
    ps, worker = spec.roles
    assert spec.kind == pb.JOB_KIND_BATCH
    assert (spec.preemptible, spec.grace_s, spec.max_retries, spec.backoff_s) == (
        False,
        45.0,
        3,
        5.0,
    )
    assert (spec.checkpoint_interval_s, spec.start_after_s) == (600.0, 1893456000.0)
    assert (spec.array_size, spec.suspended, dict(spec.labels)) == (4, True, {"team": "nlp"})
    assert [(d.on, d.kind) for d in spec.dependencies] == [
        ("17", pb.DEPENDENCY_KIND_AFTER_OK),
        ("18", pb.DEPENDENCY_KIND_AFTER_ANY),
        ("19", pb.DEPENDENCY_KIND_AFTER_NOT_OK),
    ]
    assert (ps.shape.gpus, ps.shape.gpu_milli, ps.shape.gpu_memory_mib) == (0, 250, 8192)
    assert [
        (t.key, t.value if t.HasField("value") else None) for t in ps.shape.tolerations
    ] == [
        ("spot", None),
        ("dedicated", "nlp"),
    ]
    assert ps.launch.image == "repo/ps:1"
    assert (worker.count, worker.min_count, worker.max_count) == (4, 2, 8)


def test_all_mistakes_are_told_at_once_with_their_lines():
    found = problems("""\
        name: train
        comand: python train.py
        gpus: 1.5
        time_limit: 90
        memory: lots
        roles:
          - name: worker
            gpuz: 2
            tasks: 0
        """)

    assert found == [
        "job.yaml:2: comand: is not a known field; did you mean command?",
        "job.yaml:3: gpus: 1.5 GPUs: a task takes whole GPUs, or a fraction of one",
        "job.yaml:4: time_limit: 90 of what? write 90s, 90m or 90h",
        "job.yaml:5: memory: 'lots' is not an amount of memory: write 512Mi or 4Gi",
        "job.yaml:8: roles[0].gpuz: is not a known field; did you mean gpus?",
        "job.yaml:9: roles[0].tasks: should be greater than or equal to 1, not 0",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: x", "job.yaml:1: needs a command, or roles that have one"),
        ("", "job.yaml: has no job in it"),
        ("- a\n- b", "job.yaml: must be a mapping of fields to values"),
        ("command: ''", "job.yaml:1: command: is empty"),
        (
            "command: x\nenv: {A: true}",
            "job.yaml:2: env: true must be a text: put it in quotes",
        ),
        (
            "command: x\ntasks: 2\nmin_tasks: 3",
            "job.yaml:3: min_tasks: is more than tasks (2)",
        ),
        (
            "command: x\ntasks: 2\nmax_tasks: 1",
            "job.yaml:3: max_tasks: is less than tasks (2)",
        ),
        (
            "gpus: 1\nroles: [{name: a, command: x}]",
            "job.yaml:1: gpus: belongs in a role, as this job has `roles`",
        ),
        ("roles: [{name: a}]", "job.yaml:1: roles[0].command: is required"),
        (
            "command: x\nafter: sometimes:17",
            "job.yaml:2: after: 'sometimes:17': write JOB, ok:JOB, any:JOB or not_ok:JOB",
        ),
        (
            "command: x\nafter: 17x",
            "job.yaml:2: after: 17x is not a job of this file, and is no job id",
        ),
        ("name: [", "job.yaml:1: expected the node content, but found '<stream end>'"),
    ],
)
def test_a_mistake_is_told_in_words(text: str, problem: str):
    assert problems(text) == [problem]


def test_jobs_of_a_file_come_in_the_order_of_their_dependencies():
    jobs = parsed("""\
        # the last step first
        name: evaluate
        command: eval
        after: [train, any:clean, 12]
        ---
        name: train
        command: train
        after: clean
        ---
        name: clean
        command: clean
        """)

    assert [(job.spec.name, job.line) for job in jobs] == [
        ("clean", 10),
        ("train", 6),
        ("evaluate", 2),
    ]
    evaluate = jobs[2]
    assert [(after.on, after.kind) for after in evaluate.after_names] == [
        ("train", "ok"),
        ("clean", "any"),
    ]
    assert [dependency.on for dependency in evaluate.spec.dependencies] == ["12"]


def test_jobs_may_stand_in_a_list():
    jobs = parsed("""\
        jobs:
          - {name: a, command: x}
          - {name: b, command: y, after: a}
        """)

    assert [job.spec.name for job in jobs] == ["a", "b"]


def test_a_ring_of_dependencies_is_refused():
    (problem,) = problems("""\
        {name: a, command: x, after: b}
        ---
        {name: b, command: y, after: a}
        """)

    assert problem.startswith("job.yaml:1: after: never starts: ")


def test_names_in_a_file_differ_and_lead_somewhere():
    assert problems("""\
        name: train
        command: x
        ---
        name: train
        command: y
        ---
        command: z
        after: trian
        """) == [
        "job.yaml:4: name: train is taken by another job of this file",
        "job.yaml:7: name: is required where a file has several jobs",
        "job.yaml:8: after: trian is not a job of this file; did you mean train?",
    ]


def test_one_document_in_error_does_not_make_others_look_wrong():
    assert problems("""\
        {name: a, command: x, after: b}
        ---
        {name: b, comand: y}
        """) == ["job.yaml:3: comand: is not a known field; did you mean command?"]


def test_a_file_is_read_from_its_own_folder(tmp_path: Path):
    path = tmp_path / "sub" / "digits.yaml"
    path.parent.mkdir()
    path.write_text("command: x\nworking_dir: ..\n")

    (job,) = load_job_files(path)

    assert job.spec.name == "digits"
    assert job.spec.roles[0].launch.working_dir == str(tmp_path)


def test_the_schema_names_every_field_and_is_json():
    schema = json.loads(json.dumps(job_file_schema()))

    fields = schema["$defs"]["JobEntry"]["properties"]
    assert {"command", "gpus", "time_limit", "after", "roles"} <= fields.keys()
    assert schema["$defs"]["JobEntry"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90m", 5400),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("1:30:00", 5400),
        ("30:00", 1800),
        ("2-12:00", 216000),
        ("1-0:0:5", 86405),
        ("7d", 604800),
        ("0", 0),
        ("250ms", 0.25),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float):
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "90", "soon", "1:99", "-5m", "5 parsecs", "m", "1h30"])
def test_other_texts_are_no_durations(text: str):
    with pytest.raises(ValueError, match="write"):
        parse_duration_s(text)


def test_amounts_are_read_as_people_write_them():
    assert [parse_memory_mib(t) for t in ("512Mi", "4Gi", "4GiB", "1.5Gi", "1G", "0")] == [
        512,
        4096,
        4096,
        1536,
        954,
        0,
    ]
    assert [parse_cpu_milli(t) for t in ("2", 0.5, "500m")] == [2000, 500, 500]
    assert [parse_gpus(t) for t in (2, "0.5", 0)] == [(2, 0), (0, 500), (0, 0)]


@pytest.mark.parametrize("text", ["512", "4 gigs", "", "-1Gi"])
def test_memory_needs_a_unit(text: str):
    with pytest.raises(ValueError, match="write"):
        parse_memory_mib(text)


def test_amounts_are_shown_as_people_read_them():
    assert [duration_text(s) for s in (0, 59.9, 125, 3720, 273600)] == [
        "0s",
        "59s",
        "2m05s",
        "1h02m",
        "3d04h",
    ]
    assert [memory_text(mib) for mib in (0, 512, 4096, 1536)] == [
        "0Mi",
        "512Mi",
        "4Gi",
        "1.5Gi",
    ]


def test_the_job_file_in_the_documentation_is_one():
    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    example = text.partition("```yaml\n")[2].partition("```")[0]

    assert [job.spec.name for job in parsed(example)] == ["prepare", "train"]


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_memory_mib, "99999999999999999999G"),
        (parse_cpu_milli, "9" * 400),
        (parse_gpus, "9" * 400),
        (parse_duration_s, "9" * 400 + "s"),
        (parse_duration_s, "9" * 400 + ":00"),
    ],
)
def test_amounts_beyond_all_bounds_are_refused_in_a_short_sentence(parse, text):
    with pytest.raises(ValueError, match=r"more than there is|longer than time") as raised:
        parse(text)
    assert len(str(raised.value)) < 100


@pytest.mark.parametrize(
    "field", ["tasks", "min_tasks", "priority", "retries", "memory", "cpus"]
)
def test_numbers_that_the_wire_has_no_room_for_are_told_with_their_line(field):
    unit = "Gi" if field == "memory" else ""
    (problem,) = problems(f"name: a\ncommand: b\n{field}: {10**20}{unit}\n")
    assert problem.startswith(f"job.yaml:3: {field}: ")


def test_a_character_that_no_yaml_may_hold_is_told_with_its_line():
    assert problems("name: a\ncommand: b\x00c\n") == [
        "job.yaml:2: must be text: there is a character '\\x00' in it"
    ]
