"""Kills at random moments while clients submit, cancel, suspend, preempt, drain and signal.

Whatever is going on when the daemon dies: every acknowledged job exists exactly once and ends,
no attempt runs twice, nothing is left running, and the nodes are free again.
"""

import asyncio
import random
from pathlib import Path

import grpc
import pytest
from crash_testing import (
    Round,
    all_jobs,
    check_books,
    kept_alive,
    new_round,
    patiently,
    until_first,
)

from scheduler.client import FINAL_PHASES, Client, ClientError
from scheduler.core.model import JobSpec

NODES = [{"name": name, "cpus": 2, "memory_mib": 4096} for name in ("a", "b")]
N_KILLS = 5
N_JOBS = 20
N_WHIMS = 40
# What steering a job meets that has ended meanwhile.
TOO_LATE = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND}


def any_spec(crash: Round, chance: random.Random) -> JobSpec:
    """Return a job of some kind: a gang, an array, one that fails or runs out of time."""
    work = f"sleep {chance.choice([0.02, 0.1, 0.3, 0.6])}"
    cpu_milli = chance.choice([200, 500, 1000])
    common = {"priority": chance.randrange(5), "grace_s": chance.choice([0.2, 1.0])}
    match chance.randrange(8):
        case 0:
            return crash.spec(work, count=2, cpu_milli=cpu_milli, **common)
        case 1:
            return crash.spec(work, array_size=3, cpu_milli=cpu_milli, **common)
        case 2:
            return crash.spec(work, time_limit_s=0.2, **common)
        case 3:
            return crash.spec(f"{work}; exit 3", max_retries=1, **common)
        case 4:
            return crash.spec(work, cpu_milli=2000, **common)  # a whole node: preempts
        case _:
            return crash.spec(work, cpu_milli=cpu_milli, **common)


async def submit_all(crash: Round, client: Client, chance: random.Random) -> None:
    for number in range(N_JOBS):
        await crash.submit(client, str(number), any_spec(crash, chance))
        await asyncio.sleep(chance.uniform(0.0, 0.2))


async def steer(crash: Round, client: Client, chance: random.Random) -> None:
    """Do something to some job or node, again and again."""
    for _ in range(N_WHIMS):
        await asyncio.sleep(chance.uniform(0.0, 0.15))
        if not crash.acknowledged:
            continue
        job_id = chance.choice(crash.job_ids())
        try:
            await one_whim(client, job_id, chance)
        except ClientError as error:
            if error.code not in TOO_LATE:
                raise


async def one_whim(client: Client, job_id: str, chance: random.Random) -> None:
    match chance.randrange(6):
        case 0:
            await patiently(client.cancel, job_id)
        case 1 | 2:
            await patiently(client.suspend, job_id)
            await asyncio.sleep(0.1)
            await patiently(client.resume, job_id)
        case 3:
            await patiently(client.update, job_id, priority=chance.randrange(9))
        case 4:
            await patiently(client.drain, "b")
            await asyncio.sleep(0.2)
            await patiently(client.uncordon, "b")
        case 5:
            await patiently(client.signal, job_id, 15)


async def kill_often(crash: Round, chance: random.Random) -> None:
    for _ in range(N_KILLS):
        await asyncio.sleep(chance.uniform(0.9, 2.0))
        crash.daemon.kill()


async def live_through(crash: Round, client: Client, seed: int) -> None:
    await asyncio.gather(
        submit_all(crash, client, random.Random(seed)),
        steer(crash, client, random.Random(seed + 1)),
        kill_often(crash, random.Random(seed + 2)),
    )
    suspended = [job.id for job in await patiently(all_jobs, client) if job.phase == 4]
    for job_id in suspended:  # its resume came too late, or never
        await patiently(client.resume, job_id)
    await patiently(client.wait_all, *crash.job_ids())


@pytest.mark.parametrize("seed", [1, 2])
async def test_whenever_the_daemon_dies_the_books_balance(tmp_path: Path, seed: int):
    crash = new_round(tmp_path, nodes=NODES)
    async with kept_alive(crash, timeout_s=120.0) as (client, keeper):
        await until_first(live_through(crash, client, seed), keeper)
        crash.jobs = await patiently(all_jobs, client)
        check_books(crash)
        assert all(job.phase in FINAL_PHASES for job in crash.jobs)
        for node in await patiently(client.nodes):
            assert (node.n_tasks, node.cpu_milli_free) == (0, node.cpu_milli)
        left = [process.cmdline() for process in crash.daemon.processes()]
        assert [words for words in left if words[0] == "sh"] == []
    assert len(crash.exits) == N_KILLS
