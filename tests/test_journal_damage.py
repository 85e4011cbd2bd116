"""A journal whose process is killed or whose file is damaged: whole or refused, never less."""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from journal_testing import (
    DUMP_EVERY,
    FINISH_EVERY,
    dump_at,
    event,
    events,
    job_record,
    recovered_events,
)

from scheduler.clock import SystemClock
from scheduler.core.model import JobId
from scheduler.daemon.job_store import JobStore
from scheduler.daemon.journal import Journal, JournalCorrupt
from scheduler.daemon.journal_reading import salvage_events, verify
from scheduler.daemon.journal_schema import connect_writer

PROGRAM = Path(__file__).parent / "journal_testing.py"
FAULT_POINTS = (
    "journal.committing",
    "journal.inserted",
    "journal.uncommitted",
    "journal.committed",
    "journal.checkpointing",
    "journal.dump_encoding",
    "journal.dumping",
    "journal.dump_written",
    "journal.pruning",
    "journal.pruned",
    "journal.pruning_finished",
)


def write_until_killed(
    folder: Path, fault: str = "", *, lines: int = 0, checkpoint_bytes: int = 128 * 1024
) -> int:
    """Run the program until it dies; the last sequence that it said was acknowledged."""
    program = subprocess.Popen(
        [sys.executable, PROGRAM, folder, "100000", str(checkpoint_bytes)],
        stdout=subprocess.PIPE,
        env={**os.environ, "LEPTON_FAULT": fault},
        cwd=PROGRAM.parent.parent,
    )
    with program:
        told: list[int] = []
        for line in program.stdout:
            told.append(int(line))
            if lines and len(told) == lines:
                program.kill()
    assert program.returncode in (-signal.SIGKILL, 0)
    return told[-1] if told else 0


def check_everything_acknowledged_is_there(folder: Path, acknowledged: int) -> None:
    start, replayed = recovered_events(folder)
    last = start + len(replayed)
    assert replayed == events(start + 1, last)
    assert acknowledged <= last <= acknowledged + 3  # at most what was in flight
    findings = verify(folder)
    assert findings.problems == ()
    with closing(sqlite3.connect(folder / "journal.sqlite")) as connection:
        found = {row[0] for row in connection.execute("SELECT revision FROM finished_jobs")}
    assert found >= set(range(FINISH_EVERY, start + 1, FINISH_EVERY))  # those of the dump


@pytest.mark.parametrize("point", FAULT_POINTS)
def test_killed_at_a_fault_point_nothing_acknowledged_is_lost(
    tmp_path: Path, point: str
) -> None:
    acknowledged = 0
    for n_passes in (2, 13):  # the second time on top of what the first left behind
        acknowledged = write_until_killed(tmp_path, f"{point}:{n_passes}") or acknowledged
        check_everything_acknowledged_is_there(tmp_path, acknowledged)
    assert acknowledged > DUMP_EVERY


def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    rng = random.Random(4)
    for _ in range(4):
        acknowledged = write_until_killed(tmp_path, lines=rng.randrange(1, 400))
        findings = verify(tmp_path)  # as it was left: nobody has recovered it yet
        assert findings.is_sound
        assert findings.last_sequence >= acknowledged
        # The program may have told more than was read before the signal came.
        start, replayed = recovered_events(tmp_path)
        assert replayed == events(start + 1, start + len(replayed))
        assert start + len(replayed) == findings.last_sequence


async def journal_with(folder: Path, last: int, *, dumps: Sequence[int] = ()) -> None:
    journal = Journal.open(folder, clock=SystemClock())
    store = JobStore(journal)
    for number in range(1, last + 1):
        await journal.append([event(number)])
        if number in dumps:
            store.add([job_record(number)])
            await journal.write_dump(dump_at(number))
    store.close()
    journal.close()


def test_a_write_ahead_log_cut_anywhere_is_never_a_silent_loss(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    last = write_until_killed(whole, "journal.committed:40", checkpoint_bytes=1 << 30)
    size = (whole / "journal.sqlite-wal").stat().st_size
    rng = random.Random(1)
    n_refused = 0
    for cut in sorted(rng.randrange(size) for _ in range(25)):
        torn = tmp_path / "torn"
        shutil.copytree(whole, torn)
        os.truncate(torn / "journal.sqlite-wal", cut)
        try:
            start, replayed = recovered_events(torn)
        except JournalCorrupt:
            n_refused += 1
        else:
            assert start + len(replayed) >= last
            assert replayed == events(start + 1, start + len(replayed))
        shutil.rmtree(torn)
    assert n_refused > 10


async def test_a_missing_write_ahead_log_is_noticed(tmp_path: Path) -> None:
    write_until_killed(tmp_path, "journal.committed:20", checkpoint_bytes=1 << 30)
    (tmp_path / "journal.sqlite-wal").unlink()
    (tmp_path / "journal.sqlite-shm").unlink()
    with pytest.raises(JournalCorrupt):
        Journal.open(tmp_path, clock=SystemClock())


async def test_an_older_copy_put_back_is_noticed_and_can_be_insisted_on(tmp_path: Path) -> None:
    await journal_with(tmp_path, 5)
    older = (tmp_path / "journal.sqlite").read_bytes()
    journal = Journal.open(tmp_path, clock=SystemClock())
    await journal.append(events(6, 9))
    journal.close()
    (tmp_path / "journal.sqlite").write_bytes(older)
    with pytest.raises(JournalCorrupt, match="events 6 to 9 had been acknowledged") as caught:
        Journal.open(tmp_path, clock=SystemClock())
    assert caught.value.last_good_sequence == 5

    (tmp_path / "journal.mark").unlink()
    assert recovered_events(tmp_path) == (0, events(1, 5))


async def test_a_flipped_byte_in_an_event_is_found_and_located(tmp_path: Path) -> None:
    await journal_with(tmp_path, 30, dumps=[10])
    _execute(
        tmp_path,
        "UPDATE events SET payload = CAST(replace(payload, '17', '71') AS BLOB)"
        " WHERE sequence = 17",
    )
    with pytest.raises(JournalCorrupt, match="event 17 has a wrong checksum") as caught:
        Journal.open(tmp_path, clock=SystemClock())
    assert (caught.value.dump_sequence, caught.value.last_good_sequence) == (10, 16)
    findings = verify(tmp_path)
    assert findings.replay_from is None
    assert findings.problems == ("event 17 has a wrong checksum",)
    assert [found for found, _ in salvage_events(tmp_path)] == [*range(1, 17), *range(18, 31)]


async def test_damage_before_the_dump_stops_verify_but_not_a_start(tmp_path: Path) -> None:
    await journal_with(tmp_path, 20, dumps=[10])
    _execute(tmp_path, "DELETE FROM events WHERE sequence = 4")
    assert recovered_events(tmp_path) == (10, events(11, 20))
    assert verify(tmp_path).problems == ("event 4 is missing",)


async def test_missing_events_after_the_dump_stop_a_start(tmp_path: Path) -> None:
    await journal_with(tmp_path, 20, dumps=[10])
    _execute(tmp_path, "DELETE FROM events WHERE sequence BETWEEN 13 AND 15")
    with pytest.raises(JournalCorrupt, match=r"event 13 is missing \(to 15\)"):
        Journal.open(tmp_path, clock=SystemClock())


async def test_a_damaged_dump_costs_a_longer_replay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await journal_with(tmp_path, 30, dumps=[10, 20])
    _execute(tmp_path, "UPDATE dumps SET payload = zeroblob(50) WHERE sequence = 20")
    assert recovered_events(tmp_path) == (10, events(11, 30))
    assert "the dump at 20 has a wrong checksum" in caplog.text

    # The next dump replaces the damaged one, not the one that still works.
    journal = Journal.open(tmp_path, clock=SystemClock())
    await journal.append([event(31)])
    await journal.write_dump(dump_at(31))
    journal.close()
    assert verify(tmp_path).dumps == (31, 10)


async def test_both_dumps_damaged_replays_from_the_first_event_while_it_is_there(
    tmp_path: Path,
) -> None:
    await journal_with(tmp_path, 30, dumps=[10, 20])
    _execute(tmp_path, "UPDATE dumps SET crc = crc + 1")
    assert recovered_events(tmp_path) == (0, events(1, 30))
    _execute(tmp_path, "DELETE FROM events WHERE sequence < 5")
    with pytest.raises(JournalCorrupt, match="event 1 is missing") as caught:
        Journal.open(tmp_path, clock=SystemClock())
    assert "no state can be recovered" in str(caught.value)


async def test_a_damaged_finished_job_is_found(tmp_path: Path) -> None:
    await journal_with(tmp_path, 10, dumps=[5, 10])
    _execute(tmp_path, "UPDATE finished_records SET payload = x'7b7d' WHERE sequence = 5")
    assert verify(tmp_path).problems == ("the finished job 5 has a wrong checksum",)


async def test_bytes_flipped_anywhere_are_found_or_harmless(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    await journal_with(whole, 300, dumps=[100, 200])
    size = (whole / "journal.sqlite").stat().st_size
    rng = random.Random(2)
    n_found = 0
    for _ in range(60):
        bad = tmp_path / "bad"
        shutil.copytree(whole, bad)
        with (bad / "journal.sqlite").open("r+b") as file:
            file.seek(rng.randrange(size))
            file.write(rng.randbytes(16))
        sound = await asyncio.to_thread(lambda bad=bad: verify(bad).is_sound)
        try:
            start, replayed = recovered_events(bad)
        except JournalCorrupt:
            n_found += 1
        else:
            assert (start, replayed) in [
                (200, events(201, 300)),
                (100, events(101, 300)),
                (0, events(1, 300)),
            ]
            n_found += not sound
        assert all(found == event(number) for number, found in _salvaged(bad))
        shutil.rmtree(bad)
    assert n_found > 10


def _salvaged(folder: Path) -> list[tuple[int, object]]:
    try:
        return list(salvage_events(folder))
    except (sqlite3.Error, ValueError):  # its first page is gone: nothing can be read at all
        return []


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.mark"])
def test_a_file_of_rubbish_is_refused_or_does_not_matter(tmp_path: Path, name: str) -> None:
    Journal.open(tmp_path, clock=SystemClock()).close()
    (tmp_path / name).write_bytes(b"rubbish" * 1000)
    if name == "journal.mark":
        assert recovered_events(tmp_path) == (0, [])
    else:
        with pytest.raises(JournalCorrupt, match="not a database"):
            Journal.open(tmp_path, clock=SystemClock())


async def test_finished_jobs_that_were_not_written_are_found_again(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, clock=SystemClock())
    await journal.append(events(1, 3))
    journal.close()  # before anybody stored that event 2 finished a job

    journal = Journal.open(tmp_path, clock=SystemClock())
    store = JobStore(journal)
    store.add([job_record(2)])  # as the replay says again
    assert await store.get(JobId("2")) == job_record(2)
    store.close()
    journal.close()
    assert verify(tmp_path).n_finished == 1


def _execute(folder: Path, statement: str) -> None:
    with closing(connect_writer(folder)) as connection:
        connection.execute(statement)
