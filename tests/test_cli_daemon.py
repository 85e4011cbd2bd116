"""The command line with a real daemon: jobs that run, end, are followed and outlive things."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cli_testing
import pytest
import yaml
from daemon_testing import LEPTON, DaemonProcess, prepare_daemon, running_daemon, wait_until
from security_testing import Authority
from typer.testing import Result

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    nodes = [
        {"name": "gpu", "count": 2, "cpus": 8, "memory_mib": 8192, "gpus": 2, "gpu_type": "T4"}
    ]
    with running_daemon(tmp_path_factory.mktemp("daemon"), nodes=nodes) as daemon:
        yield daemon


def lepton(daemon: DaemonProcess, *words: str) -> Result:
    return cli_testing.lepton(*words, server=daemon.address)


def lepton_started(daemon: DaemonProcess, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LEPTON, "--server", daemon.address, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def phase(daemon: DaemonProcess, job_id: str) -> str:
    return json.loads(lepton(daemon, "job", job_id, "-o", "json").stdout)["phase"]


def submitted(daemon: DaemonProcess, *words: str) -> str:
    result = lepton(daemon, "submit", "--parsable", *words)
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("options", "script", "code"),
    [
        ((), "true", 0),
        ((), "exit 7", 7),
        ((), "kill -9 $$", 137),
        (("--time", "300ms"), "sleep 60", 124),
    ],
    ids=["well", "failed", "killed", "out of time"],
)
def test_submit_and_wait_exits_as_the_job_did(
    daemon: DaemonProcess, options: tuple[str, ...], script: str, code: int
):
    result = lepton(daemon, "submit", "--wait", *options, "--", "sh", "-c", script)

    assert result.exit_code == code, result.stderr
    assert result.stdout.startswith("Submitted job ")


def test_a_cancelled_job_ends_a_wait_with_125(daemon: DaemonProcess):
    job_id = submitted(daemon, "--name", "to-cancel", "--", "sleep", "60")
    waiting = lepton_started(daemon, "wait", job_id)
    assert waiting.stderr is not None
    waiting.stderr.readline()

    assert lepton(daemon, "cancel", "to-cancel").exit_code == 0

    assert waiting.wait(TIMEOUT_S) == 125
    waiting.communicate()


def test_followed_output_is_the_jobs_own(daemon: DaemonProcess):
    script = "echo one; sleep 0.2; echo two >&2; exit 3"

    result = lepton(daemon, "submit", "--follow", "--parsable", "--", "sh", "-c", script)

    assert result.exit_code == 3
    assert sorted(result.stdout.splitlines()[1:]) == ["one", "two"]


def test_a_file_of_jobs_runs_in_the_order_of_its_dependencies(
    daemon: DaemonProcess, tmp_path: Path
):
    (tmp_path / "chain.yaml").write_text(
        """
        {name: second, command: cat made > copied, after: first, working_dir: .}
        """
        + "\n---\n"
        + "{name: first, command: echo done > made, working_dir: .}\n"
    )

    result = lepton(daemon, "submit", "--wait", str(tmp_path / "chain.yaml"))

    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "copied").read_text() == "done\n"


def test_what_cannot_start_now_is_told_by_2_and_a_reason(daemon: DaemonProcess):
    wide = ("--gpus", "2", "--tasks", "3", "--name", "wide")

    fits = lepton(daemon, "submit", "--dry-run", "--gpus", "2", "--", "true")
    waits = lepton(daemon, "submit", "--dry-run", *wide, "--", "true")
    job_id = submitted(daemon, *wide, "--", "true")
    wait_until(lambda: lepton(daemon, "explain", job_id).exit_code == 2, what="a reason")
    why = lepton(daemon, "explain", "wide")
    lepton(daemon, "cancel", job_id)

    assert (fits.exit_code, waits.exit_code) == (0, 2)
    assert "would start now" in fits.stdout
    assert "2 of 3" in waits.stdout
    assert "pending" in why.stdout


def test_every_list_is_the_same_in_json_and_yaml(daemon: DaemonProcess):
    submitted(daemon, "--array", "2", "--label", "team=nlp", "--", "true")

    for words, key in (
        (("jobs", "--all"), "jobs"),
        (("jobs", "--all", "--filter", "label.team=nlp"), "jobs"),
        (("nodes",), "nodes"),
        (("queues",), "queues"),
    ):
        as_json = json.loads(lepton(daemon, *words, "-o", "json").stdout)
        as_yaml = yaml.safe_load(lepton(daemon, *words, "-o", "yaml").stdout)
        assert as_json.keys() == as_yaml.keys()
        assert len(as_json[key]) == len(as_yaml[key])
    for words in (("jobs", "--all"), ("nodes",), ("queues",), ("info",), ("top", "--once")):
        for form in ("table", "wide"):
            shown = lepton(daemon, *words, "-o", form)
            assert shown.exit_code == 0, shown.stderr
            assert "\x1b" not in shown.stdout
            assert "…" not in shown.stdout


def test_jobs_are_held_and_let_go_and_changed(daemon: DaemonProcess):
    job_id = submitted(daemon, "--hold", "--", "true")

    assert phase(daemon, job_id) == "suspended"
    assert lepton(daemon, "update", job_id, "--priority", "5", "--time", "1h").exit_code == 0
    assert lepton(daemon, "resume", job_id).exit_code == 0
    assert lepton(daemon, "wait", "--quiet", job_id).exit_code == 0
    shown = json.loads(lepton(daemon, "job", job_id, "-o", "json").stdout)
    assert (shown["spec"]["priority"], shown["spec"]["time_limit_s"]) == (5, 3600)


def test_a_signal_reaches_the_process(daemon: DaemonProcess):
    script = "trap 'echo told; exit 0' USR1; echo ready; while :; do sleep 0.05; done"
    job_id = submitted(daemon, "--", "sh", "-c", script)
    wait_until(lambda: "ready" in lepton(daemon, "logs", job_id).stdout, what="it listens")

    assert lepton(daemon, "signal", job_id, "USR1").exit_code == 0

    assert lepton(daemon, "wait", job_id).exit_code == 0
    assert "told\n" in lepton(daemon, "logs", job_id).stdout


def test_a_drained_node_is_left_and_opened_again(daemon: DaemonProcess):
    assert lepton(daemon, "drain", "gpu-0").exit_code == 0
    assert "drained" in lepton(daemon, "nodes").stdout
    assert lepton(daemon, "uncordon", "gpu-0").exit_code == 0
    assert "drained" not in lepton(daemon, "nodes").stdout


def test_queues_are_made_closed_and_deleted(daemon: DaemonProcess):
    assert lepton(daemon, "queue", "put", "vision", "--closed").exit_code == 0
    refused = lepton(daemon, "submit", "--queue", "vision", "--", "true")
    assert refused.exit_code == 1
    assert "vision" in refused.stderr
    assert lepton(daemon, "queue", "delete", "vision").exit_code == 0
    assert "vision" not in lepton(daemon, "queues").stdout


@pytest.mark.parametrize("words", [("wait",), ("logs", "-f"), ("watch",)], ids=str)
def test_leaving_by_ctrl_c_leaves_the_job_alone(daemon: DaemonProcess, words: tuple[str, ...]):
    script = "echo ready; sleep 60"
    job_id = submitted(daemon, "--", "sh", "-c", script)
    wait_until(lambda: "ready" in lepton(daemon, "logs", job_id).stdout, what="it runs")
    following = lepton_started(daemon, *words, job_id)
    stream = following.stderr if words == ("wait",) else following.stdout
    assert stream is not None
    stream.readline()

    following.send_signal(signal.SIGINT)

    _, told = following.communicate(timeout=TIMEOUT_S)
    assert following.returncode == 130
    assert "Traceback" not in told
    if words != ("watch",):
        assert "goes on" in told
    assert phase(daemon, job_id) == "running"
    lepton(daemon, "cancel", job_id)


def test_waiting_and_reading_outlive_a_crash_of_the_daemon(tmp_path: Path):
    with running_daemon(tmp_path) as daemon:
        go = tmp_path / "go"
        script = f"echo one; while [ ! -e {go} ]; do sleep 0.05; done; echo two; exit 5"
        job_id = submitted(daemon, "--", "sh", "-c", script)
        waiting = lepton_started(daemon, "wait", job_id)
        reading = lepton_started(daemon, "logs", "-f", job_id)
        assert waiting.stderr is not None
        assert reading.stdout is not None
        waiting.stderr.readline()
        assert reading.stdout.readline() == "one\n"

        daemon.kill()
        daemon.start()
        go.touch()

        assert waiting.wait(TIMEOUT_S) == 5
        rest, _ = reading.communicate(timeout=TIMEOUT_S)
        assert rest == "two\n"
        waiting.communicate()


def test_a_stranger_is_refused_and_a_token_opens_the_door(tmp_path: Path):
    authority = Authority(tmp_path)
    server = authority.sign("server")
    tokens = tmp_path / "tokens"
    token = cli_testing.lepton("config", "token", "ada", "--file", str(tokens)).stdout.strip()
    security = {
        "tls_cert": str(server.cert),
        "tls_key": str(server.key),
        "token_file": str(tokens),
    }
    with running_daemon(tmp_path / "daemon", security=security) as daemon:
        ca = ("--ca", str(authority.cert))
        stranger = lepton(daemon, "info", *ca)
        known = lepton(daemon, "info", *ca, "--token", token, "-o", "json")

    assert (stranger.exit_code, "LEPTON_TOKEN" in stranger.stderr) == (1, True)
    assert json.loads(known.stdout)["user"] == "ada"
    assert tokens.stat().st_mode & 0o077 == 0
    assert token not in tokens.read_text()


def test_a_client_certificate_that_is_not_trusted_or_not_ones_own_is_named(tmp_path: Path):
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    server, ada, eve = (authority.sign(n) for n in ("server", "ada", "eve"))
    mallory = stranger.sign("mallory")
    security = {
        "tls_cert": str(server.cert),
        "tls_key": str(server.key),
        "client_ca": str(authority.cert),
    }
    with running_daemon(tmp_path / "daemon", security=security) as daemon:

        def info(cert: Path, key: Path) -> Result:
            pair = ("--cert", str(cert), "--key", str(key))
            return lepton(daemon, "info", "--ca", str(authority.cert), *pair, "-o", "json")

        known = info(ada.cert, ada.key)
        unknown = info(mallory.cert, mallory.key)
        mixed = info(ada.cert, eve.key)

    assert json.loads(known.stdout)["user"] == "ada"
    assert (unknown.exit_code, "--cert" in unknown.stderr) == (1, True)
    assert (mixed.exit_code, "is no certificate that" in mixed.stderr) == (64, True)


def test_an_unprotected_address_is_refused_before_anything_is_touched(tmp_path: Path):
    daemon = prepare_daemon(tmp_path, listen="0.0.0.0:7070")

    daemon.spawn()

    assert daemon.wait() == 64
    assert "only loopback may go without TLS" in daemon.log()
    assert not daemon.folder.exists()


def test_help_comes_at_once():
    """Without importing what only some verbs need: gRPC, pydantic, rich, numpy."""
    loaded = subprocess.run(
        [*LEPTON[:2], f"{LEPTON[2]}", "--help"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    ).stderr

    modules = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in loaded.splitlines()
    }
    assert not modules & {"grpc", "pydantic", "rich", "numpy", "yaml", "asyncio"}
