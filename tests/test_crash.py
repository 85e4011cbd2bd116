"""Kill tests: the daemon dies at every fault point, and at random, while a client submits.

Afterwards every acknowledged job exists exactly once, no task ran twice at a time or twice at
all, and all have finished. Each point has a daemon of its own; some run at the same time.
"""

import asyncio
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from daemon_testing import DaemonProcess, prepare_daemon, shell_spec

from scheduler.client import Client, ClientError
from scheduler.core.model import JobSpec
from scheduler.wire.cluster_pb2 import JOB_PHASE_CANCELLED, JOB_PHASE_SUCCEEDED, Job

REPOSITORY = Path(__file__).resolve().parent.parent
POINT = re.compile(r'\bfault\("([a-z_.]+)"\)')
SOURCES = sorted(REPOSITORY.glob("scheduler/**/*.py"))
POINTS = sorted({name for path in SOURCES for name in POINT.findall(path.read_text())})
"""Every point the code names, so that a new one is tested without being listed here."""

LATER_PASSES = {"journal.committing": 9, "journal.inserted": 5, "journal.committed": 12}
"""Points that are passed before the first submit: killed in the middle of the work, too."""

LOADS = {"journal.checkpointing": 72}
"""Points that only much data leads to, and how many jobs of a quarter of a MiB that takes."""

AT_ONCE = 6
ROUND_TIMEOUT_S = 60.0
CONFIG: Mapping[str, object] = {
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

    def spec(self, work: str, **changes: object) -> JobSpec:
        script = RUN.format(folder=self.folder, work=work)
        return shell_spec(script, **{"max_retries": 100, "backoff_s": 0.2, **changes})

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


async def work_through(crash: Round, client: Client, *, n_large: int) -> None:
    """Submit jobs of every kind, stop some, and wait until all have ended."""

    async def submit(name: str, spec: JobSpec) -> str:
        submitted = await patiently(client.submit, spec, request_id=f"request-{name}")
        crash.acknowledged[name] = list(submitted.job_ids) or [submitted.job_id]
        return submitted.job_id

    await asyncio.gather(*(submit(f"one-{n}", crash.spec("sleep 0.05")) for n in range(5)))
    await submit("gang", crash.spec("sleep 0.1", count=2))
    await submit("array", crash.spec(":", array_size=3))
    for number in range(n_large):
        large = shell_spec("true", env=(("PAD", "x" * 250_000),), suspended=True)
        await patiently(client.cancel, await submit(f"large-{number}", large))
    endless = await submit("endless", crash.spec("while :; do sleep 0.05; done"))
    await asyncio.sleep(0.3)
    await patiently(client.cancel, endless)
    await submit("last", crash.spec(":"))
    for job_ids in crash.acknowledged.values():
        await patiently(client.wait_all, *job_ids)


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


async def play(crash: Round, *, fault: str, kills: int = 0) -> None:
    """Let the daemon die, by a fault or by some kills, while a client works."""
    daemon, chance = crash.daemon, random.Random(kills)
    try:
        daemon.spawn(fault=fault)
        supervisor = asyncio.create_task(supervise(crash))
        async with asyncio.timeout(ROUND_TIMEOUT_S), daemon.client() as client:
            working = asyncio.create_task(
                work_through(crash, client, n_large=LOADS.get(fault, 0))
            )
            for _ in range(kills):
                await asyncio.sleep(chance.uniform(0.2, 1.2))
                daemon.kill()
            while not working.done():
                await asyncio.wait([working, supervisor], return_when="FIRST_COMPLETED")
                if supervisor.done():
                    supervisor.result()
            await working
            while not crash.exits:  # upkeep passes its points a little later
                await asyncio.sleep(0.05)
            crash.jobs = await patiently(all_jobs, client)
    finally:
        supervisor.cancel()
        await asyncio.gather(supervisor, return_exceptions=True)
        await asyncio.to_thread(daemon.end_everything)


async def all_jobs(client: Client) -> list[Job]:
    return [job async for job in client.jobs()]


def check(crash: Round) -> None:
    """Assert what must hold whenever the daemon died."""
    acknowledged = [job_id for ids in crash.acknowledged.values() for job_id in ids]
    n_large = sum(name.startswith("large") for name in crash.acknowledged)
    assert len(acknowledged) == len(set(acknowledged)) == 11 + n_large
    assert sorted(job.id for job in crash.jobs) == sorted(acknowledged)
    for job in crash.jobs:
        is_given_up = job.id in crash.acknowledged["endless"] or job.spec.suspended
        wanted = JOB_PHASE_CANCELLED if is_given_up else JOB_PHASE_SUCCEEDED
        assert job.phase == wanted, f"{job.id}: {job.reason}"
        assert job.attempt <= 1, f"{job.id}: {job.reason}"
    ran = crash.ran()
    assert max(ran.values()) == 1, f"ran twice: {ran.most_common(3)}"
    assert not [line for line in ran if line.startswith("overlap")]
    for job in crash.jobs:
        for task in job.tasks if job.phase == JOB_PHASE_SUCCEEDED else ():
            assert ran[f"end {job.id}/{task.role}-{task.index}@{task.attempt}"] == 1


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a dump in it, so that dumps and pruning have something to do."""
    daemon = prepare_daemon(tmp_path_factory.mktemp("seed"), **CONFIG)
    try:
        for _ in range(2):
            daemon.start()
            assert daemon.stop() == 0
    finally:
        daemon.end_everything()
    return daemon.folder


def new_round(folder: Path, seed: Path | None) -> Round:
    daemon = prepare_daemon(folder, **CONFIG)
    if seed is not None:
        shutil.copytree(seed, daemon.folder)
    return Round(daemon=daemon, folder=folder)


@pytest.fixture(scope="module")
def rounds(
    tmp_path_factory: pytest.TempPathFactory, seeded: Path
) -> dict[str, Round | BaseException]:
    """Every fault, played: the round, or what went wrong with it."""
    faults = [*POINTS, *(f"{point}:{n}" for point, n in LATER_PASSES.items())]
    home = tmp_path_factory.mktemp("crash")
    return asyncio.run(play_all(home, seeded, faults))


async def play_all(
    home: Path, seeded: Path, faults: list[str]
) -> dict[str, Round | BaseException]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def take_turn(fault: str) -> Round:
        # A folder of its own needs the tables made, which is where that one point is.
        seed = None if fault == "journal.migrating" else seeded
        async with turns:
            crash = new_round(home / fault.replace(":", "-"), seed)
            await play(crash, fault=fault)
            return crash

    played = await asyncio.gather(*map(take_turn, faults), return_exceptions=True)
    return dict(zip(faults, played, strict=True))


@pytest.mark.parametrize(
    "fault", [*POINTS, *(f"{point}:{n}" for point, n in LATER_PASSES.items())]
)
def test_nothing_is_lost_or_run_twice_when_the_daemon_dies_at(
    fault: str, rounds: dict[str, Round | BaseException]
):
    crash = rounds[fault]
    if isinstance(crash, BaseException):
        raise crash
    assert crash.exits == [-signal.SIGKILL]
    check(crash)


async def test_nothing_is_lost_or_run_twice_when_the_daemon_dies_at_random(
    tmp_path: Path, seeded: Path
):
    crash = new_round(tmp_path, seeded)
    await play(crash, fault="", kills=5)
    assert set(crash.exits) == {-signal.SIGKILL}
    check(crash)
