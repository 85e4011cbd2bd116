"""An elastic gang of real processes under a real daemon: it grows and gives way."""

import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import daemon_testing
import pytest
from daemon_testing import DaemonProcess, running_daemon, shell_spec

from scheduler.client import Client
from scheduler.wire import cluster_pb2 as pb

NODE = {"name": "gpu", "cpus": 8, "memory_mib": 8192, "gpus": 4, "gpu_type": "T4"}

# Decisions reckon with 30 s a restart, as real training takes; processes of a shell take none.
QUICK_RESTARTS = """
from scheduler.core import elastic, spares
elastic.RESTART_S = spares.RESTART_S = 0.1
from scheduler.cli.main import main
main()
"""

TELLS_ITS_PLACE = """
echo "$RANK of $WORLD_SIZE on $LEPTON_DEVICES in attempt $LEPTON_ATTEMPT"
exec sleep 600
"""


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonProcess]:
    monkeypatch.setattr(daemon_testing, "LEPTON", [sys.executable, "-c", QUICK_RESTARTS])
    with running_daemon(tmp_path, nodes=[NODE]) as daemon:
        yield daemon


async def test_a_gang_grows_gives_way_and_grows_again(daemon: DaemonProcess) -> None:
    async with daemon.client() as client:
        first = await client.submit(shell_spec("exec sleep 600", name="first", gpus=2))
        await seen(client, first.job_id, lambda job: runs(job, 1))
        spec = shell_spec(
            TELLS_ITS_PLACE,
            name="elastic",
            count=2,
            gpus=1,
            elastic=True,
            resize_cooldown_s=1.0,
            checkpoint_interval_s=0.1,
        )
        (role,) = spec.roles
        spec = replace(spec, roles=(replace(role, min_count=1, max_count=4),))
        elastic = (await client.submit(spec)).job_id

        began = await seen(client, elastic, lambda job: runs(job, 2))
        assert (began.attempt, began.resizes) == (1, 0)
        await client.cancel(first.job_id)
        grown = await seen(client, elastic, lambda job: runs(job, 4))
        assert (grown.attempt, grown.resizes) == (2, 1)
        assert await told(client, grown) == [f"{i} of 4 on {i} in attempt 2" for i in range(4)]

        second = await client.submit(shell_spec("exec sleep 600", name="second", gpus=1))
        await seen(client, second.job_id, lambda job: runs(job, 1))
        shrunk = await seen(client, elastic, lambda job: runs(job, 3))
        assert (shrunk.attempt, shrunk.resizes, shrunk.preemptions) == (3, 2, 0)
        places = [sorted(task.devices) for task in tasks_of(shrunk)]
        assert await told(client, shrunk) == [
            f"{i} of 3 on {device} in attempt 3" for i, (device,) in enumerate(places)
        ]

        await client.cancel(second.job_id)
        again = await seen(client, elastic, lambda job: runs(job, 4))
        assert (again.attempt, again.resizes, again.preemptions) == (4, 3, 0)
        assert await told(client, again) == [f"{i} of 4 on {i} in attempt 4" for i in range(4)]
        for earlier, later in ((began, grown), (grown, shrunk), (shrunk, again)):
            assert later.last_started_at_s >= earlier.last_started_at_s + spec.resize_cooldown_s


async def seen(client: Client, job_id: str, wanted: Callable[[pb.Job], bool]) -> pb.Job:
    """Return a job once it is as wanted."""
    revision = (await client.server_info()).revision
    job = await client.job(job_id)
    if wanted(job):
        return job
    async with aclosing(client.watch(after_revision=revision, job_ids=[job_id])) as events:
        async for event in events:
            if not event.is_bookmark and wanted(event.job):
                return event.job
    raise AssertionError("a watch never ends")


def runs(job: pb.Job, n_tasks: int) -> bool:
    """Return whether all tasks run, and are so many."""
    phases = [task.phase for task in tasks_of(job)]
    return job.phase == pb.JOB_PHASE_RUNNING and phases == [pb.TASK_PHASE_RUNNING] * n_tasks


def tasks_of(job: pb.Job) -> list[pb.Task]:
    """Return the tasks of the attempt, by rank."""
    tasks = [task for task in job.tasks if task.attempt == job.attempt]
    return sorted(tasks, key=lambda task: task.rank)


async def told(client: Client, job: pb.Job) -> list[str]:
    """Return the first line of each task, by rank, as soon as it is printed."""
    return [await first_line(client, job, task) for task in tasks_of(job)]


async def first_line(client: Client, job: pb.Job, task: pb.Task) -> str:
    request = pb.ReadLogsRequest(
        job_id=job.id, role=task.role, index=task.index, attempt=task.attempt, follow=True
    )
    text = b""
    async with aclosing(client.logs(request)) as chunks:
        async for chunk in chunks:
            text += chunk.data
            if b"\n" in text:
                break
    return text.splitlines()[0].decode()
