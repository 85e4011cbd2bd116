"""The journal: every event, in order, on the disk before anybody hears of it.

    journal = Journal.open(folder, clock=clock)     # locks, migrates, checks, or raises
    recovered = journal.recover()                   # dump | None, the events after it
    sequence = await journal.append(events)         # durable; order kept; JournalUnavailable
    journal.write_dump(engine.dump())               # bounds the next replay
    await journal.prune(before_s)                   # history older than that may go
    journal.close()

`append`, `write_dump`, `prune` and `store_finished` are called on the event loop and return at
once; `open`, `recover` and `close` block. Futures are resolved in the order of the calls. While
the disk refuses, `unavailable_reason` says why, appends fail at once, and `on_change` is called
on the loop with the reason, then with None when it works again. Finished jobs share the file;
`job_store` reads them.
"""

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from scheduler.clock import Clock
from scheduler.core.dump import Dump
from scheduler.core.events import Event
from scheduler.core.records import JobRecord
from scheduler.daemon.event_codec import dump_crc, encode_dump, encode_event
from scheduler.daemon.journal_errors import (
    JournalCorrupt,
    JournalLocked,
    JournalTooNew,
    JournalUnavailable,
)
from scheduler.daemon.journal_finished import PRUNE_CHUNK, prune_records
from scheduler.daemon.journal_reading import (
    DAMAGED,
    Replay,
    find_replay,
    read_events,
    read_mark,
)
from scheduler.daemon.journal_schema import (
    DATABASE_NAME,
    LOCK_NAME,
    connect_reader,
    connect_writer,
    migrate,
    schema_version,
)
from scheduler.daemon.journal_writer import Figures, JournalWriter
from scheduler.faults import fault

__all__ = [
    "Figures",
    "Journal",
    "JournalCorrupt",
    "JournalLocked",
    "JournalTooNew",
    "JournalUnavailable",
    "Recovered",
]

log = logging.getLogger(__name__)

_PRUNE_EVENTS_CHUNK = 5000
_REFUSED_BY_THE_DISK = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What to start from: restore the dump, then observe the events."""

    dump: Dump | None
    events: Iterator[tuple[int, Event]]  # (sequence, event), without a gap
    last_sequence: int
    warnings: tuple[str, ...]  # damage that was got around


class Journal:
    """The one owner of a journal's folder."""

    def __init__(self, folder: Path, *, lock: int, replay: Replay, clock: Clock) -> None:
        self.folder = folder
        self._lock = lock
        self._replay: Replay | None = replay
        # Two dumps are kept, so that one bad one costs a longer replay and not the state.
        self._dumps = [replay.dump.revision] if replay.dump else []
        self._writer = JournalWriter(folder, last_sequence=replay.last_sequence, clock=clock)
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="journal-dump")

    @classmethod
    def open(cls, folder: Path, *, clock: Clock) -> Self:
        """Take the folder over: lock it, migrate the file, check what a replay needs.

        Raises `JournalLocked`, `JournalTooNew`, `JournalCorrupt`, or `JournalUnavailable` where
        the disk does not let it; and then holds nothing.
        """
        _make_folder(folder)
        lock = lock_folder(folder)
        try:
            replay = _check(folder)
            for warning in replay.warnings:
                log.warning("recovery got around damage in %s: %s", folder, warning)
            return cls(folder, lock=lock, replay=replay, clock=clock)
        except BaseException:
            os.close(lock)
            raise

    @property
    def figures(self) -> Figures:
        """What was written since the start."""
        return self._writer.figures

    @property
    def unavailable_reason(self) -> str | None:
        """Why nothing can be written right now; None: it can."""
        return self._writer.unavailable_reason

    def on_change(self, tell: Callable[[str | None], None]) -> None:
        """Have the loop told whenever writing starts to fail (why) or works again (None)."""
        self._writer.on_change = tell

    def recover(self) -> Recovered:
        """Return where to start from. Once only: the dump is large, and not kept here."""
        replay, self._replay = self._replay, None
        assert replay is not None, "what was recovered has been handed over before"
        return Recovered(
            dump=replay.dump,
            events=_events(self.folder, replay.start_sequence, replay.last_sequence),
            last_sequence=replay.last_sequence,
            warnings=replay.warnings,
        )

    def append(self, events: Sequence[Event]) -> asyncio.Future[int]:
        """Store events together or not at all; the future is the last one's sequence.

        Raises `InvalidInput` for an event that cannot be stored; the future fails with
        `JournalUnavailable`. An event may be durable although its waiter was cancelled.
        """
        return self._writer.append([(event.at_s, *encode_event(event)) for event in events])

    def store_finished(self, records: Sequence[JobRecord], stored: Callable[[], None]) -> None:
        """Keep finished jobs; `stored` is called once they are in the file.

        They stay in memory while the disk refuses. For `JobStore`, who shows them meanwhile.
        """
        self._writer.store_finished(records, stored)

    async def write_dump(self, dump: Dump) -> None:
        """Store a dump of a revision that was journalled; finished jobs up to it are stored."""
        loop = asyncio.get_running_loop()
        fault("journal.dump_encoding")
        blob = await loop.run_in_executor(self._encoder, encode_dump, dump)
        keep = [*[s for s in self._dumps if s != dump.revision][-1:], dump.revision]
        await self._writer.do_chore(lambda connection: _store_dump(connection, blob, keep))
        self._dumps = keep

    async def prune(self, before_s: float) -> None:
        """Forget events older than a moment, as far as the kept dumps do without them."""
        if len(self._dumps) > 1:
            bound = self._dumps[0]
            await self._writer.do_chore(lambda c: _prune_events(c, bound, before_s))

    async def prune_finished(self, before_s: float, *, keep: int | None = None) -> None:
        """Forget finished jobs that ended before a moment, and all but the newest `keep`."""

        def chunk(connection: sqlite3.Connection) -> bool:
            fault("journal.pruning_finished")
            return prune_records(connection, before_s, keep) == PRUNE_CHUNK

        await self._writer.do_chore(chunk)

    def close(self) -> None:
        """Write what is queued and let the folder go. May be repeated."""
        self._encoder.shutdown()
        self._writer.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return
    # Other users' tasks pass through to what is theirs, but look at nothing: files are private.
    folder.chmod(0o711)


def lock_folder(folder: Path) -> int:
    """Own a journal's folder until the descriptor is closed. Raises `JournalLocked`."""
    lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise JournalLocked(folder, int(holder) if holder.isdigit() else None) from error
    with suppress(OSError):  # a full disk: the lock holds, only its name is missing
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _check(folder: Path) -> Replay:
    path = folder / DATABASE_NAME
    try:
        if path.exists() and path.stat().st_size:
            with closing(connect_reader(folder)) as connection:
                schema_version(connection, folder)  # refuses before anything is changed
        with closing(connect_writer(folder)) as connection:
            migrate(connection, folder)
            return find_replay(connection, folder, acknowledged=read_mark(folder))
    except DAMAGED as error:
        if (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _REFUSED_BY_THE_DISK:
            raise JournalUnavailable(f"{folder}: {error}") from error
        raise JournalCorrupt(folder, f"it cannot be read: {error}") from error


def _events(folder: Path, after: int, until: int) -> Iterator[tuple[int, Event]]:
    with closing(connect_reader(folder)) as connection:
        yield from read_events(connection, folder, after=after, until=until)


def _store_dump(connection: sqlite3.Connection, blob: bytes, keep: list[int]) -> bool:
    sequence = keep[-1]
    fault("journal.dumping")
    connection.execute(
        "INSERT OR REPLACE INTO dumps (sequence, payload, crc) VALUES (?,?,?)",
        (sequence, blob, dump_crc(sequence, blob)),
    )
    fault("journal.dump_written")
    connection.execute("DELETE FROM dumps WHERE sequence NOT IN (?, ?)", (keep[0], keep[-1]))
    return False


def _prune_events(connection: sqlite3.Connection, bound: int, before_s: float) -> bool:
    rows = connection.execute(
        "SELECT sequence, at_s FROM events WHERE sequence <= ? ORDER BY sequence LIMIT ?",
        (bound, _PRUNE_EVENTS_CHUNK),
    ).fetchall()
    # From the front only, so that what stays has no gap, even where clocks went back.
    kept = next((sequence for sequence, at_s in rows if at_s >= before_s), None)
    last = rows[-1][0] if rows and kept is None else (kept or 1) - 1
    fault("journal.pruning")
    connection.execute("DELETE FROM events WHERE sequence <= ?", (last,))
    fault("journal.pruned")
    return kept is None and len(rows) == _PRUNE_EVENTS_CHUNK
