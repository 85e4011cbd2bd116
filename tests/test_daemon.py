"""A real daemon: it starts, decides, watches, stops in good order, and comes back."""

import asyncio
import contextlib
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from daemon_testing import (
    LEPTON,
    DaemonProcess,
    free_port,
    prepare_daemon,
    running_daemon,
    shell_spec,
    wait_for,
    wait_until,
)

from scheduler.client import Client, ClientError
from scheduler.wire import agent_pb2, agent_pb2_grpc, cluster_pb2
from scheduler.wire.cluster_pb2 import JOB_PHASE_RUNNING, JOB_PHASE_SUCCEEDED
from scheduler.wire.cluster_pb2_grpc import ClusterStub

GPU_NODE = {"name": "gpu", "cpus": 4, "gpus": 2, "gpu_type": "T4", "gpu_memory_mib": 16_000}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon that the tests of this file share; none of them stops it."""
    folder = tmp_path_factory.mktemp("shared")
    nodes = [{"name": "node", "cpus": 8, "memory_mib": 8192}, GPU_NODE]
    with running_daemon(folder, nodes=nodes, web_listen=f"127.0.0.1:{free_port()}") as daemon:
        yield daemon


@pytest.fixture
async def client(shared: DaemonProcess) -> AsyncIterator[Client]:
    async with shared.client() as client:
        yield client


async def running(client: Client, job_id: str) -> cluster_pb2.Job:
    """Return the job once it runs."""

    async def look() -> cluster_pb2.Job | None:
        job = await client.job(job_id)
        is_on = job.phase == JOB_PHASE_RUNNING and all(t.started_at_s for t in job.tasks)
        return job if is_on and job.tasks else None

    return await wait_for(look, what=f"job {job_id} runs")


def get(daemon: DaemonProcess, path: str) -> tuple[int, str]:
    """Return the status and the body of a page of the daemon's web address."""
    try:
        with urllib.request.urlopen(f"http://{daemon.info()['web_address']}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_a_job_runs_and_a_watch_sees_each_of_its_phases(client: Client):
    submitted = await client.submit(shell_spec("sleep 0.05"))
    phases = []
    watched = client.watch(after_revision=submitted.revision - 1, job_ids=[submitted.job_id])
    async with contextlib.aclosing(watched) as events, asyncio.timeout(20):
        async for event in events:
            if event.is_bookmark:
                continue
            if event.job.phase not in phases:
                phases.append(event.job.phase)
            if event.job.phase == JOB_PHASE_SUCCEEDED:
                break
    assert phases == sorted(phases)
    assert JOB_PHASE_RUNNING in phases


async def test_the_members_of_a_gang_know_each_other(shared: DaemonProcess, client: Client):
    script = 'echo "$RANK of $WORLD_SIZE" > "$LEPTON_CHECKPOINT_DIR/$RANK"'
    job = await client.wait((await client.submit(shell_spec(script, count=3))).job_id)
    assert job.phase == JOB_PHASE_SUCCEEDED, job.reason
    told = sorted(
        p.read_text() for p in shared.folder.glob(f"tasks/jobs/{job.id}/checkpoints/*")
    )
    assert told == ["0 of 3\n", "1 of 3\n", "2 of 3\n"]


async def test_metrics_and_health_are_served(shared: DaemonProcess, client: Client):
    await client.wait((await client.submit(shell_spec("true"))).job_id)
    with pytest.raises(ClientError):
        await client.job("999")
    status, text = await asyncio.to_thread(get, shared, "/metrics")
    assert status == 200
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
    assert float(lines['lepton_events_total{kind="JobsSubmitted",verdict="accepted"}']) >= 1
    assert float(lines['lepton_jobs_finished_total{phase="succeeded"}']) >= 1
    assert float(lines["lepton_cycle_seconds_count"]) >= 1
    assert float(lines["lepton_journal_seconds_count"]) >= 1
    assert lines['lepton_gpus{state="all",type="T4"}'] == "2.0"
    assert lines["lepton_degraded"] == "0.0"
    assert float(lines['lepton_rpcs_total{code="OK",method="SubmitJob"}']) >= 1
    assert float(lines['lepton_rpcs_total{code="NOT_FOUND",method="GetJob"}']) >= 1
    assert float(lines['lepton_rpc_seconds_count{method="SubmitJob"}']) >= 1
    assert await asyncio.to_thread(get, shared, "/healthz") == (200, "ok\n")
    assert await asyncio.to_thread(get, shared, "/readyz") == (200, "ready\n")


async def test_an_agent_reports_what_gpus_do_and_which_fail(
    shared: DaemonProcess, client: Client
):
    def gpu(index: int, *, healthy: bool, busy: float = 0.5) -> agent_pb2.GpuReport:
        figures = cluster_pb2.GpuTelemetry(busy_fraction=busy, power_w=70.0)
        return agent_pb2.GpuReport(index=index, is_healthy=healthy, telemetry=figures)

    async with grpc.aio.insecure_channel(shared.address) as channel:
        agent = agent_pb2_grpc.AgentStub(channel)

        async def report(*gpus: agent_pb2.GpuReport, node: str = "gpu") -> None:
            await agent.Report(agent_pb2.ReportRequest(node=node, gpus=gpus))

        before = (await client.server_info()).revision
        await report(gpu(0, healthy=True), gpu(1, healthy=True))
        assert (await client.server_info()).revision == before, "only changes are events"
        await report(gpu(0, healthy=True), gpu(1, healthy=False, busy=0.25))
        await report(gpu(1, healthy=False, busy=0.25))
        assert (await client.server_info()).revision == before + 1

        [node] = [node for node in await client.nodes() if node.name == "gpu"]
        assert [gpu.is_healthy for gpu in node.gpus] == [True, False]
        assert node.gpus[1].telemetry.busy_fraction == 0.25
        assert node.gpus[1].telemetry.at_s > 0
        _, text = await asyncio.to_thread(get, shared, "/metrics")
        assert 'lepton_gpu_busy_fraction{gpu="1",node="gpu"} 0.25' in text

        for code, node_name, sent in (
            (grpc.StatusCode.NOT_FOUND, "absent", gpu(0, healthy=True)),
            (grpc.StatusCode.INVALID_ARGUMENT, "gpu", gpu(2, healthy=True)),
            (grpc.StatusCode.INVALID_ARGUMENT, "gpu", gpu(0, healthy=True, busy=1.5)),
            (grpc.StatusCode.INVALID_ARGUMENT, "gpu", gpu(0, healthy=True, busy=float("nan"))),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await report(sent, node=node_name)
            assert caught.value.code() is code
        await report(gpu(0, healthy=True), gpu(1, healthy=True))


async def test_draining_a_node_moves_a_preemptible_job(tmp_path: Path):
    nodes = [{"name": "a", "cpus": 1}, {"name": "b", "cpus": 1}]
    with running_daemon(tmp_path, nodes=nodes) as daemon:
        async with daemon.client() as client:
            script = 'trap "exit 0" TERM; while :; do sleep 0.05; done'
            job_id = (await client.submit(shell_spec(script, cpu_milli=1000))).job_id
            first = (await running(client, job_id)).tasks[0].node
            await client.drain(first)

            async def moved() -> bool:
                job = await client.job(job_id)
                return bool(job.attempt == 2 and job.phase == JOB_PHASE_RUNNING)

            await wait_for(moved, what="the job runs elsewhere")
            job = await running(client, job_id)
            assert {task.node for task in job.tasks} == {"a", "b"} - {first}
            await client.cancel(job_id)
            await client.wait(job_id, timeout_s=10)


async def test_tasks_outlive_the_daemon_and_are_adopted(tmp_path: Path):
    with running_daemon(tmp_path) as daemon:
        log, gate = tmp_path / "log", tmp_path / "gate"
        script = (
            f"echo start >> {log}; until [ -e {gate} ]; do sleep 0.02; done; echo end >> {log}"
        )
        async with daemon.client() as client:
            lasting = (await client.submit(shell_spec(script))).job_id
            ending = (await client.submit(shell_spec("sleep 0.3; exit 7"))).job_id
            await running(client, lasting)
            await running(client, ending)
        assert daemon.stop() == 0
        assert not (daemon.folder / "daemon.json").exists()
        await asyncio.sleep(0.4)  # `ending` ends while nobody looks
        daemon.start()
        async with daemon.client() as client:
            job = await client.wait(ending, timeout_s=10)
            assert (job.exit_code, job.attempt) == (7, 1)
            assert (await client.job(lasting)).phase == JOB_PHASE_RUNNING
            gate.touch()
            job = await client.wait(lasting, timeout_s=10)
            assert (job.phase, job.attempt) == (JOB_PHASE_SUCCEEDED, 1)
            assert log.read_text() == "start\nend\n"


async def test_stopping_does_not_wait_for_those_who_watch(tmp_path: Path):
    with running_daemon(tmp_path) as daemon:
        async with grpc.aio.insecure_channel(daemon.address) as channel:
            watched = ClusterStub(channel).WatchJobs(cluster_pb2.WatchJobsRequest())
            assert (await watched.read()).is_bookmark
            stopping = asyncio.create_task(asyncio.to_thread(daemon.stop))
            async with asyncio.timeout(5):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await watched.read()
                assert await stopping == 0
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_job_that_is_stopping_when_the_daemon_dies_still_stops(tmp_path: Path):
    with running_daemon(tmp_path) as daemon:
        async with daemon.client() as client:
            script = 'trap "" TERM; while :; do sleep 0.05; done'
            job_id = (await client.submit(shell_spec(script, grace_s=1.0))).job_id
            await running(client, job_id)
            await client.cancel(job_id)
            daemon.kill()
            daemon.start()
            job = await client.wait(job_id, timeout_s=20)
            assert job.phase == cluster_pb2.JOB_PHASE_CANCELLED


async def test_a_second_daemon_on_one_folder_is_refused(tmp_path: Path):
    with running_daemon(tmp_path / "first") as daemon:
        other = prepare_daemon(tmp_path / "second", folder=str(daemon.folder))
        other.spawn()
        assert other.wait() == 1
        assert f"belongs to process {daemon.pid}, which is still running" in other.log()
        async with daemon.client() as client:
            await client.server_info()


async def test_a_second_daemon_on_one_address_is_refused(tmp_path: Path):
    with running_daemon(tmp_path / "first") as daemon:
        other = prepare_daemon(tmp_path / "second", listen=daemon.address)
        other.spawn()
        assert other.wait() == 64
        assert f"{daemon.address} cannot be served" in other.log()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cycel_s: 1\n", "lepton.yaml:1: cycel_s: is not a known field; did you mean cycle_s?"),
        ("policy: best\n", "lepton.yaml:1: policy: must be one of fifo, "),
        ("listen: 0.0.0.0:0\n", "security.tls_cert: is required to listen on 0.0.0.0:0"),
        ("web_listen: 0.0.0.0:0\nlisten: 127.0.0.1:0\n", "web_listen: must be on loopback"),
    ],
)
def test_a_bad_configuration_is_told_and_nothing_is_served(
    tmp_path: Path, text: str, message: str
):
    (tmp_path / "lepton.yaml").write_text(f"{text}")
    ended = subprocess.run(
        [*LEPTON, "daemon", "--config", "lepton.yaml", "--folder", tmp_path / "state"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 64
    assert message in ended.stderr
    assert "serves on" not in ended.stdout


async def test_a_node_that_leaves_the_configuration_keeps_its_tasks(tmp_path: Path):
    two = [{"name": "stays", "cpus": 1}, {"name": "goes", "cpus": 2}]
    with running_daemon(tmp_path, nodes=two) as daemon:
        gate = tmp_path / "gate"
        async with daemon.client() as client:
            script = f"until [ -e {gate} ]; do sleep 0.02; done"
            job_id = (await client.submit(shell_spec(script, cpu_milli=2000))).job_id
            await running(client, job_id)
        daemon.stop()
        config = daemon.config_path.read_text()
        daemon.config_path.write_text(config.replace("name: goes", "name: new"))
        daemon.start()
        async with daemon.client() as client:
            nodes = {node.name: node for node in await client.nodes()}
            assert set(nodes) == {"stays", "goes", "new"}
            assert nodes["goes"].is_cordoned
            assert nodes["goes"].reason == "no longer declared"
            gate.touch()
            job = await client.wait(job_id, timeout_s=10)
            assert (job.phase, job.attempt) == (JOB_PHASE_SUCCEEDED, 1)

            async def is_gone() -> bool:
                return "goes" not in {node.name for node in await client.nodes()}

            await wait_for(is_gone, what="the empty node is removed")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs privileges")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


async def test_a_full_disk_leaves_reads_and_heals_by_itself(tmp_path: Path, small_disk: Path):
    with running_daemon(
        tmp_path, folder=str(small_disk), web_listen=f"127.0.0.1:{free_port()}"
    ) as daemon:
        await fill_and_free(daemon, small_disk / "filler", tmp_path / "gate")


async def fill_and_free(daemon: DaemonProcess, filler: Path, gate: Path) -> None:
    async with daemon.client(timeout_s=2.0) as client:
        script = f"until [ -e {gate} ]; do sleep 0.02; done"
        job_id = (await client.submit(shell_spec(script))).job_id
        await running(client, job_id)
        fill(filler)

        async def is_refused() -> bool:
            try:
                await client.submit(shell_spec("true", labels=(("pad", "x" * 200),)))
            except ClientError as error:
                return error.code is grpc.StatusCode.UNAVAILABLE
            fill(filler)
            return False

        await wait_for(is_refused, what="submits are refused")
        info = await client.server_info()
        assert info.is_degraded
        assert "full" in info.degraded_reason
        assert (await client.job(job_id)).phase == JOB_PHASE_RUNNING
        assert (await asyncio.to_thread(get, daemon, "/readyz"))[0] == 503
        # The task ends; the daemon hears of it but cannot write it down.
        await asyncio.to_thread(gate.touch)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(filler.unlink)
        job = await client.wait(job_id, timeout_s=20)
        assert job.phase == JOB_PHASE_SUCCEEDED
        submitted = await client.submit(shell_spec("true"), timeout_s=20)
        assert (await client.wait(submitted.job_id)).phase == JOB_PHASE_SUCCEEDED
        assert not (await client.server_info()).is_degraded


def fill(filler: Path) -> None:
    """Take every byte of the disk that is left."""
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def test_the_daemon_tells_systemd_when_it_is_ready(tmp_path: Path):
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(str(tmp_path / "notify"))
        inbox.settimeout(30)
        daemon = prepare_daemon(tmp_path)
        try:
            daemon.start(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
            assert inbox.recv(100) == b"READY=1"
            daemon.stop()
            assert inbox.recv(100) == b"STOPPING=1"
        finally:
            daemon.end_everything()


def test_a_daemon_without_configuration_serves_this_machine(tmp_path: Path):
    daemon = prepare_daemon(tmp_path)
    daemon.config_path.write_text(
        f"listen: 127.0.0.1:0\nweb_listen: null\nfolder: {daemon.folder}\n"
    )
    try:
        daemon.start()
        address = daemon.info()["address"]
        assert not address.endswith(":0")
        wait_until(lambda: f"serves on {address}" in daemon.log())
    finally:
        daemon.end_everything()
