"""The journal on a healthy disk: order, durability, locking, dumps, pruning, migrations."""

import asyncio
import math
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_testing import dump_at, event, events, job_record, recovered_events

from scheduler.clock import SystemClock
from scheduler.core.dump import Dump, JobDump, OutcomeDump, RequestDump
from scheduler.core.errors import InvalidInput
from scheduler.core.events import (
    Event,
    JobsSubmitted,
    JobUpdated,
    NodeRegistered,
    PlanCommitted,
    QueuePut,
    TaskEnded,
    TaskStarted,
)
from scheduler.core.model import (
    Dependency,
    DependencyKind,
    Gpu,
    JobId,
    JobPhase,
    JobSpec,
    Launch,
    Node,
    NodeName,
    Queue,
    QueueName,
    Role,
    Shape,
    StopCause,
    Taint,
    TaskId,
    Toleration,
)
from scheduler.core.plan import Bind, Eviction, Placement
from scheduler.daemon.event_codec import (
    EVENT_KINDS,
    Unreadable,
    decode_dump,
    decode_event,
    decode_record,
    encode_dump,
    encode_event,
    encode_record,
)
from scheduler.daemon.journal import (
    Journal,
    JournalCorrupt,
    JournalLocked,
    JournalTooNew,
    JournalUnavailable,
)
from scheduler.daemon.journal_reading import read_mark, verify
from scheduler.daemon.journal_schema import MIGRATIONS, connect_writer

CLOCK = SystemClock()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path, clock=CLOCK)
    yield opened
    opened.close()


SPEC = JobSpec(
    name="wide",
    roles=(
        Role(
            name="worker",
            launch=Launch(command=("python", "train.py"), env=(("A", "ü"),)),
            count=2,
            shape=Shape(gpus=1, gpu_types=("A100",), tolerations=(Toleration(key="spot"),)),
        ),
    ),
    dependencies=(Dependency(on=JobId("1"), kind=DependencyKind.AFTER_ANY),),
    labels=(("team", "vision"),),
)
TASK = TaskId(JobId("1_2"), "worker", 0, 1)
SAMPLES: list[Event] = [
    JobsSubmitted(at_s=1.5, spec=SPEC, submitter="ann", request_id="r", fingerprint="f"),
    JobUpdated(at_s=2.0, job_id=JobId("1"), priority=3, replicas=(("worker", 4),)),
    NodeRegistered(
        at_s=3.0,
        node=Node(
            name=NodeName("n"),
            cpu_milli=8000,
            memory_mib=1024,
            gpus=(Gpu(uuid="GPU-1", memory_mib=40_000),),
            taints=(Taint(key="spot"),),
        ),
    ),
    QueuePut(at_s=4.0, queue=Queue(name=QueueName("q"), submitters=("ann",))),
    PlanCommitted(
        at_s=5.0,
        placements=(
            Placement(
                job_id=JobId("1_2"),
                binds=(Bind(task=TASK, node=NodeName("n"), rank=0, devices=(0,)),),
                world_size=1,
            ),
        ),
        evictions=(
            Eviction(job_id=JobId("3"), tasks=(TASK,), cause=StopCause.PREEMPTED, grace_s=30.0),
        ),
    ),
    TaskStarted(at_s=6.0, task=TASK),
    TaskEnded(at_s=7.0, task=TASK, signal=9),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_an_event_comes_back_as_it_was(sample: Event) -> None:
    assert decode_event(*encode_event(sample)) == sample


def test_every_kind_of_event_can_be_stored() -> None:
    assert {type(sample).__name__ for sample in SAMPLES} < EVENT_KINDS
    assert len(EVENT_KINDS) >= 16


@given(
    st.builds(JobsSubmitted, at_s=st.floats(), spec=st.just(SPEC), submitter=st.text())
    | st.builds(TaskEnded, at_s=st.just(1.0), task=st.just(TASK), reason=st.text())
    | st.builds(JobUpdated, at_s=st.just(1.0), job_id=st.text(), time_limit_s=st.floats())
)
def test_what_is_stored_replays_as_what_was_observed_or_is_refused(sample: Event) -> None:
    try:
        kind, payload = encode_event(sample)
    except InvalidInput:
        return
    assert decode_event(kind, payload) == sample


@pytest.mark.parametrize(
    "impossible",
    [
        replace(SAMPLES[0], at_s=math.nan),
        replace(SAMPLES[0], submitter="\ud800"),
        JobUpdated(at_s=1.0, job_id=JobId("1"), time_limit_s=math.inf),  # would become None
        replace(SAMPLES[0], spec=replace(SPEC, labels=[])),
    ],
)
def test_an_event_that_would_come_back_otherwise_is_refused(impossible: Event) -> None:
    with pytest.raises(InvalidInput):
        encode_event(impossible)


def test_fields_of_a_newer_version_are_ignored_and_those_of_an_older_one_defaulted() -> None:
    payload = msgspec.json.encode({"at_s": 1.0, "job_id": "7", "colour": {"deep": [1]}})
    assert decode_event("JobCancelled", payload) == replace(event(7), at_s=1.0, by="")


def test_an_unknown_kind_of_event_is_a_clear_error() -> None:
    with pytest.raises(Unreadable, match="JobTeleported"):
        decode_event("JobTeleported", b"{}")


def test_dumps_and_finished_jobs_come_back_as_they_were() -> None:
    record = job_record(3, labels=(("a", "b"),), nodes=("n1", "n2"))
    assert decode_record(encode_record(record)) == record

    job = JobDump(job=record.job, phase=JobPhase.RUNNING, revision=3)
    outcome = OutcomeDump(
        job_id=JobId("1"), n_elements=1, n_ended=1, n_not_ok=0, ended_at_s=1.0
    )
    request = RequestDump(
        submitter="ann", request_id='"]\n', fingerprint="f", job_id=JobId("1"), at_s=1.0
    )
    dump = replace(
        dump_at(9), jobs=(job,) * 1001, outcomes=(outcome,) * 777, requests=(request,)
    )
    assert decode_dump(encode_dump(dump)) == dump
    with pytest.raises(Unreadable, match="format 99"):
        decode_dump(zlib.compress(msgspec.json.encode(replace(dump_at(9), format=99))))


async def test_events_come_back_in_the_order_in_which_they_were_appended(
    tmp_path: Path, journal: Journal
) -> None:
    told: list[int] = []
    futures = [journal.append(events(n, n + 1)) for n in range(1, 200, 2)]
    for future in futures:
        future.add_done_callback(lambda done: told.append(done.result()))
    await asyncio.gather(*futures)
    assert told == list(range(2, 201, 2))
    assert journal.figures.n_commits < len(futures)  # they shared commits

    journal.close()
    assert recovered_events(tmp_path) == (0, events(1, 200))


async def test_an_event_is_on_the_disk_when_its_future_is_done(
    tmp_path: Path, journal: Journal
) -> None:
    reader = sqlite3.connect(tmp_path / "journal.sqlite")
    for number in range(1, 20):
        assert await journal.append([event(number)]) == number
        assert reader.execute("SELECT max(sequence) FROM events").fetchone() == (number,)
        assert read_mark(tmp_path) == number
    reader.close()


async def test_an_append_whose_caller_left_is_stored_all_the_same(
    tmp_path: Path, journal: Journal
) -> None:
    journal.append([event(1)]).cancel()
    assert await journal.append([event(2)]) == 2


async def test_an_event_that_cannot_be_stored_takes_no_place(journal: Journal) -> None:
    with pytest.raises(InvalidInput):
        journal.append([event(1), replace(event(2), at_s=math.nan)])
    assert await journal.append([event(1)]) == 1


async def test_closing_writes_what_is_queued_and_refuses_what_comes_later(
    tmp_path: Path, journal: Journal
) -> None:
    queued = [journal.append([event(number)]) for number in range(1, 50)]
    journal.close()
    assert [await future for future in queued] == list(range(1, 50))
    with pytest.raises(JournalUnavailable, match="closed"):
        await journal.append([event(50)])
    assert recovered_events(tmp_path) == (0, events(1, 49))


def test_a_second_opener_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from scheduler.clock import SystemClock;"
            "from scheduler.daemon.journal import Journal;"
            "journal = Journal.open(Path(sys.argv[1]), clock=SystemClock());"
            "print('open', flush=True); sys.stdin.read()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(JournalLocked, match=f"process {holder.pid}"):
            Journal.open(tmp_path, clock=CLOCK)
        holder.kill()
    Journal.open(tmp_path, clock=CLOCK).close()  # the lock dies with its holder


async def test_a_replay_starts_from_the_newest_dump(tmp_path: Path, journal: Journal) -> None:
    for number in range(1, 31):
        await journal.append([event(number)])
        if number % 10 == 5:
            await journal.write_dump(dump_at(number))
    journal.close()
    assert recovered_events(tmp_path) == (25, events(26, 30))
    assert verify(tmp_path).dumps == (25, 15)


async def test_a_dump_with_no_event_after_it_is_where_numbering_goes_on(
    tmp_path: Path, journal: Journal
) -> None:
    for number in range(1, 21):
        await journal.append([event(number)])
        if number % 10 == 0:
            await journal.write_dump(dump_at(number))
    await journal.prune(before_s=math.inf)
    journal.close()

    again = Journal.open(tmp_path, clock=CLOCK)
    assert again.recover().last_sequence == 20
    assert await again.append([event(21)]) == 21
    again.close()


@pytest.mark.parametrize(("before_s", "first_kept"), [(0.0, 1), (7.0, 7), (1e9, 11)])
async def test_history_is_forgotten_up_to_a_moment_but_never_past_the_older_dump(
    tmp_path: Path, journal: Journal, before_s: float, first_kept: int
) -> None:
    await journal.append(events(1, 10))
    await journal.write_dump(dump_at(10))
    await journal.prune(before_s=1e9)  # only one dump yet: nothing goes
    await journal.append(events(11, 20))
    await journal.write_dump(dump_at(20))
    await journal.append(events(21, 25))
    await journal.prune(before_s=before_s)
    journal.close()
    findings = verify(tmp_path)
    assert (findings.first_sequence, findings.last_sequence) == (first_kept, 25)
    assert findings.is_sound


async def test_pruning_much_lets_appends_through_in_between(
    tmp_path: Path, journal: Journal
) -> None:
    await journal.append(events(1, 20_000))
    await journal.write_dump(dump_at(19_000))
    await journal.write_dump(dump_at(20_000))
    pruned = asyncio.ensure_future(journal.prune(before_s=1e9))
    await asyncio.sleep(0)
    assert await journal.append([event(20_001)]) == 20_001
    assert not pruned.done()
    await pruned
    journal.close()
    assert verify(tmp_path).first_sequence == 19_001


def make_version_1(folder: Path, last: int) -> None:
    """Write a journal as the first schema had it: without checksums or finished jobs."""
    connection = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    connection.execute("BEGIN")
    MIGRATIONS[0](connection)
    connection.executemany(
        "INSERT INTO events VALUES (?,?,?,?)",
        [(n, float(n), *encode_event(event(n))) for n in range(1, last + 1)],
    )
    connection.execute("INSERT INTO dumps VALUES (?,?)", (4, encode_dump(dump_at(4))))
    connection.execute("PRAGMA user_version=1")
    connection.execute("COMMIT")
    connection.close()


async def test_a_journal_of_the_first_schema_is_migrated(tmp_path: Path) -> None:
    make_version_1(tmp_path, 6)
    assert not verify(tmp_path).is_sound  # says that it is old, and leaves it as it is
    assert recovered_events(tmp_path) == (4, events(5, 6))
    findings = verify(tmp_path)
    assert findings.is_sound
    assert findings.schema == len(MIGRATIONS)


@pytest.mark.parametrize("n_steps", range(len(MIGRATIONS)))
def test_a_migration_killed_in_the_middle_goes_on_at_the_next_start(
    tmp_path: Path, n_steps: int
) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "journal_testing.py", tmp_path, "3", "9999"],
        env={"LEPTON_FAULT": f"journal.migrating:{n_steps + 1}", "PYTHONPATH": "."},
        check=False,
    )
    assert done.returncode == -9
    connection = sqlite3.connect(tmp_path / "journal.sqlite")
    assert connection.execute("PRAGMA user_version").fetchone() == (n_steps,)
    connection.close()
    assert recovered_events(tmp_path) == (0, [])


def test_a_journal_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Journal.open(tmp_path, clock=CLOCK).close()
    connection = connect_writer(tmp_path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(JournalTooNew, match="schema version 99"):
        Journal.open(tmp_path, clock=CLOCK)


def test_a_strangers_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(JournalCorrupt, match="not a Lepton journal"):
        Journal.open(tmp_path, clock=CLOCK)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]
    connection.close()


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    Journal.open(tmp_path / "state", clock=CLOCK).close()
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "state").iterdir()}
    assert modes == {0}


def test_the_dump_type_is_what_the_engine_makes() -> None:
    from scheduler.core.engine import Engine

    engine = Engine()
    engine.observe(SAMPLES[2])
    dump: Dump = engine.dump()
    assert decode_dump(encode_dump(dump)) == dump
