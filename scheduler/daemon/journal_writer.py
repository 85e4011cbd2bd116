"""The journal's one writing thread: group commit, and what happens when the disk says no.

Takes everything that is queued, writes it in one transaction with one fsync, then answers all
of it on the event loop in one call, in order. Finished jobs ride along; chores (dumps, pruning)
get transactions of their own, after the events that wait.

When a write fails, nothing of the batch is stored and everything that was queued before the
event loop heard of it fails too: a later event never overtakes an earlier one. The thread then
probes the disk until a write works. A COMMIT that failed half-way is undone before anything
else is written, so an event that was answered with a failure does not come back later.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from scheduler.clock import Clock
from scheduler.core.records import JobRecord
from scheduler.daemon.event_codec import event_crc
from scheduler.daemon.journal_errors import JournalUnavailable
from scheduler.daemon.journal_finished import store_records
from scheduler.daemon.journal_reading import encode_mark
from scheduler.daemon.journal_schema import MARK_NAME, connect_writer
from scheduler.faults import fault

log = logging.getLogger(__name__)

FINISHED_DELAY_S = 0.1
PROBE_INTERVAL_S = 0.5
PROBE_BYTES = 256 * 1024
"""A probe writes this much: room for a batch, not just for the byte that happens to fit."""
CHECKPOINT_BYTES = 8 * 1024 * 1024
"""About so much goes through the write-ahead log before it is moved into the database."""
UPKEEP_BYTES = 1024 * 1024
"""What a round of a chore is taken to write."""
_PAGE_BYTES = 4096

GATHER_S = 0.001
"""How long a commit waits for others to join, if others joined the one before. Callers at the
same time are answered a little later and a fifth more of them: each commit costs the event loop
time, too. A lone caller never waits."""
ROWS_AT_ONCE = 64
"""Events per statement: with each one, the thread gives the interpreter up and waits for it."""

EventRow = tuple[float, str, bytes]
Chore = Callable[[sqlite3.Connection], bool]
"""One transaction's worth of upkeep; true if there is more of it to do."""


@dataclass(slots=True)
class Append:
    """Events that are stored together or not at all."""

    rows: list[EventRow]
    future: asyncio.Future[int]
    epoch: int  # failures the event loop had heard of


@dataclass(slots=True)
class Finished:
    """Jobs whose finishing events are durable; `stored` is called on the loop."""

    records: Sequence[JobRecord]
    stored: Callable[[], None]


@dataclass(slots=True)
class Upkeep:
    """A chore, and who waits for its last round."""

    chore: Chore
    future: asyncio.Future[int]  # rounds it took


@dataclass(slots=True, kw_only=True)
class Figures:
    """What the writer has done since the start. Written by its thread, read by anybody."""

    n_commits: int = 0
    n_events: int = 0
    n_failures: int = 0
    commit_s: float = 0.0  # time in transactions, in total
    last_commit_s: float = 0.0


@dataclass(slots=True)
class _Answers:
    """What the event loop is told after a round of the thread."""

    results: list[tuple[asyncio.Future[int], int | JournalUnavailable]] = field(
        default_factory=list
    )
    stored: list[Callable[[], None]] = field(default_factory=list)


class JournalWriter:
    """Owns the writing connection and its thread."""

    def __init__(self, folder: Path, *, last_sequence: int, clock: Clock) -> None:
        self.figures = Figures()
        self.unavailable_reason: str | None = None  # as the event loop knows it
        self.on_change: Callable[[str | None], None] | None = None
        self._folder = folder
        self._clock = clock
        self._last = last_sequence  # the last event that was, or may be, acknowledged
        self._connection: sqlite3.Connection | None = connect_writer(folder)
        self._mark = os.open(folder / MARK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._changed = threading.Condition()
        self._queue: deque[Append] = deque()
        self._finished: deque[Finished] = deque()
        self._chores: deque[Upkeep] = deque()
        self._is_closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._epoch = 0  # failures so far, as the thread knows it
        self._heard_epoch = 0  # and as the event loop does
        self._reason: str | None = None  # why writing fails, as the thread knows it
        self._unstored: list[Finished] = []  # finished jobs that wait for the disk
        self._last_appends = 0  # that shared the latest commit
        self._unchecked_bytes = 0  # written since the last checkpoint, about
        self._write_mark()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    # On the event loop.

    def append(self, rows: list[EventRow]) -> asyncio.Future[int]:
        """Queue events; the future is the last one's sequence, once durable."""
        future = self._new_future()
        if not future.done():
            self._put(Append(rows, future, self._heard_epoch))
        return future

    def store_finished(self, records: Sequence[JobRecord], stored: Callable[[], None]) -> None:
        """Queue finished jobs; they are kept until the disk takes them."""
        self._loop = asyncio.get_running_loop()
        self._put(Finished(records, stored))

    def do_chore(self, chore: Chore) -> asyncio.Future[int]:
        """Queue upkeep; the future is the number of rounds it took."""
        future = self._new_future()
        if not future.done():
            self._put(Upkeep(chore, future))
        return future

    def close(self) -> None:
        """Write what is queued, stop the thread and tidy the files; blocks. May be repeated."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._disconnect()
        if self._mark >= 0:
            os.close(self._mark)
            self._mark = -1

    def _new_future(self) -> asyncio.Future[int]:
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = self._loop.create_future()
        reason = "it is closed" if self._is_closing else self.unavailable_reason
        if reason is not None:
            future.set_exception(JournalUnavailable(reason))
        return future

    def _put(self, item: Append | Finished | Upkeep) -> None:
        with self._changed:
            match item:
                case Append():
                    self._queue.append(item)
                case Upkeep():
                    self._chores.append(item)
                case Finished():
                    self._finished.append(item)
                    if len(self._finished) > 1:
                        return  # the thread knows already
            self._changed.notify()

    def _hear(self, answers: _Answers, epoch: int, reason: str | None) -> None:
        self._heard_epoch = epoch
        was, self.unavailable_reason = self.unavailable_reason, reason
        for future, result in answers.results:
            if future.done():  # its caller gave up
                continue
            if isinstance(result, JournalUnavailable):
                future.set_exception(result)
            else:
                future.set_result(result)
        for stored in answers.stored:
            stored()
        if was != reason and self.on_change is not None:
            self.on_change(reason)

    # In the thread.

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException:
            log.exception("the writer of the journal in %s has died: a bug", self._folder)
            raise
        finally:
            self._refuse_the_rest()

    def _serve(self) -> None:
        is_closing = False
        while not is_closing:
            appends, upkeep, is_closing = self._take()
            answers = _Answers()
            if self._reason is not None:
                self._probe()
            self._write(appends, answers)
            if upkeep is not None:
                self._round(upkeep, answers)
            self._tell(answers)
            self._checkpoint_when_large()

    def _take(self) -> tuple[list[Append], Upkeep | None, bool]:
        with self._changed:
            while not self._is_urgent():
                if self._finished and self._reason is None:
                    # Nobody waits for these: they go with the next append, if one comes soon.
                    self._changed.wait_for(self._is_urgent, FINISHED_DELAY_S)
                    break
                must_probe = self._reason is not None
                if not self._changed.wait(PROBE_INTERVAL_S if must_probe else None):
                    break
            has_company = self._last_appends > 1 and not self._is_closing
        if has_company:
            time.sleep(GATHER_S)
        with self._changed:
            appends = list(self._queue)
            self._last_appends = len(appends)
            self._queue.clear()
            self._unstored += self._finished
            self._finished.clear()
            upkeep = self._chores.popleft() if self._chores else None
            return appends, upkeep, self._is_closing and not self._chores

    def _is_urgent(self) -> bool:
        return bool(self._queue or self._chores or self._is_closing)

    def _write(self, appends: list[Append], answers: _Answers) -> None:
        late = [append for append in appends if append.epoch != self._epoch]
        answers.results += [(append.future, self._failure()) for append in late]
        appends = [append for append in appends if append.epoch == self._epoch]
        if not appends and not self._unstored:
            return
        fault("journal.committing")
        if self._transact(lambda connection: self._insert(connection, appends)):
            self._acknowledge(appends, answers)
        else:
            answers.results += [(append.future, self._failure()) for append in appends]

    def _insert(self, connection: sqlite3.Connection, appends: list[Append]) -> None:
        rows = [row for append in appends for row in append.rows]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            values: list[float | str | bytes] = []
            some = rows[start : start + ROWS_AT_ONCE]
            for sequence, (at_s, kind, payload) in enumerate(some, self._last + 1 + start):
                crc = event_crc(sequence, kind, payload)
                values += (sequence, at_s, kind, payload, crc)
                self._unchecked_bytes += len(payload)
            connection.execute(_insert_of(len(some)), values)
        fault("journal.inserted")
        for finished in self._unstored:
            store_records(connection, finished.records)
            self._unchecked_bytes += 8 * _PAGE_BYTES * len(finished.records)

    def _acknowledge(self, appends: list[Append], answers: _Answers) -> None:
        for append in appends:
            self._last += len(append.rows)
            self.figures.n_events += len(append.rows)
            answers.results.append((append.future, self._last))
        answers.stored += [finished.stored for finished in self._unstored]
        self._unstored = []
        self._write_mark()

    def _round(self, upkeep: Upkeep, answers: _Answers) -> None:
        more: list[bool] = []
        if not self._transact(lambda connection: more.append(upkeep.chore(connection))):
            answers.results.append((upkeep.future, self._failure()))
        elif more[0]:
            with self._changed:
                self._chores.appendleft(upkeep)
        else:
            answers.results.append((upkeep.future, 0))
        self._unchecked_bytes += UPKEEP_BYTES

    def _transact(self, write: Callable[[sqlite3.Connection], None]) -> bool:
        """Write in one transaction; false after a failure, with nothing stored."""
        if self._connection is None:
            return False
        start_s = self._clock.monotonic_s()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            write(self._connection)
            fault("journal.uncommitted")
            self._connection.execute("COMMIT")
        except Exception as error:
            is_bug = not isinstance(error, sqlite3.Error)
            log.warning("cannot write to %s: %s", self._folder, error, exc_info=is_bug)
            self._fail(str(error))
            return False
        fault("journal.committed")
        self.figures.n_commits += 1
        self.figures.last_commit_s = self._clock.monotonic_s() - start_s
        self.figures.commit_s += self.figures.last_commit_s
        self._unchecked_bytes += 2 * _PAGE_BYTES
        return True

    def _fail(self, reason: str) -> None:
        self.figures.n_failures += 1
        self._epoch += 1
        self._reason = reason
        self._disconnect()

    def _failure(self) -> JournalUnavailable:
        return JournalUnavailable(self._reason or "an earlier write had failed")

    def _probe(self) -> None:
        """Try to write; also undoes a commit that failed but reached the disk all the same."""
        try:
            if self._connection is None:
                self._connection = connect_writer(self._folder)
            with contextlib.suppress(sqlite3.Error):  # the log may hold the space that lacks
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("DELETE FROM events WHERE sequence > ?", (self._last,))
            self._connection.execute(
                "INSERT OR REPLACE INTO probes VALUES (1, zeroblob(?))", (PROBE_BYTES,)
            )
            self._connection.execute("COMMIT")
            self._connection.execute("DELETE FROM probes")
        except sqlite3.Error as error:
            self._reason = str(error)
            self._disconnect()
        else:
            self._reason = None
            log.warning("the journal in %s can be written again", self._folder)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _refuse_the_rest(self) -> None:
        answers = _Answers()
        closed = JournalUnavailable("it is closed")
        with self._changed:
            self._is_closing = True
            late = [append.future for append in self._queue]
            late += [upkeep.future for upkeep in self._chores]
        answers.results = [(future, closed) for future in late]
        self._tell(answers)

    def _write_mark(self) -> None:
        # Not synced: after a power cut it may be older, and a lower bound is all it claims.
        with contextlib.suppress(OSError):
            os.pwrite(self._mark, encode_mark(self._last), 0)

    def _tell(self, answers: _Answers) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._hear, answers, self._epoch, self._reason)

    def _checkpoint_when_large(self) -> None:
        if self._unchecked_bytes < CHECKPOINT_BYTES or self._connection is None:
            return
        self._unchecked_bytes = 0
        fault("journal.checkpointing")
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error:
            log.warning("cannot checkpoint the journal in %s", self._folder, exc_info=True)


@cache
def _insert_of(n_rows: int) -> str:
    """Return the statement that stores so many events."""
    places = ",".join(["(?,?,?,?,?)"] * n_rows)
    return f"INSERT INTO events (sequence, at_s, kind, payload, crc) VALUES {places}"  # noqa: S608
