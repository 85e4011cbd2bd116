"""Jobs for readers: the finished ones from the journal's file, listed together with live ones.

    store.add(outcome.finished)                   # on the loop, right after observing
    record = await store.get(job_id)              # finished jobs only; live ones: engine.job
    page = await store.list(engine, filter=..., order_by=..., page_size=..., page_token=...)

A job is in exactly one of three places, told apart by the revision of its last change: stored
in the file, finished but still on its way there (shown from memory), or live in the engine. A
list looks at all three as of one revision, so a job that finishes meanwhile is neither missed
nor shown twice. Files are read in threads; the loop only filters what is in memory.
"""

import asyncio
import base64
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import msgspec

from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobId
from scheduler.core.records import JobRecord
from scheduler.daemon.job_filter import (
    JobFilter,
    JobOrder,
    Value,
    Where,
    parse_filter,
    parse_order,
)
from scheduler.daemon.journal import Journal
from scheduler.daemon.journal_finished import find_record, load_records, stored_revision
from scheduler.daemon.journal_schema import connect_reader

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_N_READERS = 2

Answer = TypeVar("Answer")


class LiveJobs(Protocol):
    """The part of the engine that lists read."""

    @property
    def revision(self) -> int:
        """The number of observed events."""

    def jobs(self) -> Iterable[JobRecord]:
        """Return all live jobs in order of sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of a list; an empty token says that it is the last."""

    records: tuple[JobRecord, ...]
    next_page_token: str
    total_size: int  # of the whole list, at this revision
    revision: int


@dataclass(frozen=True, slots=True)
class _Query:
    filter: JobFilter
    order: JobOrder
    place: tuple[Value, ...] | None  # the last job of the page before
    size: int


class JobStore:
    """Finished jobs, and lists of all jobs."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._folder = journal.folder
        self._on_the_way: dict[JobId, JobRecord] = {}  # finished, not yet in the file
        self._threads = ThreadPoolExecutor(_N_READERS, thread_name_prefix="job-store")
        self._own = threading.local()
        self._connections: list[sqlite3.Connection] = []
        connection = self._connection()
        self._stored_revision = stored_revision(connection)

    def add(self, records: Sequence[JobRecord]) -> None:
        """Take over the jobs that an event finished; a replay may bring them again."""
        new = [record for record in records if record.revision > self._stored_revision]
        if not new:
            return
        self._on_the_way.update((record.id, record) for record in new)

        def stored() -> None:
            for record in new:
                self._on_the_way.pop(record.id, None)
            self._stored_revision = max(self._stored_revision, new[-1].revision)

        self._journal.store_finished(new, stored)

    async def get(self, job_id: JobId) -> JobRecord | None:
        """Return a finished job; None if it is unknown, live or beyond retention."""
        if record := self._on_the_way.get(job_id):
            return record
        return await self._read(lambda connection: find_record(connection, job_id))

    async def list(
        self,
        engine: LiveJobs,
        *,
        filter: str = "",  # noqa: A002 - the name it has on the wire
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> Page:
        """Return a page of live and finished jobs.

        Raises `InvalidInput` naming `filter`, `order_by`, `page_size` or `page_token`; a token
        is good for the filter and order it was made with.
        """
        job_filter, order = parse_filter(filter), parse_order(order_by)
        if page_size < 0:
            raise InvalidInput("page_size", "must not be negative")
        stamp = f"{filter}\0{order_by}".encode()
        query = _Query(
            job_filter,
            order,
            _read_token(page_token, stamp, len(order.keys)) if page_token else None,
            min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE),
        )
        revision, stored = engine.revision, self._stored_revision
        total, found = self._in_memory(engine, query)
        if job_filter.can_be_finished:
            n_rows, rows = await self._read(lambda c: _in_file(c, query, stored))
            total += n_rows
            found = order.sort([*found, *rows])
        records = tuple(found[: query.size])
        token = _make_token(order.place(records[-1]), stamp) if len(found) > query.size else ""
        return Page(records=records, next_page_token=token, total_size=total, revision=revision)

    def close(self) -> None:
        """Let the file go; to be called before the journal is closed."""
        self._threads.shutdown()
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _in_memory(self, engine: LiveJobs, query: _Query) -> tuple[int, Sequence[JobRecord]]:
        """Return how many jobs in memory match, and copies of those that may be on the page."""
        accepts = query.filter.accepts
        matching: list[JobRecord] = []
        if query.filter.can_be_live:
            matching = [record for record in engine.jobs() if accepts(record)]
        if query.filter.can_be_finished and self._on_the_way:
            matching += [record for record in self._on_the_way.values() if accepts(record)]
        behind = matching
        if query.place is not None:
            is_after = query.order.is_after(query.place)
            behind = [record for record in matching if is_after(record)]
        first = query.order.sort(behind)[: query.size + 1]
        # Copies, because live ones go on changing while the file is read.
        return len(matching), [
            replace(record, tasks=dict(record.tasks), history=list(record.history))
            for record in first
        ]

    async def _read(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: question(self._connection()))

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = connect_reader(self._folder)
            self._own.connection = connection
            self._connections.append(connection)
        return connection


def _in_file(
    connection: sqlite3.Connection, query: _Query, stored: int
) -> tuple[int, list[JobRecord]]:
    """Return how many stored jobs match, and those that may be on the page."""
    where = query.filter.where
    behind = query.order.where_after(query.place) if query.place is not None else Where()
    connection.execute("BEGIN")  # the count and the rows of one moment
    try:
        (total,) = connection.execute(
            "SELECT count(*) FROM finished_jobs AS j"  # noqa: S608 - values are parameters
            f" WHERE {where.sql} AND +j.revision <= ?",
            (*where.parameters, stored),
        ).fetchone()
        rows = connection.execute(
            "SELECT j.sequence FROM finished_jobs AS j"  # noqa: S608 - values are parameters
            f" WHERE {where.sql} AND +j.revision <= ? AND {behind.sql}"
            f" ORDER BY {query.order.sql} LIMIT ?",
            (*where.parameters, stored, *behind.parameters, query.size + 1),
        ).fetchall()
        return total, load_records(connection, [sequence for (sequence,) in rows])
    finally:
        connection.execute("COMMIT")


def _make_token(place: Sequence[Value], stamp: bytes) -> str:
    body = msgspec.json.encode(place)
    return base64.urlsafe_b64encode(_digest(body, stamp) + body).decode()


def _read_token(token: str, stamp: bytes, n_keys: int) -> tuple[Value, ...]:
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if digest == _digest(body, stamp):
            place = msgspec.json.decode(body, type=tuple[str | int | float, ...])
            if len(place) == n_keys:
                return place
    except ValueError:
        pass
    raise InvalidInput("page_token", "was not given out for this filter and order")


_DIGEST_BYTES = 9


def _digest(body: bytes, stamp: bytes) -> bytes:
    key = hashlib.blake2b(stamp, digest_size=32).digest()
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES, key=key).digest()
