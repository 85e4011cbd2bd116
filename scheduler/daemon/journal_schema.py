"""The journal's file: where it lies, its tables, and how older ones become newer ones.

`MIGRATIONS[n]` leads from schema version n to n + 1, each in its own transaction together with
the new version number, so a crash in between leaves a version that the next start goes on from.
A new file takes the same road from version 0. Nothing here knows what is in the rows.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import cast

from scheduler.daemon.event_codec import dump_crc, event_crc
from scheduler.daemon.journal_errors import JournalCorrupt, JournalTooNew
from scheduler.faults import fault

DATABASE_NAME = "journal.sqlite"
LOCK_NAME = "journal.lock"
MARK_NAME = "journal.mark"

APPLICATION_ID = 0x4C50_544E  # "LPTN": tells our files from other SQLite files
BUSY_TIMEOUT_S = 5.0  # for a stranger's transaction; the daemon itself has one writer


def connect_writer(folder: Path) -> sqlite3.Connection:
    """Return the one connection that writes: every commit is on the disk when it returns."""
    path = folder / DATABASE_NAME
    # Jobs' environments may hold secrets. SQLite gives its other files the same mode.
    path.touch(mode=0o600)
    connection = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    # The writer checkpoints by itself, after it has answered, never inside a COMMIT.
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA journal_size_limit=67108864")
    connection.execute("PRAGMA foreign_keys=OFF")
    return connection


def connect_reader(folder: Path) -> sqlite3.Connection:
    """Return a connection that only reads, beside a running daemon or without one."""
    path = folder / DATABASE_NAME
    if not path.exists():
        raise JournalCorrupt(folder, f"there is no {DATABASE_NAME}")
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA query_only=ON")
    return connection


def schema_version(connection: sqlite3.Connection, folder: Path) -> int:
    """Return the file's schema version; refuses files that are not ours or too new."""
    application_id = _pragma(connection, "application_id")
    version = _pragma(connection, "user_version")
    n_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application_id != APPLICATION_ID and (application_id or version or n_tables):
        raise JournalCorrupt(folder, f"{DATABASE_NAME} is not a Lepton journal")
    if version > len(MIGRATIONS):
        raise JournalTooNew(folder, found=version, known=len(MIGRATIONS))
    return version


def migrate(connection: sqlite3.Connection, folder: Path) -> None:
    """Bring the file to the version this program knows."""
    for version in range(schema_version(connection, folder), len(MIGRATIONS)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            MIGRATIONS[version](connection)
            connection.execute(f"PRAGMA user_version={version + 1}")
            fault("journal.migrating")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return cast(int, connection.execute(f"PRAGMA {name}").fetchone()[0])


def _run(connection: sqlite3.Connection, statements: str) -> None:
    # executescript() would commit the transaction that the caller opened.
    for statement in statements.split(";"):
        connection.execute(statement)


def _to_1_events_and_dumps(connection: sqlite3.Connection) -> None:
    _run(
        connection,
        f"""
        PRAGMA application_id={APPLICATION_ID};
        CREATE TABLE events (
            sequence INTEGER PRIMARY KEY, at_s REAL NOT NULL, kind TEXT NOT NULL,
            payload BLOB NOT NULL) STRICT;
        CREATE TABLE dumps (
            sequence INTEGER PRIMARY KEY, payload BLOB NOT NULL) STRICT""",
    )


def _to_2_checksums(connection: sqlite3.Connection) -> None:
    connection.create_function("event_crc", 3, event_crc, deterministic=True)
    connection.create_function("dump_crc", 2, dump_crc, deterministic=True)
    _run(
        connection,
        """
        ALTER TABLE events ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE dumps ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
        UPDATE events SET crc = event_crc(sequence, kind, payload);
        UPDATE dumps SET crc = dump_crc(sequence, payload)""",
    )


def _to_3_finished_jobs(connection: sqlite3.Connection) -> None:
    # Records lie apart from what lists are filtered by, so that a scan reads little: 20 ms for
    # 200,000 jobs. That is why only fields with many values have an index of their own.
    _run(
        connection,
        """
        CREATE TABLE finished_jobs (
            sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, revision INTEGER NOT NULL,
            name TEXT NOT NULL, queue TEXT NOT NULL, submitter TEXT NOT NULL,
            kind TEXT NOT NULL, phase TEXT NOT NULL, array_id TEXT NOT NULL,
            priority INTEGER NOT NULL, submitted_at_s REAL NOT NULL,
            first_started_at_s REAL NOT NULL, ended_at_s REAL NOT NULL) STRICT;
        CREATE INDEX finished_by_revision ON finished_jobs (revision);
        CREATE INDEX finished_by_name ON finished_jobs (name);
        CREATE INDEX finished_by_array ON finished_jobs (array_id);
        CREATE INDEX finished_by_submitted ON finished_jobs (submitted_at_s);
        CREATE INDEX finished_by_ended ON finished_jobs (ended_at_s);
        CREATE TABLE finished_records (
            sequence INTEGER PRIMARY KEY, crc INTEGER NOT NULL, payload BLOB NOT NULL) STRICT;
        CREATE TABLE finished_labels (
            key TEXT NOT NULL, value TEXT NOT NULL, sequence INTEGER NOT NULL,
            PRIMARY KEY (key, value, sequence)) STRICT, WITHOUT ROWID;
        CREATE TABLE finished_nodes (
            node TEXT NOT NULL, sequence INTEGER NOT NULL,
            PRIMARY KEY (node, sequence)) STRICT, WITHOUT ROWID;
        CREATE TABLE probes (id INTEGER PRIMARY KEY, filler BLOB NOT NULL) STRICT""",
    )


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _to_1_events_and_dumps,
    _to_2_checksums,
    _to_3_finished_jobs,
)
"""The steps from an empty file to the schema of this version, oldest first."""
