"""How soon a daemon is ready again after `kill -9`, with a long history behind it.

One process runs 200,000 jobs to their end, leaves 10,000 running, and is killed: through the
real engine, journal and job store, as a daemon would, with a dump every so many events (the
default of the config) and then as many after the last dump as there can be. A fresh process
recovers: opens and checks the journal, restores the dump, replays what came after, answers a
list. For scale, the same without dumps: every event is replayed.
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from report import report

from scheduler.clock import SystemClock
from scheduler.config import DaemonConfig
from scheduler.core.engine import Engine
from scheduler.core.events import (
    Event,
    JobsSubmitted,
    NodeRegistered,
    PlanCommitted,
    TaskEnded,
    TaskStarted,
)
from scheduler.core.model import (
    Gpu,
    JobId,
    JobSpec,
    Launch,
    Node,
    NodeName,
    Role,
    Shape,
    TaskId,
)
from scheduler.core.plan import Accepted, Bind, Placement
from scheduler.daemon.job_store import JobStore
from scheduler.daemon.journal import Journal
from scheduler.daemon.journal_reading import verify
from scheduler.daemon.journal_schema import connect_writer

GPUS_PER_NODE = 8
DUMP_EVERY = DaemonConfig.model_fields["dump_every_events"].default
BATCH = 500
GOAL_S = 5.0


def node(number: int) -> Node:
    name = NodeName(f"node-{number:04}")
    gpus = tuple(Gpu(uuid=f"GPU-{number}-{i}", memory_mib=81920) for i in range(GPUS_PER_NODE))
    return Node(name=name, cpu_milli=128_000, memory_mib=2**20, gpu_type="H100", gpus=gpus)


def spec(number: int) -> JobSpec:
    command = ("python", "train.py", "--learning-rate", "0.001", "--seed", str(number))
    launch = Launch(command=command, env=(("DATA", "/data/imagenet"), ("WANDB_MODE", "off")))
    worker = Role(name="worker", launch=launch, shape=Shape(cpu_milli=8000, gpus=1))
    return JobSpec(
        name=f"sweep-{number % 500}",
        roles=(worker,),
        priority=number % 5,
        labels=(("team", f"team-{number % 20}"),),
    )


def history(n_finished: int, n_live: int) -> Iterator[list[Event]]:
    """Yield batches of events: waves of jobs that fill the cluster, the last still running."""
    at_s, n_nodes = 1.0, -(-n_live // GPUS_PER_NODE)
    yield [NodeRegistered(at_s=at_s, node=node(n)) for n in range(n_nodes)]
    first = 1
    while first <= n_finished + n_live:
        at_s += 600.0
        wave = range(first, min(first + n_live, n_finished + n_live + 1))
        for number in wave:
            yield [
                JobsSubmitted(
                    at_s=at_s,
                    spec=spec(number),
                    submitter=f"user-{number % 50}",
                    request_id=f"{number:032x}",
                    fingerprint=f"{number:064x}",
                )
            ]
        tasks = [TaskId(JobId(str(number)), "worker", 0, 1) for number in wave]
        placements = tuple(
            Placement(
                job_id=task.job,
                binds=(
                    Bind(
                        task=task,
                        node=NodeName(f"node-{place // GPUS_PER_NODE:04}"),
                        rank=0,
                        devices=(place % GPUS_PER_NODE,),
                    ),
                ),
                world_size=1,
            )
            for place, task in enumerate(tasks)
        )
        yield [PlanCommitted(at_s=at_s, placements=placements)]
        yield [TaskStarted(at_s=at_s + 1.0, task=task) for task in tasks]
        if wave[-1] <= n_finished:
            yield [TaskEnded(at_s=at_s + 500.0, task=task, exit_code=0) for task in tasks]
        first = wave[-1] + 1


def count_events(n_finished: int, n_live: int) -> int:
    n_nodes, n_waves = -(-n_live // GPUS_PER_NODE), -(-(n_finished + n_live) // n_live)
    return n_nodes + n_waves + 3 * n_finished + 2 * n_live


async def observe(
    events: list[Event], journal: Journal, store: JobStore, engine: Engine
) -> None:
    await journal.append(events)
    for event in events:
        outcome = engine.observe(event)
        assert isinstance(outcome, Accepted), outcome
        store.add(outcome.finished)


async def make(folder: Path, n_finished: int, n_live: int) -> dict[str, float]:
    """Write the journal; the number of events and how many a second."""
    start_s = time.perf_counter()
    journal = Journal.open(folder, clock=SystemClock())
    store, engine = JobStore(journal), Engine()
    chunk: list[Event] = []
    last_dump = count_events(n_finished, n_live) - DUMP_EVERY  # after it comes the longest tail
    next_dump = last_dump % DUMP_EVERY or DUMP_EVERY
    for event in (event for events in history(n_finished, n_live) for event in events):
        chunk.append(event)
        if len(chunk) == BATCH:
            await observe(chunk, journal, store, engine)
            chunk = []
            if next_dump <= min(engine.revision, last_dump):
                await journal.write_dump(engine.dump())
                next_dump += DUMP_EVERY
    await observe(chunk, journal, store, engine)
    assert engine.revision == last_dump + DUMP_EVERY
    took_s = time.perf_counter() - start_s
    return {"n_events": engine.revision, "events_per_s": engine.revision / took_s}


async def recover(folder: Path) -> dict[str, float]:
    """Be a daemon that starts again; what it found and how long it took."""
    start_s = time.perf_counter()
    journal = Journal.open(folder, clock=SystemClock())
    opened_s = time.perf_counter()
    recovered = journal.recover()
    engine = Engine() if recovered.dump is None else Engine.restore(recovered.dump)
    restored_s = time.perf_counter()
    store = JobStore(journal)
    n_replayed = 0
    for _, event in recovered.events:
        outcome = engine.observe(event)
        n_replayed += 1
        if isinstance(outcome, Accepted):
            store.add(outcome.finished)
    page = await store.list(engine, filter="phase=finished")
    ready_s = time.perf_counter()
    return {
        "open_s": opened_s - start_s,
        "restore_s": restored_s - opened_s,
        "replay_s": ready_s - restored_s,
        "n_replayed": n_replayed,
        "n_live": sum(1 for _ in engine.jobs()),
        "n_finished": page.total_size,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_a_fresh_process(*arguments: object) -> tuple[float, dict[str, float]]:
    """Run a part of this program, which ends by killing itself; its time and its answer."""
    start_s = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as part:
        line = part.stdout.readline()
        took_s = time.perf_counter() - start_s
    return took_s, json.loads(line)


def answer_and_die(answer: dict[str, float]) -> None:
    print(json.dumps(answer), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


async def list_pages(folder: Path) -> Iterator[tuple[str, float]]:
    journal = Journal.open(folder, clock=SystemClock())
    store, engine = JobStore(journal), Engine()
    found = []
    for case, options in (
        ("list newest", {"order_by": "submitted_at_s desc"}),
        ("list by name and label", {"filter": "name=sweep-7 AND label.team=team-7"}),
        ("list by scan", {"filter": "submitter~user-7 AND priority>=3"}),
    ):
        start_s = time.perf_counter()
        await store.list(engine, **options)
        found.append((case, time.perf_counter() - start_s))
    store.close()
    journal.close()
    return iter(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recover", type=Path)
    parser.add_argument("--make", type=Path)
    parser.add_argument("--finished", type=int, default=200_000)
    parser.add_argument("--live", type=int, default=10_000)
    options = parser.parse_args()
    if options.recover:
        answer_and_die(asyncio.run(recover(options.recover)))
    if options.make:
        answer_and_die(asyncio.run(make(options.make, options.finished, options.live)))
    size = f"{options.finished} finished, {options.live} live"
    with tempfile.TemporaryDirectory(prefix="lepton-recover-") as name:
        folder = Path(name) / "journal"
        _, made = in_a_fresh_process(
            "--make", folder, "--finished", options.finished, "--live", options.live
        )
        report(
            "recover",
            "journal and observe",
            value=made["events_per_s"],
            unit="events/s",
            size=size,
        )
        ready_s, found = in_a_fresh_process("--recover", folder)
        assert (found["n_finished"], found["n_live"]) == (options.finished, options.live)
        size = f"{size}, {found['n_replayed']:.0f} events after the dump"
        report(
            "recover",
            "ready again",
            value=ready_s,
            unit="s",
            better="lower",
            goal=GOAL_S,
            size=size,
        )
        for part in ("open_s", "restore_s", "replay_s"):
            case = f"of which {part.removesuffix('_s')}"
            report("recover", case, value=found[part], unit="s", better="lower", size=size)
        report(
            "recover",
            "peak memory",
            value=found["peak_mib"],
            unit="MiB",
            better="lower",
            size=size,
        )
        for case, took_s in asyncio.run(list_pages(folder)):
            report(
                "recover",
                case,
                value=took_s * 1000,
                unit="ms",
                better="lower",
                goal=500.0,
                size=size,
            )
        assert verify(folder).is_sound
        with closing(connect_writer(folder)) as connection:
            connection.execute("DELETE FROM dumps")
        slow_s, _ = in_a_fresh_process("--recover", folder)
        report(
            "recover",
            "ready again against replaying everything",
            value=ready_s,
            unit="s",
            better="lower",
            baseline="without dumps",
            baseline_value=slow_s,
            size=f"{made['n_events']} events",
        )
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
