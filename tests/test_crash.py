"""Kill tests: the daemon dies at every fault point while a client submits.

Afterwards every acknowledged job exists exactly once, no task ran twice at a time or twice at
all, and all have finished. Each point has a daemon of its own; some run at the same time.
"""

import asyncio
import re
import signal
from pathlib import Path

import pytest
from crash_testing import (
    CONFIG,
    Round,
    all_jobs,
    check_books,
    kept_alive,
    new_round,
    patiently,
    until_first,
)
from daemon_testing import prepare_daemon, shell_spec

from scheduler.client import Client
from scheduler.core.model import JobSpec
from scheduler.wire.cluster_pb2 import JOB_PHASE_CANCELLED, JOB_PHASE_SUCCEEDED

REPOSITORY = Path(__file__).resolve().parent.parent
POINT = re.compile(r'\bfault\("([a-z_.]+)"\)')
SOURCES = sorted(REPOSITORY.glob("scheduler/**/*.py"))
POINTS = sorted({name for path in SOURCES for name in POINT.findall(path.read_text())})
"""Every point the code names, so that a new one is tested without being listed here."""

LATER_PASSES = {"journal.committing": 9, "journal.inserted": 5, "journal.committed": 12}
"""Points that are passed before the first submit: killed in the middle of the work, too."""

LOADS = {"journal.checkpointing": 72}
"""Points that only much data leads to, and how many jobs of a quarter of a MiB that takes."""

FAULTS = [*POINTS, *(f"{point}:{n}" for point, n in LATER_PASSES.items())]
AT_ONCE = 6


async def work_through(crash: Round, client: Client, *, n_large: int) -> None:
    """Submit jobs of every kind, stop some, and wait until all have ended."""

    async def submit(name: str, spec: JobSpec) -> str:
        return await crash.submit(client, name, spec)

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
    await patiently(client.wait_all, *crash.job_ids())


async def play(crash: Round, fault: str) -> None:
    """Let the daemon die at a point while a client works."""
    async with kept_alive(crash, fault=fault) as (client, keeper):
        work = work_through(crash, client, n_large=LOADS.get(fault, 0))
        await until_first(work, keeper)
        while not crash.exits:  # upkeep passes its points a little later
            await asyncio.sleep(0.05)
        crash.jobs = await patiently(all_jobs, client)


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


@pytest.fixture(scope="module")
def rounds(
    tmp_path_factory: pytest.TempPathFactory, seeded: Path
) -> dict[str, Round | BaseException]:
    """Every fault, played: the round, or what went wrong with it."""
    home = tmp_path_factory.mktemp("crash")
    return asyncio.run(play_all(home, seeded))


async def play_all(home: Path, seeded: Path) -> dict[str, Round | BaseException]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def take_turn(fault: str) -> Round:
        # A folder of its own needs the tables made, which is where that one point is.
        seed = None if fault == "journal.migrating" else seeded
        async with turns:
            crash = new_round(home / fault.replace(":", "-"), seed)
            await play(crash, fault)
            return crash

    played = await asyncio.gather(*map(take_turn, FAULTS), return_exceptions=True)
    return dict(zip(FAULTS, played, strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_or_run_twice_when_the_daemon_dies_at(
    fault: str, rounds: dict[str, Round | BaseException]
):
    crash = rounds[fault]
    if isinstance(crash, BaseException):
        raise crash
    assert crash.exits == [-signal.SIGKILL]
    check_books(crash)
    n_large = sum(name.startswith("large") for name in crash.acknowledged)
    assert len(crash.job_ids()) == 11 + n_large
    for job in crash.jobs:
        is_given_up = job.id in crash.acknowledged["endless"] or job.spec.suspended
        wanted = JOB_PHASE_CANCELLED if is_given_up else JOB_PHASE_SUCCEEDED
        assert job.phase == wanted, f"{job.id}: {job.reason}"
        assert job.attempt <= 1, f"{job.id}: {job.reason}"
