"""The command line against a daemon of cardboard: what is asked and printed, how it ends."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml
from cli_testing import NOW_S, FakeCluster, fake_cluster, job, lepton
from daemon_testing import LEPTON, free_port

from scheduler.cli.connection import command_error, is_loopback, server_address
from scheduler.cli.main import SECTIONS, VERBS
from scheduler.cli.settings import Settings
from scheduler.client import ClientError
from scheduler.wire import cluster_pb2 as pb


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as cluster:
        yield cluster


def ended(phase: int, **fields: object) -> pb.Job:
    return job("17", phase=phase, ended_at_s=NOW_S + 60, first_started_at_s=NOW_S, **fields)


# What is printed


def test_jobs_are_a_table_of_those_that_have_not_ended(cluster: FakeCluster):
    cluster.jobs["17"] = job(
        "17",
        phase=pb.JOB_PHASE_RUNNING,
        ran_s=3720,
        waited_s=65,
        first_started_at_s=NOW_S,
        tasks=[pb.Task(node="node-0", phase=pb.TASK_PHASE_RUNNING)],
    )
    cluster.jobs["18"] = job("18", name="eval", reason="0 of 12 nodes: 12 lack 4 free GPUs")

    result = lepton("jobs", cluster=cluster)

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "ID  NAME   QUEUE    PRIO  PHASE    TASKS  GPUS  WAITED    RAN  WHERE (WHY)",
        "17  train  default     0  running      1     0   1m05s  1h02m  node-0",
        "18  eval   default     0  pending      1     0      0s      -"
        "  (0 of 12 nodes: 12 lack 4 free GPUs)",
    ]
    (request,) = cluster.of(pb.ListJobsRequest)
    assert request.filter == "phase=live"


def test_jobs_show_how_much_they_have_of_what_they_wish(cluster: FakeCluster):
    elastic = job("17", phase=pb.JOB_PHASE_RUNNING)
    del elastic.spec.roles[:]
    for name, gpus in (("worker", 2), ("ps", 0)):
        role = elastic.spec.roles.add(name=name, count=1, max_count=8)
        role.shape.gpus = gpus
    phases = [pb.TASK_PHASE_RUNNING] * 2 + [pb.TASK_PHASE_BOUND, pb.TASK_PHASE_STOPPING]
    for phase in phases:
        elastic.tasks.add(role="worker", node="node-0", phase=phase)
    cluster.jobs["17"] = elastic

    row = lepton("jobs", cluster=cluster).stdout.splitlines()[1].split()

    assert row[5:7] == ["3/2", "6/2"]


def test_filters_become_conditions_of_the_daemon(cluster: FakeCluster):
    lepton(
        *("jobs", "-q", "vision", "--phase", "running,pending", "--mine"),
        *("--filter", "priority>=10", "--sort", "-submitted,name"),
        cluster=cluster,
    )

    (request,) = cluster.of(pb.ListJobsRequest)
    assert request.filter == (
        "phase!=stopping AND phase!=suspended AND phase!=succeeded AND phase!=failed AND "
        'phase!=cancelled AND phase!=timed_out AND queue="vision" AND priority>=10 AND '
        'submitter="ada"'
    )
    assert request.order_by == "submitted_at_s desc, name"


def test_pages_are_joined_up_to_the_limit(cluster: FakeCluster):
    cluster.page_size = 2
    for number in range(7):
        cluster.jobs[str(number)] = job(str(number))

    some = lepton("jobs", "--all", "-n", "5", cluster=cluster)
    rest = lepton("jobs", "--all", "--page", "5", "-o", "json", cluster=cluster)
    every = lepton("jobs", "--all", "-n", "0", "-o", "json", cluster=cluster)

    assert len(some.stdout.splitlines()) == 6
    assert "5 of 7 jobs" in some.stderr
    assert "--page 5" in some.stderr
    assert [each["id"] for each in json.loads(rest.stdout)["jobs"]] == ["5", "6"]
    assert len(json.loads(every.stdout)["jobs"]) == 7


def test_json_and_yaml_say_the_same_with_the_names_of_the_wire(cluster: FakeCluster):
    cluster.jobs["17"] = ended(pb.JOB_PHASE_TIMED_OUT, exit_code=3, spec_labels={"a": "b"})

    as_json = json.loads(lepton("job", "17", "-o", "json", cluster=cluster).stdout)
    as_yaml = yaml.safe_load(lepton("-o", "yaml", "job", "17", cluster=cluster).stdout)

    assert as_json == as_yaml
    assert as_json["phase"] == "timed_out"
    assert as_json["spec"]["labels"] == {"a": "b"}
    assert as_json["spec"]["roles"][0]["shape"]["cpu_milli"] == 1000
    assert as_json["exit_code"] == 3
    assert as_json["revision"] == 1
    assert as_json["spec"]["grace_s"] is None


def test_a_job_is_a_page_of_what_it_asked_for_and_its_tasks(cluster: FakeCluster):
    cluster.jobs["17"] = job(
        "17",
        phase=pb.JOB_PHASE_FAILED,
        attempt=2,
        preemptions=1,
        failures=2,
        reason="worker-0 exited with 3",
        ended_at_s=NOW_S + 60,
        exit_code=3,
        gpu_s=7200,
        lost_gpu_s=600,
        tasks=[
            pb.Task(
                role="worker",
                attempt=2,
                phase=pb.TASK_PHASE_FAILED,
                node="node-0",
                devices=[2, 3],
                signal=9,
            )
        ],
    )

    text = lepton("job", "17", cluster=cluster).stdout

    for part in (
        "failed (attempt 2, preempted once, failed 2 times)",
        "worker-0 exited with 3",
        "2h00m, 10m00s of it lost",
        "python train.py",
        "worker-0@2",
        "2,3",
        "KILL",
    ):
        assert part in text


def test_a_name_means_the_newest_job_that_has_it(cluster: FakeCluster):
    cluster.jobs["20"] = job("20", name="other")
    cluster.jobs["18"] = job("18", name="train", ended_at_s=NOW_S)
    cluster.jobs["17"] = job("17", name="train")

    assert (
        json.loads(lepton("job", "train", "-o", "json", cluster=cluster).stdout)["id"] == "17"
    )


def test_an_ambiguous_name_is_not_guessed_when_it_would_change_something(cluster: FakeCluster):
    cluster.jobs["17"] = job("17")
    cluster.jobs["18"] = job("18")

    result = lepton("cancel", "train", cluster=cluster)

    assert result.exit_code == 1
    assert "2 live jobs are named train: 17, 18" in result.stderr
    assert not cluster.of(pb.CancelJobRequest)


def test_an_array_shows_its_elements(cluster: FakeCluster):
    cluster.jobs["5_0"] = job("5_0", array_id="5")
    cluster.jobs["5_1"] = job("5_1", array_id="5")

    result = lepton("job", "5", cluster=cluster)

    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ID", "5_0", "5_1"]


def test_elements_that_wait_alike_share_a_line(cluster: FakeCluster):
    for index in (0, 1, 2, 5):
        cluster.jobs[f"5_{index}"] = job(
            f"5_{index}", array_id="5", array_index=index, reason="no free GPU"
        )
    cluster.jobs["5_6"] = job(
        "5_6", array_id="5", array_index=6, phase=pb.JOB_PHASE_RUNNING, first_started_at_s=1
    )

    shared = lepton("jobs", cluster=cluster).stdout.splitlines()
    each = lepton("jobs", "--each", cluster=cluster).stdout.splitlines()

    assert [line.split()[0] for line in shared] == ["ID", "5_[0-2,5]", "5_6"]
    assert [line.split()[0] for line in each] == ["ID", "5_0", "5_1", "5_2", "5_5", "5_6"]


def test_what_others_wrote_does_not_steer_the_terminal(cluster: FakeCluster):
    cluster.jobs["17"] = job("17", reason="\x1b[2Jgone\nfor good")
    cluster.jobs["17"].spec.roles[0].launch.command[:] = ["sh", "-c", "a\n\x1b]0;b\x07"]

    shown = [
        lepton(*words, cluster=cluster).stdout
        for words in (("jobs",), ("job", "17"), ("top", "--once"))
    ]

    assert not any("\x1b" in text or "\x07" in text for text in shown)
    assert "\\x1b[2Jgone" in shown[1]


def test_nodes_say_what_they_have_free(cluster: FakeCluster):
    gpus = [pb.Gpu(index=i, free_milli=500 * i, is_healthy=True, uuid=f"G{i}") for i in (0, 1)]
    cluster.nodes = [
        pb.Node(
            name="gpu-0",
            is_up=True,
            cpu_milli=8000,
            cpu_milli_free=7500,
            memory_mib=8192,
            memory_mib_free=512,
            gpu_type="A100",
            gpus=gpus,
            n_tasks=2,
        ),
        pb.Node(name="cpu-0", is_up=False, reason="no word for 60 s"),
        pb.Node(name="cpu-1", is_up=True, is_cordoned=True, is_draining=True, n_tasks=1),
    ]

    lines = lepton("nodes", cluster=cluster).stdout.splitlines()

    assert lines[1].split() == [
        "gpu-0",
        "ready",
        "A100",
        "0.5/2",
        "7.5/8",
        "512Mi/8Gi",
        "2",
        "-",
    ]
    assert lines[2].split()[1] == "down"
    assert "no word for 60 s" in lines[2]
    assert lines[3].split()[1] == "draining"
    page = lepton("node", "gpu-0", cluster=cluster).stdout
    assert "7.5 of 8 free" in page
    assert "G1" in page
    wrong = lepton("node", "gpu-1", cluster=cluster)
    assert (wrong.exit_code, "Did you mean gpu-0?" in wrong.stderr) == (1, True)


def test_a_queue_keeps_what_is_not_named(cluster: FakeCluster):
    cluster.queues["vision"] = pb.Queue(
        name="vision", submitters=["ada"], admins=["bob"], is_open=True, is_started=True
    )

    assert lepton("queue", "put", "vision", "--stopped", cluster=cluster).exit_code == 0

    assert cluster.queues["vision"] == pb.Queue(
        name="vision", submitters=["ada"], admins=["bob"], is_open=True, is_started=False
    )
    assert "stopped" in lepton("queues", cluster=cluster).stdout


LISTS = {
    "jobs": ("jobs", "--all"),
    "job": ("job", "17"),
    "nodes": ("nodes",),
    "node": ("node", "node-0"),
    "queues": ("queues",),
    "info": ("info",),
    "explain": ("explain", "17"),
    "top": ("top", "--once"),
    "submit": ("submit", "--", "true"),
    "dry run": ("submit", "--dry-run", "--", "true"),
    "cancel": ("cancel", "17"),
    "signal": ("signal", "17", "USR1"),
    "cordon": ("cordon", "node-0"),
    "queue put": ("queue", "put", "q"),
    "queue delete": ("queue", "delete", "q"),
    "wait": ("wait", "17"),
    "logs": ("logs", "17"),
}


@pytest.mark.parametrize("words", LISTS.values(), ids=LISTS.keys())
def test_every_result_can_be_read_by_a_program(cluster: FakeCluster, words: tuple[str, ...]):
    cluster.jobs["17"] = ended(pb.JOB_PHASE_SUCCEEDED)
    cluster.nodes = [pb.Node(name="node-0", is_up=True)]
    cluster.chunks = [pb.LogChunk(data=b"hello\n", role="worker", attempt=1)]

    at_the_end = lepton(*words[:1], "-o", "json", *words[1:], cluster=cluster)
    if words[0] == "queue":
        at_the_end = lepton(words[0], *words[1:2], "-o", "json", *words[2:], cluster=cluster)
    at_the_start = lepton("-o", "yaml", *words, cluster=cluster)

    assert at_the_end.exit_code == at_the_start.exit_code == 0, at_the_end.output
    assert isinstance(json.loads(at_the_end.stdout), dict)
    assert isinstance(yaml.safe_load(at_the_start.stdout), dict)


# What is asked


def test_a_command_becomes_a_job(cluster: FakeCluster, tmp_path: Path):
    result = lepton(
        *("submit", "--gpus", "2", "--gpu-type", "A100,H100", "--gpu-memory", "40Gi"),
        *("--cpus", "4", "--memory", "16Gi", "--tasks", "3", "--queue", "vision"),
        *("--priority", "5", "--time", "1:30:00", "--after", "ok:17,any:18", "--array", "10"),
        *("--name", "resnet", "--env", "SEED=1", "--env", "HOME", "--label", "team=nlp"),
        *("--retries", "2", "--not-preemptible", "--hold", "-C", str(tmp_path)),
        *("--", "python", "train.py", "--", "--gpus", "9"),
        cluster=cluster,
        HOME="/home/ada",
    )

    assert result.stdout == "Submitted array 101 of 10 jobs (resnet).\n"
    (request,) = cluster.of(pb.SubmitJobRequest)
    assert request.request_id
    assert request.spec == pb.JobSpec(
        name="resnet",
        queue="vision",
        priority=5,
        time_limit_s=5400,
        array_size=10,
        max_retries=2,
        preemptible=False,
        suspended=True,
        labels={"team": "nlp"},
        dependencies=[
            pb.Dependency(on="17", kind=pb.DEPENDENCY_KIND_AFTER_OK),
            pb.Dependency(on="18", kind=pb.DEPENDENCY_KIND_AFTER_ANY),
        ],
        roles=[
            pb.Role(
                name="worker",
                count=3,
                launch=pb.Launch(
                    command=["python", "train.py", "--", "--gpus", "9"],
                    env={"SEED": "1", "HOME": "/home/ada"},
                    working_dir=str(tmp_path),
                ),
                shape=pb.Shape(
                    cpu_milli=4000,
                    memory_mib=16384,
                    gpus=2,
                    gpu_types=["A100", "H100"],
                    gpu_memory_mib=40960,
                ),
            )
        ],
    )


def test_a_command_runs_here_and_is_named_after_its_script(cluster: FakeCluster):
    lepton("submit", "--", "python3", "-u", "src/train.py", "--x", cluster=cluster)
    lepton("submit", "--gpu-fraction", "0.25", "--", "/bin/sleep", "5", cluster=cluster)

    train, sleep = (request.spec for request in cluster.of(pb.SubmitJobRequest))
    assert (train.name, sleep.name) == ("train.py", "sleep")
    assert train.roles[0].launch.working_dir == str(Path.cwd())
    assert (sleep.roles[0].shape.gpus, sleep.roles[0].shape.gpu_milli) == (0, 250)


def test_jobs_of_a_file_are_submitted_with_the_ids_of_those_before(
    cluster: FakeCluster, tmp_path: Path
):
    path = tmp_path / "chain.yaml"
    path.write_text("{name: train, command: x, after: clean}\n---\n{name: clean, command: y}\n")

    result = lepton("submit", "--parsable", "--queue", "batch", str(path), cluster=cluster)

    clean, train = (request.spec for request in cluster.of(pb.SubmitJobRequest))
    assert result.stdout == "101\n102\n"
    assert (clean.name, train.name) == ("clean", "train")
    assert [dependency.on for dependency in train.dependencies] == ["101"]
    assert {clean.queue, train.queue} == {"batch"}


def test_what_was_submitted_is_told_although_the_rest_was_refused(
    cluster: FakeCluster, tmp_path: Path
):
    path = tmp_path / "two.yaml"
    path.write_text("{name: a, command: x}\n---\n{name: b, command: y}\n")
    cluster.submits_allowed = 1

    result = lepton("submit", "--parsable", str(path), cluster=cluster)

    assert (result.exit_code, result.stdout) == (1, "101\n")
    assert "Not submitted: b." in result.stderr
    assert "no more" in result.stderr


def test_a_job_may_come_from_stdin(cluster: FakeCluster):
    assert lepton("submit", "-", cluster=cluster, stdin="command: x\n").exit_code == 0
    assert cluster.of(pb.SubmitJobRequest)[0].spec.name == "stdin"


def test_updates_and_signals_say_only_what_was_said(cluster: FakeCluster):
    cluster.jobs["17"] = job("17")

    lepton("update", "17", "--time", "2h", "--replicas", "3", cluster=cluster)
    lepton("update", "17", "--priority", "-1", cluster=cluster)
    lepton("signal", "17", "usr1", "--role", "worker", "--index", "0", cluster=cluster)

    first, second = cluster.of(pb.UpdateJobRequest)
    assert first == pb.UpdateJobRequest(job_id="17", time_limit_s=7200, replicas={"worker": 3})
    assert second == pb.UpdateJobRequest(job_id="17", priority=-1)
    assert cluster.of(pb.SignalJobRequest) == [
        pb.SignalJobRequest(job_id="17", signal=10, role="worker", index=0)
    ]


def test_logs_are_printed_as_they_are_or_with_their_tasks(cluster: FakeCluster):
    cluster.jobs["17"] = job("17")
    cluster.chunks = [
        pb.LogChunk(data=b"one\ntw", role="worker", index=0, attempt=1),
        pb.LogChunk(data=b"uno\n", role="worker", index=1, attempt=1),
        pb.LogChunk(data=b"o\n\xff", role="worker", index=0, attempt=1),
    ]

    raw = lepton("logs", "17", "--stderr", "--tail", "5", cluster=cluster)
    named = lepton("logs", "17", "--all", cluster=cluster)

    assert raw.stdout_bytes == b"one\ntwuno\no\n\xff"
    assert named.stdout_bytes.splitlines() == [
        b"[worker-0] one",
        b"[worker-1] uno",
        b"[worker-0] two",
        b"[worker-0] \xff",
    ]
    assert cluster.of(pb.ReadLogsRequest)[0] == pb.ReadLogsRequest(
        job_id="17", tail_lines=5, stream=pb.ReadLogsRequest.STREAM_STDERR
    )


def test_followed_logs_go_on_over_attempts_until_the_job_has_ended(cluster: FakeCluster):
    cluster.jobs["17"] = job("17", reason="no free GPU", revision=1)
    cluster.events = [
        pb.JobEvent(
            revision=2, job=job("17", phase=pb.JOB_PHASE_RUNNING, attempt=1, revision=2)
        ),
        pb.JobEvent(revision=3, job=job("17", revision=3, attempt=1, reason="preempted")),
        pb.JobEvent(
            revision=4, job=job("17", phase=pb.JOB_PHASE_RUNNING, attempt=2, revision=4)
        ),
        pb.JobEvent(
            revision=5, job=job("17", phase=pb.JOB_PHASE_SUCCEEDED, attempt=2, revision=5)
        ),
    ]
    cluster.chunks = [pb.LogChunk(data=b"step\n", role="worker", attempt=1)]

    result = lepton("logs", "-f", "17", cluster=cluster)

    assert [request.attempt for request in cluster.of(pb.ReadLogsRequest)] == [1, 2]
    assert (result.exit_code, result.stdout) == (0, "step\nstep\n")
    assert "Job 17 is pending: no free GPU" in result.stderr


def test_watch_prints_each_change_until_the_named_jobs_have_ended(cluster: FakeCluster):
    cluster.jobs["17"] = job("17")
    end = ended(pb.JOB_PHASE_FAILED, exit_code=3, reason="worker-0 exited with 3")
    cluster.events = [
        pb.JobEvent(revision=2, is_bookmark=True),
        pb.JobEvent(revision=3, at_s=NOW_S, job=end),
    ]

    people = lepton("watch", "17", cluster=cluster)
    programs = lepton("watch", "17", "-o", "json", cluster=cluster)

    line = " ".join(people.stdout.splitlines()[1].split()[1:])
    assert line == "17 failed train exit 3 (worker-0 exited with 3)"
    assert [json.loads(line)["revision"] for line in programs.stdout.splitlines()] == [1, 3]


# How it ends

ENDS = {
    "well": (ended(pb.JOB_PHASE_SUCCEEDED, exit_code=0), 0),
    "with its code": (ended(pb.JOB_PHASE_FAILED, exit_code=7), 7),
    "killed": (
        ended(pb.JOB_PHASE_FAILED, tasks=[pb.Task(phase=pb.TASK_PHASE_FAILED, signal=9)]),
        137,
    ),
    "lost": (ended(pb.JOB_PHASE_FAILED, tasks=[pb.Task(phase=pb.TASK_PHASE_LOST)]), 1),
    "out of time": (ended(pb.JOB_PHASE_TIMED_OUT), 124),
    "cancelled": (ended(pb.JOB_PHASE_CANCELLED), 125),
}


@pytest.mark.parametrize(("end", "code"), ENDS.values(), ids=ENDS.keys())
def test_wait_exits_as_the_job_did(cluster: FakeCluster, end: pb.Job, code: int):
    cluster.jobs["17"] = job("17")
    end.revision = 2
    cluster.events = [pb.JobEvent(revision=2, job=end)]

    assert lepton("wait", "17", "--quiet", cluster=cluster).exit_code == code


def test_a_wait_may_be_bounded(cluster: FakeCluster):
    cluster.jobs["17"] = job("17")

    result = lepton("wait", "17", "--timeout", "100ms", cluster=cluster)

    assert result.exit_code == 124
    assert "goes on" in result.stderr


@pytest.mark.parametrize(("starts_now", "code"), [(True, 0), (False, 2)])
def test_a_dry_run_says_whether_it_would_start(
    cluster: FakeCluster, starts_now: bool, code: int
):
    cluster.dry_run = pb.DryRunResponse(
        starts_now=starts_now,
        tasks=[pb.Task(role="worker", node="node-3", devices=[1])],
        preempts_job_ids=["9"],
        explanation=pb.Explanation(cause="gpus", sentence="0 of 4 nodes", n_ahead=3),
    )

    result = lepton("submit", "--dry-run", "--", "true", cluster=cluster)

    assert result.exit_code == code
    expected = ["worker-0 on node-3, GPU 1", "preempting 9"]
    for part in expected if starts_now else ["would wait: 0 of 4 nodes", "3 waiting jobs"]:
        assert part in result.stdout
    assert not cluster.of(pb.SubmitJobRequest)


def test_explain_exits_with_2_for_what_cannot_be_placed(cluster: FakeCluster):
    cluster.explanation = pb.Explanation(
        job_id="17",
        phase=pb.JOB_PHASE_PENDING,
        cause="gpus",
        sentence="room for 1 of 4 tasks; 1 of 13 nodes: 11 lack 4 free GPUs, 1 are down",
        n_nodes=13,
        n_fit=1,
        counts=[
            pb.NodeCount(cause="gpus", n_nodes=11, detail="lack 4 free GPUs"),
            pb.NodeCount(cause="node_down", n_nodes=1, detail="are down"),
        ],
        history=["1700000000.250 submitted"],
    )

    result = lepton("explain", "17", cluster=cluster)

    assert result.exit_code == 2
    assert result.stdout.splitlines()[:3] == [
        "Job 17 is pending: room for 1 of 4 tasks; 1 of 13 nodes fit",
        "      11 lack 4 free GPUs",
        "       1 is down",
    ]
    assert "submitted" in result.stdout


WRONG = {
    "option": (("jobs", "--frob"), "--frob"),
    "verb": (("job s",), "No such command"),
    "near verb": (("canel", "17"), "Did you mean 'cancel'"),
    "phase": (("jobs", "--phase", "sleeping"), "there is no phase sleeping"),
    "time": (("submit", "--time", "90", "--", "x"), "90 of what? write 90s, 90m or 90h"),
    "gpus": (("submit", "--gpus", "1.5", "--", "x"), "whole GPUs, or a fraction of one"),
    "nothing": (("submit",), "lepton submit -- python train.py"),
    "no dashes": (("submit", "python", "x.py"), "put it after --"),
    "both": (("submit", "x.yaml", "--", "x"), "not both"),
    "after": (("submit", "--after", "soon:17", "--", "x"), "write JOB, ok:JOB"),
    "env": (("submit", "--env", "NOT_SET_HERE", "--", "x"), "is not set here"),
    "signal": (("signal", "17", "FROB"), "write USR1"),
    "update": (("update", "17"), "say what to change"),
    "missing": (("job",), "JOB"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command_line_ends_with_64_and_says_what_to_write(
    words: tuple[str, ...], message: str
):
    result = lepton(*words)

    assert (result.exit_code, result.stdout) == (64, "")
    assert message in result.stderr


def test_a_wrong_job_file_ends_with_64_and_the_line(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text("command: x\ngpuz: 2\n")

    submitted = lepton("submit", str(path))
    checked = lepton("config", "check", str(path))

    for result in (submitted, checked):
        assert result.exit_code == 64
        assert f"{path}:2: gpuz: is not a known field; did you mean gpus?" in result.stderr


def test_files_are_checked_without_a_daemon(tmp_path: Path):
    good, daemon = tmp_path / "job.yaml", tmp_path / "lepton.yaml"
    good.write_text("name: a\ncommand: x\n---\nname: b\ncommand: y\n")
    daemon.write_text("policy: fifo\nlisten: 127.0.0.1:9\n")

    result = lepton("config", "check", str(good), str(daemon))

    assert result.exit_code == 0, result.output
    assert f"{good}: 2 jobs: a, b" in result.stdout
    assert "a daemon on 127.0.0.1:9, policy fifo" in result.stdout
    for kind in ("job", "daemon"):
        assert "properties" in lepton("config", "schema", kind).stdout


def test_a_daemon_that_is_not_there_is_told_with_what_to_do(tmp_path: Path):
    port = free_port()

    result = lepton("jobs", server=f"127.0.0.1:{port}")

    assert result.exit_code == 1
    assert f"no daemon answers at 127.0.0.1:{port}" in result.stderr
    assert "lepton daemon" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "LEPTON_TOKEN"),
        (grpc.StatusCode.PERMISSION_DENIED, "lepton info"),
        (grpc.StatusCode.INVALID_ARGUMENT, "said so"),
        (grpc.StatusCode.INTERNAL, "said so"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "lepton info"),
    ],
)
def test_a_refusal_is_told_in_the_words_of_the_daemon(
    cluster: FakeCluster, code: grpc.StatusCode, hint: str
):
    cluster.refusal = (code, "the daemon said so")

    result = lepton("nodes", cluster=cluster)

    assert result.exit_code == 1
    assert hint in result.stderr
    if code is not grpc.StatusCode.DEADLINE_EXCEEDED:
        assert "the daemon said so" in result.stderr


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("UNKNOWN: Tls handshake failed: CERTIFICATE_VERIFY_FAILED", "nobody here vouches for"),
        ("UNKNOWN: Tls handshake failed: WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("UNAVAILABLE: ipv4:10.0.0.1:7070: Socket closed", "may want TLS: give --ca"),
        ("UNKNOWN: Connection refused", "no daemon answers at head:7070: UNKNOWN: Connection"),
    ],
)
def test_a_failed_connection_is_told_with_its_cause(cause: str, told: str):
    message = f"failed to connect to all addresses; last error: {cause}"

    error = command_error(ClientError(grpc.StatusCode.UNAVAILABLE, message), "head:7070")

    assert told in f"{error.message}\n{error.hint}"


def test_a_daemon_that_cannot_write_says_so_itself():
    refused = ClientError(
        grpc.StatusCode.UNAVAILABLE, "the journal cannot be written: disk full"
    )

    assert command_error(refused, "head:7070").message == refused.message


def test_one_refused_change_stops_no_other(cluster: FakeCluster):
    cluster.jobs["17"] = job("17")

    result = lepton("cancel", "99", "17", cluster=cluster)

    assert (result.exit_code, result.stdout) == (1, "Cancelled job 17.\n")
    assert "there is no job 99" in result.stderr


def test_a_server_may_be_named_without_its_port():
    named = ["gpu-head", "gpu-head:7171", "[::1]", "[::1]:7171", "127.0.0.1"]

    assert [server_address(Settings(server=name)) for name in named] == [
        "gpu-head:7070",
        "gpu-head:7171",
        "[::1]:7070",
        "[::1]:7171",
        "127.0.0.1:7070",
    ]


def test_the_daemon_of_this_user_is_found_by_what_it_wrote(
    cluster: FakeCluster, tmp_path: Path
):
    state = tmp_path / "lepton"
    state.mkdir()
    (state / "daemon.json").write_text(json.dumps({"address": cluster.address}))

    result = lepton("info", LEPTON_SERVER="", XDG_STATE_HOME=str(tmp_path))

    assert (result.exit_code, cluster.address in result.stdout) == (0, True)


def test_a_token_comes_from_a_file(cluster: FakeCluster, tmp_path: Path):
    missing = lepton("info", cluster=cluster, LEPTON_TOKEN_FILE=str(tmp_path / "none"))

    assert missing.exit_code == 64
    assert "LEPTON_TOKEN_FILE" in missing.stderr


@pytest.mark.parametrize("token", ["f\u00f6\u00f6", "two\nlines"])
def test_a_token_that_cannot_be_one_is_refused_before_it_is_sent(
    cluster: FakeCluster, token: str
):
    result = lepton("info", cluster=cluster, LEPTON_TOKEN=token)

    assert (result.exit_code, cluster.requests) == (64, [])
    assert "no token has" in result.stderr


@pytest.mark.parametrize(
    ("server", "is_here"),
    [
        ("localhost:1", True),
        ("127.8.0.1:1", True),
        ("[::1]:1", True),
        ("127.example.org:1", False),
        ("10.0.0.1:1", False),
    ],
)
def test_only_an_address_of_this_machine_is_spoken_to_in_the_clear(server, is_here):
    assert is_loopback(server) is is_here


@pytest.mark.parametrize(
    "words",
    [
        ("submit", "--priority", "9" * 20, "--", "true"),
        ("submit", "--memory", "9" * 20 + "G", "--", "true"),
        ("submit", "--tasks", "9" * 20, "--", "true"),
        ("submit", "--array", "9" * 20, "--", "true"),
        ("update", "17", "--priority", "9" * 20),
        ("update", "17", "--replicas", "9" * 20),
        ("logs", "17", "--tail", "9" * 20),
        ("signal", "17", "TERM", "--index", "9" * 20),
    ],
)
def test_numbers_that_the_wire_has_no_room_for_are_wrong_usage(
    cluster: FakeCluster, words: tuple[str, ...]
):
    cluster.jobs["17"] = job("17", phase=pb.JOB_PHASE_RUNNING)

    assert lepton(*words, cluster=cluster).exit_code == 64


# Help and completion


FAMILIES = {"queue": ("put", "delete"), "config": ("check", "schema", "token")}
HELPED = [
    *((verb.name,) for verb in VERBS.values() if not verb.is_local and verb.name != "queue"),
    *((family, verb) for family, verbs in FAMILIES.items() for verb in verbs),
]


@pytest.mark.parametrize("words", HELPED, ids=" ".join)
def test_every_verb_has_help_with_examples_that_fits_a_terminal(words: tuple[str, ...]):
    result = lepton(*words, "--help")

    assert result.exit_code == 0
    assert "Examples:\n" in result.stdout
    assert [line for line in result.stdout.splitlines() if len(line) > 80] == []


def test_the_help_names_every_verb_and_exit_code():
    text = lepton("--help").stdout

    for verbs in SECTIONS.values():
        for verb in verbs:
            assert verb.summary in text
    for code in ("0 ", "1 ", "2 ", "64 ", "124 ", "125 ", "128+N"):
        assert f"\n  {code}" in text


def test_shells_are_told_how_to_complete():
    for shell, mark in (("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete ")):
        result = lepton(_LEPTON_COMPLETE=f"source_{shell}")
        assert result.exit_code == 0
        assert mark in result.stdout


def completed(line: str, cluster: FakeCluster | None = None) -> list[str]:
    words = line.split(" ")
    result = lepton(
        cluster=cluster,
        _LEPTON_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
    )
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout.split()


def test_the_shell_completes_verbs_ids_queues_and_nodes(cluster: FakeCluster):
    cluster.jobs["17"] = job("17")
    cluster.jobs["23"] = job("23")
    cluster.nodes = [pb.Node(name="node-0", is_up=True)]

    assert completed("lepton su") == ["submit", "suspend"]
    assert completed("lepton cancel 1", cluster) == ["17"]
    assert completed("lepton jobs --queue d", cluster) == ["default"]
    assert completed("lepton drain no", cluster) == ["node-0"]
    assert completed("lepton jobs -o j", cluster) == ["json"]


def test_completion_without_a_daemon_is_silent():
    assert completed("lepton cancel 1") == []


def test_a_closed_pipe_is_no_error(cluster: FakeCluster):
    for number in range(2000):
        cluster.jobs[str(number)] = job(str(number), name="x" * 100)

    command = [*LEPTON, "--server", cluster.address, "jobs", "-n", "0"]
    shown = subprocess.run(
        ["bash", "-c", '"$@" | head -1; exit ${PIPESTATUS[0]}', "-", *command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )

    assert (shown.returncode, shown.stderr) == (141, "")
