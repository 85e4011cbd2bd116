"""Journals for tests: numbered events, hand-made finished jobs, and a program to be killed.

`python journal_testing.py FOLDER LAST CHECKPOINT_BYTES` writes numbered events until LAST, with
everything else that a journal does in between, and prints each sequence once acknowledged.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from scheduler.clock import SystemClock
from scheduler.core.dump import DUMP_FORMAT, Dump
from scheduler.core.events import Event, JobCancelled
from scheduler.core.model import (
    Job,
    JobId,
    JobKind,
    JobPhase,
    JobSpec,
    Launch,
    NodeName,
    QueueName,
    Role,
    Task,
    TaskId,
    TaskPhase,
)
from scheduler.core.records import JobRecord
from scheduler.daemon import journal_writer
from scheduler.daemon.job_store import JobStore
from scheduler.daemon.journal import Journal

DUMP_EVERY = 10
FINISH_EVERY = 5


def event(number: int) -> Event:
    """Return an event that tells its number, so that content and place can be compared."""
    return JobCancelled(at_s=float(number), job_id=JobId(str(number)), by="x" * (number % 7))


def events(first: int, last: int) -> list[Event]:
    return [event(number) for number in range(first, last + 1)]


def dump_at(revision: int) -> Dump:
    return Dump(
        format=DUMP_FORMAT, revision=revision, next_sequence=revision + 1, now_s=float(revision)
    )


def job_record(
    sequence: int,
    *,
    phase: JobPhase = JobPhase.SUCCEEDED,
    revision: int | None = None,
    name: str = "train",
    queue: str = "default",
    submitter: str = "",
    kind: JobKind = JobKind.TRAINING,
    priority: int = 0,
    array_id: str | None = None,
    submitted_at_s: float = 0.0,
    labels: tuple[tuple[str, str], ...] = (),
    nodes: Sequence[str] = (),
) -> JobRecord:
    """Return a job as the engine would hand it over."""
    spec = JobSpec(
        name=name,
        roles=(Role(name="worker", launch=Launch(command=("true",))),),
        kind=kind,
        queue=QueueName(queue),
        priority=priority,
        labels=labels,
    )
    job = Job(
        id=JobId(str(sequence)),
        spec=spec,
        sequence=sequence,
        submitted_at_s=submitted_at_s,
        submitter=submitter,
        array_id=None if array_id is None else JobId(array_id),
    )
    tasks = [
        Task(
            id=TaskId(job.id, "worker", index, 1),
            node=NodeName(node),
            rank=index,
            world_size=len(nodes),
            phase=TaskPhase.SUCCEEDED if phase.is_final else TaskPhase.RUNNING,
        )
        for index, node in enumerate(nodes)
    ]
    return JobRecord(
        job=job,
        phase=phase,
        revision=sequence if revision is None else revision,
        tasks={task.id: task for task in tasks},
        ended_at_s=float(sequence) if phase.is_final else 0.0,
        history=["1.000 it happened"],
    )


def recovered_events(folder: Path) -> tuple[int, list[Event]]:
    """Open, recover and close: (revision of the dump, events after it)."""
    journal = Journal.open(folder, clock=SystemClock())
    try:
        recovered = journal.recover()
        start = recovered.dump.revision if recovered.dump else 0
        replayed = list(recovered.events)
        assert [sequence for sequence, _ in replayed] == list(
            range(start + 1, recovered.last_sequence + 1)
        )
        return start, [found for _, found in replayed]
    finally:
        journal.close()


async def _write(folder: Path, last: int, checkpoint_bytes: int) -> None:
    journal_writer.CHECKPOINT_BYTES = checkpoint_bytes
    journal = Journal.open(folder, clock=SystemClock())
    store = JobStore(journal)
    recovered = journal.recover()
    number = recovered.last_sequence

    def finish(sequence: int) -> None:
        store.add([job_record(sequence, labels=(("k", "v"),), nodes=("n1", "n2"))])

    for sequence, _ in recovered.events:
        if sequence % FINISH_EVERY == 0:
            finish(sequence)
    while number < last:
        batches = [events(number + 1, number + 2), events(number + 3, number + 3)]
        for future in [journal.append(batch) for batch in batches]:
            sequence = await future
            os.write(1, f"{sequence}\n".encode())
            for done in range(number + 1, sequence + 1):
                if done % FINISH_EVERY == 0:
                    finish(done)
            number = sequence
        if number % DUMP_EVERY == 0:
            await journal.write_dump(dump_at(number))
            await journal.prune(before_s=number - 3 * DUMP_EVERY)
            await journal.prune_finished(0.0, keep=1000)
    store.close()
    journal.close()


if __name__ == "__main__":
    asyncio.run(_write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
