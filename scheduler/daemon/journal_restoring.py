"""A damaged journal becomes one that a daemon starts from: what replays, without what does not.

Everything up to the first damage after the newest readable dump is kept, and every finished job
that can be read. What comes after a gap is not: ids and verdicts follow from what came before,
so replaying it would be another history. The damaged files are put aside, never removed.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from scheduler.core.errors import SchedulerError
from scheduler.daemon.event_codec import Unreadable, decode_event, decode_record, event_crc
from scheduler.daemon.journal import lock_folder
from scheduler.daemon.journal_errors import JournalCorrupt, JournalUnavailable
from scheduler.daemon.journal_finished import store_records
from scheduler.daemon.journal_reading import (
    DAMAGED,
    dump_sequences,
    encode_mark,
    find_replay,
    highest_sequence,
    read_dump,
    read_mark,
    require_current,
)
from scheduler.daemon.journal_schema import (
    DATABASE_NAME,
    MARK_NAME,
    connect_reader,
    connect_writer,
    migrate,
)

_ROWS_AT_ONCE = 1000
_DRAFT_NAME = "journal.restoring"


class NothingToRestore(SchedulerError):
    """The journal is sound: a daemon starts from it as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What became of a damaged journal."""

    start_sequence: int  # of the dump that the replay starts from; 0: the first event
    last_sequence: int
    lost_until: int  # the highest event that there was; `last_sequence` if none is lost
    n_finished: int
    n_finished_lost: int
    damaged: Path  # where the damaged files are now


def restore(folder: Path) -> Restored:
    """Replace a damaged journal by what can be started from.

    Raises `JournalLocked`, `NothingToRestore`, `JournalUnavailable` where the disk is full, or
    `JournalCorrupt` where nothing can be saved; and then has changed nothing.
    """
    lock = lock_folder(folder)
    try:
        return _restore(folder)
    except sqlite3.OperationalError as error:  # a full disk
        raise JournalUnavailable(str(error)) from error
    except DAMAGED as error:
        raise JournalCorrupt(folder, f"nothing of it can be read: {error}") from error
    finally:
        _clear(folder / _DRAFT_NAME)
        os.close(lock)


def _restore(folder: Path) -> Restored:
    with closing(connect_reader(folder)) as damaged:
        require_current(damaged, folder)
        _require_damage(damaged, folder)
        draft = folder / _DRAFT_NAME
        _clear(draft)
        draft.mkdir(mode=0o700)
        with closing(connect_writer(draft)) as fresh:
            migrate(fresh, draft)
            start = _copy_dump(damaged, fresh)
            last = _copy_events(damaged, fresh, start)
            if not last:
                raise JournalCorrupt(folder, "neither a dump nor the first event can be read")
            n_finished, n_finished_lost = _copy_finished(damaged, fresh, last)
            fresh.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        lost_until = max(last, highest_sequence(damaged, folder))
    return Restored(
        start_sequence=start,
        last_sequence=last,
        lost_until=lost_until,
        n_finished=n_finished,
        n_finished_lost=n_finished_lost,
        damaged=_put_in_place(folder, draft, last),
    )


def _require_damage(damaged: sqlite3.Connection, folder: Path) -> None:
    try:
        find_replay(damaged, folder, acknowledged=read_mark(folder))
    except JournalCorrupt:
        return
    raise NothingToRestore(f"the journal in {folder} can be started from as it is")


def _copy_dump(damaged: sqlite3.Connection, fresh: sqlite3.Connection) -> int:
    """Copy the newest readable dump; return its sequence, or 0."""
    for sequence in dump_sequences(damaged):
        try:
            read_dump(damaged, sequence)
        except Unreadable:
            continue
        row = damaged.execute("SELECT * FROM dumps WHERE sequence = ?", (sequence,)).fetchone()
        fresh.execute("INSERT INTO dumps (sequence, payload, crc) VALUES (?,?,?)", row)
        return sequence
    return 0


def _copy_events(damaged: sqlite3.Connection, fresh: sqlite3.Connection, start: int) -> int:
    """Copy what follows without a gap; return the last sequence."""
    last = start
    rows = []
    for row in _sound_events(damaged, start):
        rows.append(row)
        last = row[0]
        if len(rows) == _ROWS_AT_ONCE:
            _insert_events(fresh, rows)
            rows = []
    _insert_events(fresh, rows)
    return last


_Row = tuple[int, float, str, bytes, int]


def _sound_events(damaged: sqlite3.Connection, start: int) -> Iterator[_Row]:
    """Yield the events after a sequence up to the first that is missing or wrong."""
    try:
        rows = damaged.execute(
            "SELECT sequence, at_s, kind, payload, crc FROM events"
            " WHERE sequence > ? ORDER BY sequence",
            (start,),
        )
        for expected, (sequence, at_s, kind, payload, crc) in zip(
            count(start + 1), rows, strict=False
        ):
            if sequence != expected or event_crc(sequence, kind, payload) != crc:
                return
            decode_event(kind, payload)
            yield sequence, at_s, kind, payload, crc
    except (*DAMAGED, Unreadable):
        return


def _insert_events(fresh: sqlite3.Connection, rows: list[_Row]) -> None:
    fresh.execute("BEGIN")
    fresh.executemany(
        "INSERT INTO events (sequence, at_s, kind, payload, crc) VALUES (?,?,?,?,?)", rows
    )
    fresh.execute("COMMIT")


def _copy_finished(
    damaged: sqlite3.Connection, fresh: sqlite3.Connection, last: int
) -> tuple[int, int]:
    """Copy the finished jobs that can be read; return how many, and how many are lost."""
    n_kept = n_lost = 0
    try:
        found = damaged.execute(
            "SELECT sequence FROM finished_jobs WHERE revision <= ? ORDER BY sequence", (last,)
        ).fetchall()
    except DAMAGED:
        return 0, 0
    fresh.execute("BEGIN")
    for (sequence,) in found:
        try:
            row = damaged.execute(
                "SELECT crc, payload FROM finished_records WHERE sequence = ?", (sequence,)
            ).fetchone()
            if row is None or event_crc(sequence, "finished", row[1]) != row[0]:
                raise Unreadable(f"the finished job of sequence {sequence}")
            record = decode_record(row[1])
        except (*DAMAGED, Unreadable):
            n_lost += 1
        else:
            store_records(fresh, [record])
            n_kept += 1
    fresh.execute("COMMIT")
    return n_kept, n_lost


def _put_in_place(folder: Path, draft: Path, last: int) -> Path:
    """Put the damaged files aside and the new one in their place.

    The mark goes last: whoever dies in between leaves a journal that is refused, and not one
    that looks whole.
    """
    aside = next(
        path for n in count(1) if not (path := folder / f"journal.damaged-{n}").exists()
    )
    aside.mkdir(mode=0o700)
    for name in (DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm", MARK_NAME):
        if (folder / name).exists():
            os.link(folder / name, aside / name)
    for name in (f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"):
        (folder / name).unlink(missing_ok=True)
    os.replace(draft / DATABASE_NAME, folder / DATABASE_NAME)
    mark = draft / MARK_NAME
    mark.touch(mode=0o600)
    mark.write_bytes(encode_mark(last))
    os.replace(mark, folder / MARK_NAME)
    return aside


def _clear(draft: Path) -> None:
    if draft.is_dir():
        for path in draft.iterdir():
            path.unlink()
        draft.rmdir()
