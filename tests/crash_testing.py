"""Daemons that are killed while a client works, for tests: the round, and what must hold after.

A job made by `Round.spec` notes each start and end of each attempt, and holds a lock while it
runs, so that a second run of it, at a time or at all, shows.
"""

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from daemon_testing import DaemonProcess, prepare_daemon, shell_spec

from scheduler.client import Client, ClientError
from scheduler.core.model import JobSpec
from scheduler.wire.cluster_pb2 import JOB_PHASE_SUCCEEDED, Job

ROUND_TIMEOUT_S = 60.0
CONFIG: Mapping[str, Any] = {
    "nodes": [{"name": "node", "cpus": 4, "memory_mib": 4096}],
    "dump_every_events": 5,
    "retention": {"events_days": 1e-9},
}

RUN = """
key="$LEPTON_JOB_ID/$LEPTON_ROLE-$LEPTON_TASK_INDEX"
exec 9> {folder}/lock-$(echo $key | tr / _); flock -n 9 || echo "overlap $key" >> {folder}/ran
echo "start $key@$LEPTON_ATTEMPT" >> {folder}/ran
{work}
echo "end $key@$LEPTON_ATTEMPT" >> {folder}/ran
"""


@dataclass
class Round:
    """One daemon that is killed, what its client was told, and what came of it."""

    daemon: DaemonProcess
    folder: Path
    acknowledged: dict[str, list[str]] = field(default_factory=dict)  # by request id
    exits: list[int] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def spec(self, work: str, **changes: Any) -> JobSpec:
        """Return a job that does some shell work, and notes that it does."""
        script = RUN.format(folder=self.folder, work=work)
        return shell_spec(script, **{"max_retries": 100, "backoff_s": 0.2, **changes})

    async def submit(self, client: Client, name: str, spec: JobSpec) -> str:
        """Submit until it is acknowledged, and remember what was."""
        submitted = await patiently(client.submit, spec, request_id=f"request-{name}")
        self.acknowledged[name] = list(submitted.job_ids) or [submitted.job_id]
        return submitted.job_id

    def job_ids(self) -> list[str]:
        """Return every acknowledged job."""
        return [job_id for ids in self.acknowledged.values() for job_id in ids]

    def ran(self) -> Counter[str]:
        """Return how often each task attempt started and ended."""
        path = self.folder / "ran"
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()


async def patiently(call, *args, **options):
    """Repeat a call for as long as there is no daemon to answer it."""
    while True:
        try:
            return await call(*args, **options)
        except ClientError as error:
            if error.code not in {
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            }:
                raise
            await asyncio.sleep(0.05)


async def supervise(crash: Round) -> None:
    """Start the daemon again whenever it has died, without the fault."""
    daemon = crash.daemon
    while True:
        while daemon.is_running():
            await asyncio.sleep(0.02)
        crash.exits.append(await asyncio.to_thread(daemon.wait))
        if crash.exits[-1] != -signal.SIGKILL:
            raise AssertionError(f"exit status {crash.exits[-1]}:\n{daemon.log()[-4000:]}")
        daemon.spawn()


@asynccontextmanager
async def kept_alive(
    crash: Round, *, fault: str = "", timeout_s: float = ROUND_TIMEOUT_S
) -> AsyncIterator[tuple[Client, asyncio.Task[None]]]:
    """Run the daemon, and again whenever it dies; yield a client, and who keeps it alive."""
    crash.daemon.spawn(fault=fault)
    keeper = asyncio.create_task(supervise(crash))
    try:
        async with asyncio.timeout(timeout_s), crash.daemon.client() as client:
            yield client, keeper
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await asyncio.to_thread(crash.daemon.end_everything)


async def all_jobs(client: Client) -> list[Job]:
    """Return every job there is."""
    return [job async for job in client.jobs()]


def new_round(folder: Path, seed: Path | None = None, **config: Any) -> Round:
    """Prepare a daemon in a folder, with a copy of the state in `seed`."""
    daemon = prepare_daemon(folder, **{**CONFIG, **config})
    if seed is not None:
        shutil.copytree(seed, daemon.folder)
    return Round(daemon=daemon, folder=folder)


def check_books(crash: Round) -> None:
    """Assert that acknowledged jobs exist exactly once and that no attempt ran twice."""
    assert sorted(job.id for job in crash.jobs) == sorted(crash.job_ids())
    ran = crash.ran()
    assert max(ran.values()) == 1, f"ran twice: {ran.most_common(3)}"
    assert not [line for line in ran if line.startswith("overlap")]
    for job in crash.jobs:
        for task in job.tasks if job.phase == JOB_PHASE_SUCCEEDED else ():
            assert ran[f"end {job.id}/{task.role}-{task.index}@{task.attempt}"] == 1


async def until_first(work: Coroutine[Any, Any, None], other: asyncio.Task[None]) -> None:
    """Wait for the work; raise what the other task raises, should it end before."""
    working = asyncio.create_task(work)
    await asyncio.wait([working, other], return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        other.result()
    await working
